"""From what a foreign file says to a `ModelConfig`, and from a config to the sizes that its tensors have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitscale.config import ModelConfig
from vitscale.config_loading import apply_override, from_mapping
from vitscale.errors import UserError
from vitscale.models.convert.files import TensorFile
from vitscale.models.convert.tensors import Shape, WeightMap
from vitscale.models.vit_shape import PRESETS, ViTSize

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

MAX_DEPTH = 1000  # more is a damaged file, and would take long to say


@dataclass(frozen=True)
class Head:
    """A linear classification head: its parameters' prefix and number of classes."""

    prefix: str  # heads/<task>/linear
    classes: int


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about a file beyond its contents."""

    path: Path
    model: str = ""  # timm's name
    variant: str = ""  # ours; then the file must be this model
    task: str = "label"
    given: Mapping[str, Any] = field(default_factory=dict)  # fields of ModelConfig


@dataclass(frozen=True)
class Described:
    """A foreign file, understood from its header: the model at the file's own image size and how to read it."""

    file: TensorFile
    config: ModelConfig
    head: Head | None
    class_names: list[str] | None
    weights: WeightMap
    ignored: dict[str, list[str]]  # why -> tensors that are left out on purpose


def parse_given(overrides: list[str]) -> dict[str, Any]:
    """`num_heads=12` and such as fields of `ModelConfig`, checked."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override, ModelConfig)
    checked = from_mapping(ModelConfig, tree)
    return {name: getattr(checked, name) for name in tree}


def vit_config(
    size: ViTSize,
    patch: int,
    image_size: int | tuple[int, int],
    options: ImportOptions,
    **fields: Any,
) -> ModelConfig:
    """The config with the preset of this size, or with overrides of one where there is none.

    `options.variant` and `options.given` win over what the file says; whether they fit, the shapes will tell.
    """
    if not 0 < size.depth <= MAX_DEPTH:
        raise UserError(f"{options.path} has {size.depth} layers; a ViT has 1 to {MAX_DEPTH}.")
    if isinstance(image_size, tuple) and image_size[0] == image_size[1]:
        image_size = image_size[0]
    if options.variant:
        sizes: dict[str, Any] = {"variant": options.variant}
    else:
        presets = [name for name, preset in PRESETS.items() if preset == size]
        near = [name for name, preset in PRESETS.items() if preset.width == size.width]
        name = (presets or near or ["B"])[0]
        different = [f for f in ViTSize._fields if getattr(size, f) != getattr(PRESETS[name], f)]
        sizes = {"variant": f"{name}/{patch}"} | {f: getattr(size, f) for f in different}
    return from_mapping(ModelConfig, {**sizes, "image_size": image_size, **fields, **options.given})


def image_size_of(
    rows: int, patch: int, candidates: list[int | tuple[int, int] | None], options: ImportOptions
) -> tuple[int, int]:
    """(height, width) whose grid has `rows` patches: the first candidate that has, else the square one."""
    for candidate in [options.given.get("image_size"), *candidates]:
        if candidate is None:
            continue
        hw = candidate if isinstance(candidate, tuple) else (candidate, candidate)
        if (hw[0] // patch) * (hw[1] // patch) == rows:
            return hw
    side = math.isqrt(rows)
    if side * side != rows:
        raise UserError(
            f"{options.path} has {rows} patch positions, which is no square grid: say the image size it was trained "
            "at, such as --config.image_size='(224, 112)'."
        )
    return (side * patch, side * patch)


def first_shape(file: TensorFile, name: str, rank: int, what: str) -> Shape:
    """The shape of the tensor that shows that a file is of the expected kind."""
    shape = file.shapes.get(name)
    if shape is None or len(shape) != rank:
        have = ", ".join(sorted(file.shapes)[:4]) or "none"
        raise UserError(
            f"{file.path} is no {what}: {name} is missing or not of rank {rank}; its tensors begin with {have}."
        )
    return shape


def count_layers(names: list[str], before: str) -> int:
    """1 + the largest number that follows `before` in a name."""
    numbers = [
        name[len(before) :].split(".")[0].split("/")[0] for name in names if name.startswith(before)
    ]
    return 1 + max((int(text) for text in numbers if text.isdecimal()), default=-1)


def refuse(target: str, reasons: Mapping[str, bool]) -> None:
    """Raises `UserError` naming the options of the model (the true ones) that a format has no place for."""
    blocking = [reason for reason, applies in reasons.items() if applies]
    if blocking:
        raise UserError(
            f"{target} cannot express {', '.join(blocking)}; --format safetensors or stablehlo can."
        )
