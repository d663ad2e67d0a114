"""`vitscale convert import`: from a public weights file to a checkpoint that every other command reads."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.config import NAME_PATTERN, ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.adapt import adapt
from vitscale.models.convert import big_vision, hugging_face, native, resnet, timm_vit
from vitscale.models.convert.describe import Described, Head, ImportOptions
from vitscale.models.convert.files import find_safetensors, open_npz, read_json, reading
from vitscale.models.convert.formats import IMPORT_FORMATS
from vitscale.models.convert.tensors import check_shapes
from vitscale.models.convert.timm_names import RESNETS
from vitscale.models.multitask import check_model
from vitscale.models.resnet import is_cnn

logger = logging.getLogger(__name__)
CROP_WORDS = {"squash": "squashed", "centre": "cut to the central"}


@dataclass(frozen=True)
class Imported:
    """Everything that `vitscale.models.weights.write_model` takes."""

    model: ModelConfig
    tasks: tuple[TaskConfig, ...]
    classes: dict[str, list[str]]
    params: dict[str, Any]  # float32


def import_weights(
    kind: str,
    options: ImportOptions,
    *,
    image_size: int | tuple[int, int] | None = None,
    class_names: list[str] | None = None,
    num_classes: int | None = None,
) -> Imported:
    """Reads a file of one of `IMPORT_FORMATS`.

    Args:
        image_size: of the result; positions are resampled to it. Default: the file's own.
        class_names: of the head, in order; default: those that the file has, else "0", "1", …
        num_classes: that the head must have; 0 leaves the head out.
    """
    if kind == "safetensors":
        return _resized(Imported(*native.read(options.path)), image_size)
    described = _checked(kind, options)
    config, head = described.config, described.head
    if head is not None and num_classes == 0:
        head = None
    elif num_classes or (class_names and head is None):
        _check_head(options.path, head, num_classes)
    params = described.weights.to_params(described.file.read)
    if head is None:
        params = {n: a for n, a in params.items() if not n.startswith("heads/")}
    unrolled = dataclasses.replace(config, scan_layers=False) if config.scan_layers else config
    params = adapt(params, unrolled, config)
    tasks: tuple[TaskConfig, ...] = ()
    classes: dict[str, list[str]] = {}
    if head is not None:
        tasks = (TaskConfig(options.task, "single_label", sharded_loss=False),)
        names = class_names or described.class_names or [str(i) for i in range(head.classes)]
        classes = {options.task: _checked_names(names, head.classes, options.path)}
    return _resized(Imported(config, tasks, classes, params), image_size)


def _checked(kind: str, options: ImportOptions) -> Described:
    """The description, after every shape of the file is known to be the expected one."""
    if not NAME_PATTERN.fullmatch(options.task):
        raise UserError(f"--task {options.task!r} must be letters, digits and '_'.")
    with reading(options.path):
        described = describe(kind, options)
    check_model(described.config)
    ignored = {name for names in described.ignored.values() for name in names}
    found = {name: shape for name, shape in described.file.shapes.items() if name not in ignored}
    expected = described.weights.shapes()
    check_shapes(found, expected, f"{options.path} as {_words(described.config)}")
    for why, names in described.ignored.items():
        if names:
            logger.info("left out %d tensors: %s", len(names), why)
    return described


def _check_head(path: Path, head: Head | None, num_classes: int | None) -> None:
    if head is None:
        raise UserError(f"{path} has no head: drop --num-classes and --class-names.")
    if head.classes != num_classes:
        raise UserError(
            f"{path} has a head of {head.classes} classes, not {num_classes}; --num-classes 0 drops it."
        )


def describe(kind: str, options: ImportOptions) -> Described:
    """What the file holds, from its header. Raises `UserError` when it is not of this kind."""
    path = options.path
    if not path.exists():
        raise UserError(
            f"{path} does not exist; nothing is downloaded, so give a local file by --input."
        )
    if kind == "big_vision":
        return big_vision.describe(open_npz(path), options)
    file = find_safetensors(path)
    folder = path if path.is_dir() else path.parent
    if kind == "hf":
        return hugging_face.describe(file, folder, options)
    if kind != "timm":
        raise UserError(f"--format {kind} is not one of {', '.join(IMPORT_FORMATS)}.")
    hub: dict[str, Any] = {}
    # A bare file may lie beside the config.json of something else: then --model says that it is bare.
    if (folder / "config.json").is_file() and not options.model:
        hub = read_json(folder / "config.json")
    name = options.model or hub.get("architecture")
    if not isinstance(name, str):
        raise UserError(
            f"{path} does not say which timm model it is: add --model NAME, such as vit_base_patch16_224 or resnet50."
        )
    tag = (hub.get("pretrained_cfg") or {}).get("tag")
    name = f"{name}.{tag}" if tag and "." not in name else name
    is_resnet = name.partition(".")[0] in RESNETS
    return (resnet if is_resnet else timm_vit).describe(file, name, hub, options)


def _words(config: ModelConfig) -> str:
    height, width = config.image_hw
    return f"{config.variant} at {height}x{width}"


def _checked_names(names: list[str], classes: int, path: Path) -> list[str]:
    if len(names) != classes:
        raise UserError(
            f"{path} has a head of {classes} classes, but there are {len(names)} class names."
        )
    return [str(name) for name in names]


def _resized(model: Imported, image_size: int | tuple[int, int] | None) -> Imported:
    if image_size is None:
        return model
    config = dataclasses.replace(model.model, image_size=image_size)
    check_model(config)
    params = {n: np.asarray(a) for n, a in adapt(model.params, model.model, config).items()}
    return dataclasses.replace(model, model=config, params=params)


def parameter_count(model: Imported) -> int:
    return sum(int(np.prod(np.shape(value), dtype=np.int64)) for value in model.params.values())


def summary(model: Imported) -> str:
    """One line for the terminal: what was understood, for the reader to compare with the model card."""
    config = model.model
    rounded = [", ".join(f"{x:g}" for x in values) for values in (config.mean, config.std)]
    details = [_words(config), f"{parameter_count(model) / 1e6:.1f} M parameters"]
    if not is_cnn(config.variant):
        details += [
            f"pooling {config.pooling}",
            config.mlp,
            f"norm eps {config.norm_eps or 1e-6:g}",
        ]
    details += [f"mean {rounded[0]}", f"std {rounded[1]}"]
    crop = f" {config.eval_crop_fraction:g}" if config.eval_crop == "centre" else ""
    details += [f"evaluated on images that are {CROP_WORDS[config.eval_crop]}{crop}"]
    details += [
        f"head {task.name!r} of {len(model.classes[task.label_field])}" for task in model.tasks
    ]
    return "; ".join(details)
