"""The typed schema of every config, and the checks that need nothing but the config.

A config file returns an `ml_collections.ConfigDict` from `get_config()`; `vitscale.config_loading` turns it into
these frozen dataclasses, so that a typo or a wrong type fails before a device is touched. A field's comment is its
documentation: `docs/config.md` shows this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitscale.errors import UserError

NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


# --8<-- [start:schema]
@dataclass(frozen=True)
class ModelConfig:
    """The backbone: a ViT ("B/16": preset / patch size) or a CNN baseline, by name, with any size overridden."""

    # ViT presets mu, Ti, S, B, L, So400m, H, g, G, e at any patch size, or resnet50, resnet101, resnet152,
    # resnext101_32x8d, seresnext101_32x8d
    variant: str = "S/16"
    image_size: int | tuple[int, int] = 224  # pixels: a side of the square, or (height, width)
    # Input normalisation of uint8 images, by channel: (x / 255 - mean) / std. Stored with every checkpoint.
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    # activations; parameters stay float32
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    norm_eps: float | None = None  # of every norm; default: 1e-6 (ViT), 1e-5 (CNN)
    # initial bias of classification heads (sigmoid losses start well at log(positives / classes)); None: no bias
    head_bias: float | None = 0.0

    # ViT only, from here on
    width: int | None = None  # override of the preset
    depth: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    # cls token, mean of the patch tokens, multi-head attention pooling (Zhai et al., 2022), or none (tokens only)
    pooling: Literal["gap", "cls", "map", "none"] = "gap"
    gap_norm: Literal["before", "after"] = (
        "before"  # final norm then mean (big_vision), or mean then norm (timm)
    )
    class_token: bool | None = None  # default: only when pooling is cls
    register_tokens: int = 0  # 0-8 (Darcet et al., 2024, arXiv 2309.16588)
    position_embedding: Literal["learned", "sincos2d", "rope2d"] = "learned"
    prefix_position: bool = (
        False  # learned: cls and registers have positions of their own (AugReg, timm, HF)
    )
    representation_size: int | None = None  # tanh layer between pooling and heads ("pre_logits")
    mlp: Literal["gelu_tanh", "gelu_erf", "swiglu"] = "gelu_tanh"
    qk_norm: bool = False  # LayerNorm over each head's queries and keys (Dehghani et al., 2023)
    layer_scale: float | None = (
        None  # initial factor of each residual branch (Touvron et al., 2021), e.g. 1e-5
    )
    stochastic_depth: float = 0.0  # drop rate of the last block; linear from 0 at the first
    dropout: float = 0.0  # after the position embedding and in every MLP and attention output
    patch_dropout: float = (
        0.0  # share of patch tokens left out in training; the kept count is static and even
    )
    # FlexiViT (Beyer et al., 2023): one of these patch sizes a step; kernel and positions are resized to it
    patch_sizes: tuple[int, ...] = ()
    scan_layers: bool = (
        False  # one stacked parameter a layer type: compiles faster, moves more bytes on GPU
    )
    # what the backward pass recomputes: nothing but GELU; everything between matrix products; the attention of
    # each block; each whole block
    remat: Literal["none", "dots", "attention", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "tpu_flash"] = "auto"

    # CNN only: BatchNorm over the global batch, or GroupNorm + weight standardisation (BiT, arXiv 1912.11370)
    cnn_norm: Literal["batch", "group_ws"] = "batch"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("register_tokens", 0, 8),
            ("stochastic_depth", 0.0, 0.99),
            ("dropout", 0.0, 0.99),
            ("patch_dropout", 0.0, 0.95),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(
                    f"model.{name}={getattr(self, name)} must lie between {low} and {high}."
                )
        if isinstance(self.image_size, tuple) and len(self.image_size) != 2:
            raise UserError(
                f"model.image_size={self.image_size} must be a side or (height, width)."
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise UserError(
                    f"model.{name}={getattr(self, name)} must have one value for each of R, G, B."
                )
        if min(self.std) <= 0:
            raise UserError(f"model.std={self.std} must be above 0.")

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)


@dataclass(frozen=True)
class TaskConfig:
    """One thing the embedding learns: a head, its loss, and which label field it reads."""

    name: str
    kind: Literal["multi_label", "single_label", "ordinal", "embedding"]
    field: str = ""  # label field of the examples; default: the task's name
    weight: float = 1.0  # of this task's mean loss in the sum
    # multi_label: softmax with target 1/k, or one sigmoid a class
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    embedding_dim: int = 64  # embedding: width of the L2-normalised vector
    temperature: float = 0.05  # embedding: of the softmax over normalised proxies

    @property
    def label_field(self) -> str:
        return self.field or self.name


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


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and a cosine or constant schedule."""

    lr: float = 1e-3  # peak
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    final_lr_fraction: float = 0.0  # of cosine: last LR / peak LR
    weight_decay: float = 0.05  # on matrices only, scaled by the LR
    b1: float = 0.9
    b2: float = 0.999
    grad_clip_norm: float = 1.0  # global norm; 0 switches it off
    lr_multipliers: Mapping[str, float] = field(
        default_factory=dict
    )  # regex over parameter names -> factor


@dataclass(frozen=True)
class MeshConfig:
    """Device mesh: sizes of its axes (-1 takes the rest) and where logical axes of parameters go."""

    replica: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    layout: Literal["dp", "fsdp", "fsdp_tp"] = "fsdp_tp"  # rules of vitscale.parallel.rules


@dataclass(frozen=True)
class InitConfig:
    """Start from another run's parameters."""

    checkpoint: str = ""  # a workdir or one step's folder; empty: random
    include: str = "^backbone/"  # regex over parameter names that are taken


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 500
    keep: int = 2


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 20
    tensorboard: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The same schema serves pretraining, multi-task training and probes."""

    data: DataConfig
    tasks: tuple[TaskConfig, ...]
    total_steps: int
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    init: InitConfig = field(default_factory=InitConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, "total_steps")
        _check_positive(self.data, "global_batch_size", "max_labels", "num_threads")
        _check_positive(self.log, "every_steps")
        _check_positive(self.checkpoint, "every_steps", "keep")
        if not self.data.sources:
            raise UserError("data.sources is empty: name at least one source of training examples.")
        if not self.tasks:
            raise UserError("tasks is empty: name at least one task to train.")
        names = [task.name for task in self.tasks]
        for name in names:
            if not NAME_PATTERN.fullmatch(name):
                raise UserError(
                    f"tasks: the name {name!r} must be letters, digits and '_' (it names parameters)."
                )
            if names.count(name) > 1:
                raise UserError(f"tasks: {name!r} is named twice; every task needs its own name.")


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
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "batch_size", "bootstrap_samples", "num_threads")
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


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1.")
