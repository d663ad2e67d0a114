"""Our own portable files, importable again exactly: `model.safetensors` under our names, and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.config import ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.convert.files import (
    find_safetensors,
    read_json,
    reading,
    write_json,
    write_safetensors,
)
from vitscale.models.convert.tensors import check_shapes
from vitscale.models.multitask import define_model
from vitscale.models.weights import describe, read_description

FORMAT = "vitscale"
VERSION = 1


def write(
    folder: Path,
    model: ModelConfig,
    tasks: tuple[TaskConfig, ...],
    classes: Mapping[str, list[str]],
    params: Mapping[str, np.ndarray],
) -> None:
    write_safetensors(folder / "model.safetensors", params)
    write_json(
        folder / "config.json",
        {"format": FORMAT, "version": VERSION, **describe(0, model, tasks, classes)},
    )


def read(
    path: Path,
) -> tuple[ModelConfig, tuple[TaskConfig, ...], dict[str, list[str]], dict[str, np.ndarray]]:
    """Model, tasks, classes and float32 variables. `path`: the folder, or the file beside its `config.json`."""
    folder = path if path.is_dir() else path.parent
    tree = read_json(folder / "config.json")
    if tree.get("format") != FORMAT or tree.get("version") != VERSION:
        raise UserError(
            f"{folder}/config.json is not of `vitscale convert export --format safetensors`; "
            "--format timm and --format hf read other folders."
        )
    with reading(folder / "config.json"):
        model, tasks = read_description(tree)
        classes = _classes(tree["classes"])
        definition = define_model(model, tasks, classes)
    file = find_safetensors(path)
    expected = {name: tuple(s.shape) for name, s in definition.variable_shapes().items()}
    check_shapes(file.shapes, expected, str(file.path))
    return model, tasks, classes, {name: file.read(name) for name in expected}


def _classes(tree: Any) -> dict[str, list[str]]:
    if not isinstance(tree, dict) or not all(isinstance(names, list) for names in tree.values()):
        raise ValueError("'classes' must map label fields to lists of names")
    return {str(field): [str(name) for name in names] for field, names in tree.items()}
