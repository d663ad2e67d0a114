"""What `vitscale eval` measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitscale.config.checks import check_positive
from vitscale.config.data import SourceConfig
from vitscale.errors import UserError


# --8<-- [start:schema]
@dataclass(frozen=True)
class RetrievalConfig:
    """Queries searched in an index; a hit is relevant when both carry the same value of `relevant_field`."""

    name: str
    queries: SourceConfig
    index: SourceConfig
    relevant_field: str
    # an embedding task, "pooled" (the bare backbone), or auto: the first embedding task
    embedding: str = "auto"
    exclude_same_id: bool = True
    search: Literal["scann", "exact"] = "scann"  # the exact oracle always runs beside ScaNN
    neighbours: int = 10  # hits a query in neighbours.parquet; also the k of recall against exact


@dataclass(frozen=True)
class ClassificationConfig:
    """Accuracy of the heads (and the mean absolute error of ordinal ones) on labelled images."""

    name: str
    source: SourceConfig
    tasks: tuple[str, ...] = ()  # default: every head whose field the source has


@dataclass(frozen=True)
class KnnConfig:
    """Weighted k-nearest-neighbour classification of frozen features (Caron et al., 2021, section 4.1)."""

    name: str
    train: SourceConfig
    test: SourceConfig
    field: str
    k: int = 20
    temperature: float = 0.07
    embedding: str = "pooled"


@dataclass(frozen=True)
class EvalConfig:
    """What `vitscale eval` measures on one checkpoint."""

    root: str = "."  # folder that relative paths of the sources start from
    retrieval: tuple[RetrievalConfig, ...] = ()
    classification: tuple[ClassificationConfig, ...] = ()
    knn: tuple[KnnConfig, ...] = ()
    batch_size: int = 256
    bootstrap_samples: int = 1000
    seed: int = 0
    num_threads: int = 2
    max_reject_fraction: float = 0.0
    max_image_pixels: int = 50_000_000
    gallery_queries: int = 12  # in the report

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "bootstrap_samples", "num_threads")
        suites = [s.name for s in self.retrieval]
        suites += [s.name for s in self.classification] + [s.name for s in self.knn]
        if not suites:
            raise UserError(
                "the eval config names no suite: add one to retrieval, classification or knn."
            )
        for name in suites:
            if suites.count(name) > 1:
                raise UserError(
                    f"two suites are called {name!r}; names key the metrics and must differ."
                )


# --8<-- [end:schema]
