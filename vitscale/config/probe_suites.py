"""Suites of `vitscale eval` that judge heads, or train something small on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitscale.config.checks import check_unique_fields
from vitscale.config.data import SourceConfig
from vitscale.errors import UserError


# --8<-- [start:schema]
@dataclass(frozen=True)
class ClassificationConfig:
    """What the heads are worth on labelled images; which metrics depends on the kind of each."""

    name: str
    source: SourceConfig
    tasks: tuple[str, ...] = ()  # default: every head whose field the source has
    slices: tuple[str, ...] = ()  # fields of the source: every metric for each of their values
    group_field: str = ""  # examples that share its value are resampled together
    per_class: bool = (
        False  # recall and precision, or AP, of each class of each head, into per_class.parquet
    )

    def __post_init__(self) -> None:
        check_unique_fields(self.name, "slices", self.slices)


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
    slices: tuple[str, ...] = ()  # fields of the test examples: accuracy for each of their values
    per_class: bool = False  # the same for each class of the test examples, into per_class.parquet
    group_field: str = ""  # test examples that share its value are resampled together

    def __post_init__(self) -> None:
        check_unique_fields(self.name, "slices", self.slices)
        if self.k < 1 or self.temperature <= 0:
            raise UserError(f"suite {self.name!r}: k must be at least 1 and temperature above 0.")


@dataclass(frozen=True)
class LinearProbeConfig:
    """Logistic regression on frozen features by L-BFGS, for all penalties at once; the penalty is chosen on a part of
    `train`, then all of it is trained on."""

    name: str
    train: SourceConfig
    test: SourceConfig
    field: str
    # softmax: one label an example; sigmoid: any number of them, measured by mAP
    loss: Literal["softmax", "sigmoid"] = "softmax"
    # weights of |W|^2 / 2 against the mean loss, of standardised features
    l2: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    validation_fraction: float = 0.2
    steps: int = 200  # of L-BFGS, at most
    embedding: str = "pooled"
    slices: tuple[str, ...] = ()
    per_class: bool = False
    # of the test examples, and of train where it has it: a group is then never in both parts of train
    group_field: str = ""

    def __post_init__(self) -> None:
        check_unique_fields(self.name, "slices", self.slices)
        if not self.l2 or min(self.l2) <= 0:
            raise UserError(f"suite {self.name!r}: l2={self.l2} must be numbers above 0.")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"suite {self.name!r}: validation_fraction={self.validation_fraction} must lie between 0 and 1."
            )
        if self.steps < 1:
            raise UserError(f"suite {self.name!r}: steps={self.steps} must be at least 1.")


@dataclass(frozen=True)
class FewShotConfig:
    """k examples a class, ridge regression onto one-hot targets in closed form (big_vision's few-shot evaluator)."""

    name: str
    train: SourceConfig
    test: SourceConfig
    field: str
    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 5  # of the examples; the mean over them is reported
    l2: float = 1024.0  # big_vision's, for whitened features with a bias
    embedding: str = "pooled"
    slices: tuple[str, ...] = ()
    per_class: bool = False
    group_field: str = ""

    def __post_init__(self) -> None:
        check_unique_fields(self.name, "slices", self.slices)
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise UserError(
                f"suite {self.name!r}: shots={self.shots} must be numbers from 1, each once."
            )
        if self.draws < 1 or self.l2 <= 0:
            raise UserError(f"suite {self.name!r}: draws must be at least 1 and l2 above 0.")


@dataclass(frozen=True)
class AttentiveProbeConfig:
    """One cross-attention layer with a learnt query over frozen patch tokens, and a linear classifier."""

    name: str
    train: SourceConfig
    test: SourceConfig
    field: str
    num_heads: int = 8
    steps: int = 500
    batch_size: int = 256
    lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3)  # the best is chosen on a part of `train`
    weight_decay: float = 0.1  # of the kernels, times the learning rate
    validation_fraction: float = 0.2
    # tokens of `train` are kept, in memory up to this and else in a temporary file
    token_memory_gib: float = 4.0
    slices: tuple[str, ...] = ()
    per_class: bool = False
    # of the test examples, and of train where it has it: a group is then never in both parts of train
    group_field: str = ""

    def __post_init__(self) -> None:
        check_unique_fields(self.name, "slices", self.slices)
        if not self.lr or min(self.lr) <= 0:
            raise UserError(f"suite {self.name!r}: lr={self.lr} must be numbers above 0.")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"suite {self.name!r}: validation_fraction={self.validation_fraction} must lie between 0 and 1."
            )
        for name in ("num_heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"suite {self.name!r}: {name}={getattr(self, name)} must be at least 1."
                )
        if self.weight_decay < 0 or self.token_memory_gib < 0:
            raise UserError(
                f"suite {self.name!r}: weight_decay and token_memory_gib must be at least 0."
            )


@dataclass(frozen=True)
class ClusteringConfig:
    """k-means of frozen features against labels: normalised and adjusted mutual information."""

    name: str
    source: SourceConfig
    field: str
    num_clusters: int = 0  # 0: as many as there are classes
    starts: int = 5  # of k-means; the one with the least inertia counts
    embedding: str = "auto"
    group_field: str = ""

    def __post_init__(self) -> None:
        if self.num_clusters < 0 or self.num_clusters == 1:
            raise UserError(
                f"suite {self.name!r}: num_clusters={self.num_clusters} must be at least 2, or 0 for as many as "
                "there are classes."
            )
        if self.starts < 1:
            raise UserError(f"suite {self.name!r}: starts={self.starts} must be at least 1.")


# --8<-- [end:schema]
