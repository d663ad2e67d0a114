"""`vitscale convert export`: from a checkpoint to a file that other libraries load."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.config import ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.adapt import POSITIONS
from vitscale.models.convert import (
    big_vision,
    hugging_face,
    hugging_face_tensors,
    native,
    resnet,
    stablehlo,
    timm_vit,
)
from vitscale.models.convert.describe import Head, refuse
from vitscale.models.convert.files import write_json, write_npz, write_safetensors
from vitscale.models.convert.tensors import Arrays, TensorMap
from vitscale.models.layers import unstack_layers
from vitscale.models.positions import sincos2d
from vitscale.models.resnet import is_cnn
from vitscale.models.vit_shape import resolve_shape
from vitscale.models.weights import LoadedModel

logger = logging.getLogger(__name__)
LINEAR_KINDS = ("single_label", "multi_label")


def export_weights(kind: str, model: LoadedModel, output: Path, task: str | None = None) -> None:
    """Writes `output` in one of `formats.EXPORT_FORMATS`: a file for big_vision, else a folder.

    task: the head that timm, hf and big_vision files get ("none": no head); default: the only linear one.
    Raises `UserError` for an option of the model that the format has no place for.
    """
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"{output} exists already; take another --output.")
    if kind == "stablehlo":
        return stablehlo.export(model, output)
    params = {name: np.asarray(value) for name, value in model.params.items()}
    if kind == "safetensors":
        return native.write(output, model.model, model.tasks, model.classes, params)
    head, names = choose_head(model, task)
    params = _without_padding(params, head)
    if is_cnn(model.model.variant):
        return _export_cnn(kind, model.model, head, names, params, output)
    config, params = _explicit(kind, model.model, unstack_layers(params), head)
    if kind == "big_vision":
        big_vision.check_expressible(config)
        tensors = big_vision.tensors(config, head, big_vision.layout_for_export(config))
        write_npz(output, TensorMap(tuple(tensors)).to_tensors(params))
        logger.info(
            "an .npz does not hold the input normalisation: mean %s, std %s",
            config.mean,
            config.std,
        )
        return None
    if kind == "timm":
        timm_vit.check_expressible(config)
        tensors = timm_vit.vit_tensors(config, head)
        texts = {"config.json": timm_vit.hub_config(config, head, names)}
    else:
        hugging_face_tensors.check_expressible(config, head)
        if config.pooling == "map":
            tensors = hugging_face_tensors.siglip_tensors(config, "vision_model.")
        else:
            tensors = hugging_face_tensors.vit_tensors(config, head, "vit." if head else "")
        texts = hugging_face.folder_files(config, head, names)
    return _write_folder(output, TensorMap(tuple(tensors)).to_tensors(params), texts)


def choose_head(model: LoadedModel, task: str | None) -> tuple[Head | None, list[str] | None]:
    """The linear head to export and its class names; the others stay behind, with a word."""
    linear = {t.name: t for t in model.tasks if t.kind in LINEAR_KINDS}
    if task not in (None, "none", *linear):
        raise UserError(
            f"--task {task!r} is no linear head of {model.path}; those are {', '.join(linear) or 'none'}."
        )
    if task is None and len(linear) > 1:
        raise UserError(
            f"{model.path} has several linear heads: choose one by --task {'|'.join(linear)}, or --task none."
        )
    chosen: TaskConfig | None = None
    if task != "none":
        chosen = linear[task] if task else next(iter(linear.values()), None)
    left = [t.name for t in model.tasks if t is not chosen]
    if left:
        logger.info("left out the heads %s: the format has no place for them", ", ".join(left))
    if chosen is None:
        return None, None
    names = model.classes[chosen.label_field]
    return Head(f"heads/{chosen.name}/linear", len(names)), names


def _without_padding(params: Arrays, head: Head | None) -> Arrays:
    """The head cut to its classes: with a sharded loss it is stored with more (`heads.stored_classes`)."""
    if head is None:
        return params
    mine = {n: a[..., : head.classes] for n, a in params.items() if n.startswith(head.prefix + "/")}
    return {**params, **mine}


def _explicit(
    kind: str, config: ModelConfig, params: Arrays, head: Head | None
) -> tuple[ModelConfig, Arrays]:
    """The same function with what a format takes for granted spelt out: zeros for biases and positions that we leave
    out, and the sine-cosine table as a learned one."""
    params = dict(params)
    shape = resolve_shape(config)
    width = shape.size.width
    if head and f"{head.prefix}/bias" not in params:
        params[f"{head.prefix}/bias"] = np.zeros(head.classes, np.float32)
    if config.position_embedding == "sincos2d" and kind != "big_vision":
        params[POSITIONS] = sincos2d(shape.grid, width)
        config = dataclasses.replace(config, position_embedding="learned")
    if (
        kind == "hf"
        and config.pooling == "cls"
        and shape.prefix == 1
        and not config.prefix_position
    ):
        params["backbone/prefix_position"] = np.zeros((1, width), np.float32)
        config = dataclasses.replace(config, prefix_position=True)
    return config, params


def _export_cnn(
    kind: str,
    config: ModelConfig,
    head: Head | None,
    names: list[str] | None,
    params: Arrays,
    output: Path,
) -> None:
    if kind != "timm":
        refuse(kind, {f"the CNN {config.variant}": True})
    resnet.check_expressible(config)
    if head and f"{head.prefix}/bias" not in params:
        params[f"{head.prefix}/bias"] = np.zeros(head.classes, np.float32)
    tensors = resnet.ResNetMap(config, head).to_tensors(params)
    _write_folder(output, tensors, {"config.json": resnet.hub_config(config, head, names)})


def _write_folder(output: Path, tensors: Arrays, texts: dict[str, dict[str, Any]]) -> None:
    write_safetensors(output / "model.safetensors", tensors)
    for name, tree in texts.items():
        write_json(output / name, tree)
