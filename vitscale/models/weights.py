"""Reading a trained model back: from a workdir or one checkpoint to a function of images.

A checkpoint is the folder `<workdir>/checkpoints/<step>/`, written by `vitscale.train.checkpoint` with three items:
`params` (this module reads it), `train` (optimiser state, step) and `meta` (JSON: config, classes, data position).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt8

from vitscale.config import TrainConfig
from vitscale.config_loading import from_mapping
from vitscale.data.augment import normalise
from vitscale.errors import UserError
from vitscale.models.multitask import ModelDefinition, Params, define_model

CHECKPOINTS = "checkpoints"
PARAMS_ITEM, TRAIN_ITEM, META_ITEM = "params", "train", "meta"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters, ready for inference."""

    config: TrainConfig
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
        return self.definition.merge(params)(normalise(images, self.config.model.compute_dtype))


def load_model(checkpoint: Path) -> LoadedModel:
    """Reads the newest step of a workdir, or the step that the path names. Raises `UserError` when there is none."""
    step_folder = find_step(Path(checkpoint))
    meta = read_meta(step_folder)
    config = from_mapping(TrainConfig, meta["config"])
    definition = define_model(config.model, config.tasks, meta["classes"])
    params = read_params(step_folder, definition.shapes())
    return LoadedModel(config, meta["classes"], meta["step"], step_folder, definition, params)


def random_model(
    config: TrainConfig, classes: Mapping[str, Sequence[str]], seed: int = 0
) -> LoadedModel:
    """The same model untrained: the floor of every comparison."""
    plain = {name: list(names) for name, names in classes.items()}
    definition = define_model(config.model, config.tasks, plain)
    params = jax.jit(definition.init)(seed)
    return LoadedModel(config, plain, 0, Path("random"), definition, params)


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
