"""Where training examples come from, and how the host turns them into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


# --8<-- [start:schema]
@dataclass(frozen=True)
class SourceConfig:
    """Where examples come from: ArrayRecord shards of `vitscale prep`, or a CSV beside a folder of images."""

    kind: Literal["shards", "csv"]
    path: str  # folder with the shards, or the CSV file
    # split of the shards, or value of `split_column`; None takes every row of a CSV
    split: str | None = None
    split_column: str = "split"
    # folder that `image_column` starts from; default: the CSV's folder
    image_root: str | None = None
    image_column: str = "path"
    id_column: str | None = None  # default: the image path is the id
    fields: tuple[str, ...] = ()  # label fields (columns) to read; default for shards: all of them
    # share of the mixture; default: in proportion to the number of examples
    weight: float | None = None
    # shards may carry a weight per example
    sampling: Literal["uniform", "sampling_weight"] = "uniform"


@dataclass(frozen=True)
class DataConfig:
    """The training examples and how the host turns them into batches."""

    sources: tuple[SourceConfig, ...]
    root: str = "."  # folder that relative paths of the sources start from
    global_batch_size: int = 256  # over all devices of all hosts
    crop: Literal["random_resized", "resize"] = "random_resized"
    crop_min_area: float = 0.35  # of random_resized: smallest share of the image's area
    flip: bool = True
    max_labels: int = 8  # per example and task; the best-weighted ones are kept
    num_threads: int = 2  # that decode batches, per process
    prefetch_batches: int = 4
    max_reject_fraction: float = 0.01  # of undecodable images; more is an error
    max_image_pixels: int = 50_000_000  # a larger image is rejected unread (decompression bombs)


# --8<-- [end:schema]
