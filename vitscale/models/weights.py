"""Reading a trained model back: from a workdir or one checkpoint to a function of images.

A checkpoint is the folder `<workdir>/checkpoints/<step>/`, written by `vitscale.train.checkpoint` with three items:
`params` (this module reads it), `train` (optimiser state, step) and `meta` (JSON: model, tasks, classes, config, data
position). A converted checkpoint (`write_model`) has no `train`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt8

from vitscale.config import ModelConfig, TaskConfig
from vitscale.config_loading import from_mapping, to_json
from vitscale.data.augment import normalise
from vitscale.errors import UserError
from vitscale.models.multitask import ModelDefinition, Params, define_model

CHECKPOINTS = "checkpoints"
PARAMS_ITEM, TRAIN_ITEM, META_ITEM = "params", "train", "meta"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters, ready for inference."""

    model: ModelConfig
    tasks: tuple[TaskConfig, ...]
    classes: dict[str, list[str]]  # label field -> class names
    step: int
    path: Path
    definition: ModelDefinition
    params: Params

    def apply(self, params: Params, images: UInt8[Array, "B H W 3"]) -> dict[str, Array]:
        """`{"pooled": [B, D], <task>: ...}` in float32 from uint8 images. Pure: jit it.

        Embedding tasks give L2-normalised vectors `[B, E]`, classification tasks logits `[B, C]`, ordinal tasks
        log-probabilities `[B, C]`.
        """
        inputs = normalise(images, self.model.compute_dtype, self.model.mean, self.model.std)
        return self.definition.merge(params)(inputs)


def load_model(checkpoint: Path) -> LoadedModel:
    """Reads the newest step of a workdir, or the step that the path names. Raises `UserError` when there is none."""
    step_folder = find_step(Path(checkpoint))
    meta = read_meta(step_folder)
    saved, tasks = read_description(meta)
    # How the training machine computed it need not work here; what is computed is the same.
    model = dataclasses.replace(saved, attention="auto", remat="none")
    definition = define_model(model, tasks, meta["classes"])
    params = read_params(step_folder, definition.variable_shapes())
    return LoadedModel(model, tasks, meta["classes"], meta["step"], step_folder, definition, params)


def random_model(
    model: ModelConfig,
    tasks: Sequence[TaskConfig],
    classes: Mapping[str, Sequence[str]],
    seed: int = 0,
) -> LoadedModel:
    """The same model untrained: the floor of every comparison."""
    plain = {name: list(names) for name, names in classes.items()}
    definition = define_model(model, tasks, plain)
    params = jax.jit(definition.init)(seed)
    return LoadedModel(model, tuple(tasks), plain, 0, Path("random"), definition, params)


def write_model(
    workdir: Path,
    model: ModelConfig,
    tasks: Sequence[TaskConfig],
    classes: Mapping[str, Sequence[str]],
    params: Mapping[str, Any],
) -> Path:
    """Writes variables from elsewhere as `<workdir>/checkpoints/0`, which `load_model` and `init.checkpoint` read."""
    folder = (workdir / CHECKPOINTS / "0").absolute()
    if has_step(workdir):
        raise UserError(f"{workdir} holds checkpoints already; take another output folder.")
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    items = {
        PARAMS_ITEM: ocp.args.StandardSave(arrays),
        META_ITEM: ocp.args.JsonSave(describe(0, model, tasks, classes)),
    }
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, ocp.args.Composite(**items))
    return folder


def describe(
    step: int,
    model: ModelConfig,
    tasks: Sequence[TaskConfig],
    classes: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What a reader needs besides the arrays, as JSON values."""
    return {
        "step": step,
        "model": json.loads(to_json(model)),
        "tasks": [json.loads(to_json(task)) for task in tasks],
        "classes": {name: list(names) for name, names in classes.items()},
    }


def read_description(meta: Mapping[str, Any]) -> tuple[ModelConfig, tuple[TaskConfig, ...]]:
    """The inverse of `describe`."""
    tasks = tuple(from_mapping(TaskConfig, task) for task in meta["tasks"])
    return from_mapping(ModelConfig, meta["model"]), tasks


def find_step(path: Path) -> Path:
    """The folder of the newest complete step below `path`, which is a workdir, its checkpoints, or a step itself."""
    if (path / META_ITEM).is_dir():
        return path
    for folder in (path / CHECKPOINTS, path):
        # Orbax renames a step to its number only when it is complete.
        steps = [p for p in folder.glob("*") if p.name.isdigit() and (p / META_ITEM).is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise UserError(
        f"no finished checkpoint in {path}: give the workdir of a `vitscale train` run that has saved, or one step "
        f"such as WORKDIR/{CHECKPOINTS}/1000."
    )


def has_step(workdir: Path) -> bool:
    """Whether a workdir holds a finished checkpoint."""
    try:
        find_step(workdir)
    except UserError:
        return False
    return True


def read_meta(step_folder: Path) -> dict[str, Any]:
    return json.loads((step_folder / META_ITEM / "metadata").read_text())


def read_params(step_folder: Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """The parameters named in `shapes`, on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device) for n, s in shapes.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((step_folder / PARAMS_ITEM).absolute(), target)
