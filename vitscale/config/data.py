"""Where training examples come from, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitscale.config.checks import check_positive, check_range
from vitscale.errors import UserError


# --8<-- [start:schema]
@dataclass(frozen=True)
class SourceConfig:
    """Where examples come from. Paths may be local, `gs://` or `s3://`, where the format's library reads those.

    shards: ArrayRecord shards of `vitscale prep`. csv: a CSV beside a folder of images. parquet: a file or folder of
    files with image bytes in a column. webdataset: tar files. huggingface: a folder of `datasets.save_to_disk`.
    tfds: a prepared dataset, by name ("oxford_iiit_pet") or by its folder.
    """

    kind: Literal["shards", "csv", "parquet", "webdataset", "huggingface", "tfds"]
    path: str  # folder, file, or name of the dataset; of webdataset also a pattern such as "train-*.tar"
    name: str | None = None  # in logs and counts; default: the path, with the split
    # split of shards, huggingface and tfds, or value of `split_column`; None takes every row of a table
    split: str | None = None
    split_column: str = "split"  # csv, parquet
    # csv: folder that `image_column` starts from; default: the CSV's folder
    image_root: str | None = None
    # csv: column of paths (default "path"); else column, feature or file suffix of the image's bytes (default: found)
    image_column: str | None = None
    # default: the image's path, the record's own id, or its place in the dataset
    id_column: str | None = None
    # label fields (columns) to read; default for shards and tfds: all of them
    fields: tuple[str, ...] = ()
    # tasks that these examples train; default: every task whose field they are labelled for
    tasks: tuple[str, ...] = ()
    # share of the draws, with data.mixture=weights: positive, in any unit
    weight: float | None = None
    # shards, csv and parquet may carry a weight per example, in the column `sampling_weight`
    sampling: Literal["uniform", "sampling_weight"] = "uniform"
    data_dir: str | None = None  # tfds: where prepared datasets lie; default: TFDS's own


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training batch on the device. Every random choice is keyed by the example's draw number."""

    flip: bool = True  # mirror half of the images; off for classes that tell left from right
    # largest relative change of brightness, contrast and saturation, and of hue in turns (0 .. 0.5)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    # RandAugment (Cubuk et al., 2020, arXiv 1909.13719): operations an image, and their strength 0 .. 10
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 9.0
    # chance of erasing a rectangle (Zhong et al., 2020, arXiv 1708.04896)
    random_erasing: float = 0.0
    # MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899): alpha of the Beta distribution, 0: off; both: one of
    # them for each pair, at even odds
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0  # of pairs that are mixed at all

    def __post_init__(self) -> None:
        check_range(
            "data.augment",
            self,
            {
                "brightness": (0.0, 1.0),
                "contrast": (0.0, 1.0),
                "saturation": (0.0, 1.0),
                "hue": (0.0, 0.5),
                "rand_augment_layers": (0, 16),
                "rand_augment_magnitude": (0.0, 10.0),
                "random_erasing": (0.0, 1.0),
                "mixup_alpha": (0.0, 100.0),
                "cutmix_alpha": (0.0, 100.0),
                "mix_probability": (0.0, 1.0),
            },
        )

    @property
    def mixes(self) -> bool:
        """Whether images of one batch are mixed with each other."""
        return self.mix_probability > 0 and max(self.mixup_alpha, self.cutmix_alpha) > 0


@dataclass(frozen=True)
class DataConfig:
    """The training examples and how the host turns them into batches."""

    sources: tuple[SourceConfig, ...]
    root: str = "."  # folder that relative paths of the sources start from
    global_batch_size: int = 256  # over all devices of all hosts
    # Each source's share of the draws. proportional: to its number of examples; balanced: equal; temperature: to
    # size ** (1 / mixture_temperature); weights: as the sources say. All of these mix inside every batch.
    # round_robin: whole batches of one source after the other.
    mixture: Literal["proportional", "balanced", "temperature", "weights", "round_robin"] = (
        "proportional"
    )
    mixture_temperature: float = 2.0
    crop: Literal["random_resized", "resize"] = "random_resized"
    crop_min_area: float = 0.35  # of random_resized: smallest share of the image's area
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # sides that steps train at, one drawn for each step and compiled once; default: model.image_size alone
    image_sizes: tuple[int, ...] = ()
    max_labels: int = 8  # per example and task; the best-weighted ones are kept
    # Processes that read and decode batches, per training process; 0: `num_threads` threads of its own instead
    num_workers: int = 0
    num_threads: int = 2
    prefetch_batches: int = 4
    # of unusable examples, each of which another one replaces; more is an error
    max_reject_fraction: float = 0.01
    max_image_pixels: int = 50_000_000  # a larger image is rejected unread (decompression bombs)

    def __post_init__(self) -> None:
        check_positive(self, "global_batch_size", "max_labels", "num_threads", "prefetch_batches")
        check_range(
            "data",
            self,
            {
                "num_workers": (0, 1024),
                "crop_min_area": (0.0, 1.0),
                "max_reject_fraction": (0.0, 1.0),
                "mixture_temperature": (0.01, 1000.0),
            },
        )
        weighted = [source.path for source in self.sources if source.weight is not None]
        if self.mixture == "weights" and len(weighted) < len(self.sources):
            raise UserError(
                "data.mixture=weights needs the weight of every source: set data.sources.N.weight."
            )
        if weighted and self.mixture != "weights":
            raise UserError(
                f"data.sources: {weighted[0]} has a weight, which only data.mixture=weights reads."
            )
        for size in self.image_sizes:
            if size < 1:
                raise UserError(f"data.image_sizes: {size} must be at least 1 pixel.")


# --8<-- [end:schema]
