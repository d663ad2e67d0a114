"""Backbone + heads, and the functional view of it: one flat dict of named arrays in, outputs by task out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitscale.config import ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.heads import create_head
from vitscale.models.vit import ViT

Params = dict[str, Array]
POOLED = "pooled"


class MultiTaskModel(nnx.Module):
    """One backbone, one head a task. Images are `[B, H, W, 3]`, already normalised."""

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[TaskConfig],
        num_classes: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone = ViT(config, rngs=rngs)
        width = self.backbone.norm.num_features
        dtype = jnp.dtype(config.compute_dtype)
        self.heads = nnx.Dict(
            {t.name: create_head(t, width, num_classes[t.label_field], dtype, rngs) for t in tasks}
        )

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Array]:
        """`{"pooled": [B, D] float32, <task>: its head's output}`."""
        pooled = self.backbone(images).pooled
        outputs = {name: head(pooled) for name, head in self.heads.items()}
        return {POOLED: pooled.astype(jnp.float32), **outputs}

    def logits(self, outputs: Mapping[str, Array]) -> dict[str, Float[Array, "B C"]]:
        """Training logits of every task from the outputs."""
        return {name: head.logits(outputs[name]) for name, head in self.heads.items()}


@dataclass(frozen=True)
class ModelDefinition:
    """A model without its arrays: everything a jitted function needs besides the plain dict of parameters.

    Parameters are a flat dict from a name such as `backbone/blocks/0/attention/query/kernel` to a float32 array.
    """

    config: ModelConfig
    tasks: tuple[TaskConfig, ...]
    num_classes: Mapping[str, int]  # label field -> number of classes

    def init(self, seed: int | Array) -> Params:
        """Fresh parameters. Pure and jit-able, so that they can be created already sharded."""
        return _flatten(nnx.split(self._create(seed), nnx.Param)[1])

    def merge(self, params: Params) -> MultiTaskModel:
        """The module with these parameters in it (inside a jitted function: costs nothing at run time)."""
        graphdef, state = self._abstract()
        flat = [
            (path, var.replace(params["/".join(map(str, path))])) for path, var in _items(state)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter."""
        return _flatten(self._abstract()[1])

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Logical axis names of every parameter."""
        named: dict[str, tuple[str, ...]] = {}
        for path, variable in _items(self._abstract()[1]):
            axes, shape = variable.get_metadata().get("axes"), variable.get_value().shape
            if axes is None or len(axes) != len(shape):
                raise ValueError(
                    f"parameter {path} {shape} does not say what its axes mean: {axes}"
                )
            named["/".join(map(str, path))] = axes
        return named

    def _create(self, seed: int | Array) -> MultiTaskModel:
        rngs = nnx.Rngs(jax.random.key(seed))
        return MultiTaskModel(self.config, self.tasks, self.num_classes, rngs=rngs)

    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: self._create(0)), nnx.Param)


def define_model(
    config: ModelConfig, tasks: Sequence[TaskConfig], classes: Mapping[str, Sequence[str]]
) -> ModelDefinition:
    """Checks that every task's label field has classes, then the definition."""
    for task in tasks:
        if not classes.get(task.label_field):
            have = ", ".join(sorted(classes)) or "none at all"
            raise UserError(
                f"task {task.name!r} reads the label field {task.label_field!r}, but no source has labels for it; "
                f"the sources have: {have}."
            )
    return ModelDefinition(
        config, tuple(tasks), {name: len(names) for name, names in classes.items()}
    )


def _items(state: nnx.State) -> list[tuple[tuple, nnx.Variable]]:
    return list(nnx.to_flat_state(state))


def _flatten(state: nnx.State) -> dict:
    return {"/".join(map(str, path)): variable.get_value() for path, variable in _items(state)}
