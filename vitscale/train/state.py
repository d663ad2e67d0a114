"""The training state, and its shapes and shardings before a single array exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from vitscale.models.multitask import ModelDefinition
from vitscale.parallel.mesh import replicated
from vitscale.parallel.rules import parameter_shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes; the same tree holds arrays, their shapes, or their shardings.

    Randomness is a function of (seed, example) or (seed, step), so there is no RNG to keep.
    """

    step: Any  # [] int32: steps done
    params: dict[str, Any]  # float32 masters
    statistics: dict[str, Any]  # running statistics of BatchNorm, float32; empty without it
    opt_state: Any


def init_state(
    definition: ModelDefinition, optimizer: optax.GradientTransformation, seed: int | Array
) -> TrainState:
    """A fresh state. Pure: jit it with `out_shardings` and it is born sharded."""
    variables = definition.init(seed)
    params = {name: variables[name] for name in definition.shapes()}
    statistics = {name: variables[name] for name in definition.statistics_shapes()}
    return TrainState(jnp.zeros((), jnp.int32), params, statistics, optimizer.init(params))


def abstract_state(
    definition: ModelDefinition, optimizer: optax.GradientTransformation
) -> TrainState:
    return jax.eval_shape(lambda: init_state(definition, optimizer, 0))


def state_shardings(
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    layout: str,
) -> TrainState:
    """A `TrainState` of `NamedSharding`s: moments lie where their parameter lies, scalars everywhere."""
    shapes = definition.shapes()
    params = parameter_shardings(mesh, shapes, definition.axes(), layout)
    everywhere = replicated(mesh)
    abstract = abstract_state(definition, optimizer)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: everywhere,
        is_leaf=lambda x: isinstance(x, NamedSharding),
    )
    statistics = {name: everywhere for name in definition.statistics_shapes()}
    return TrainState(everywhere, params, statistics, opt_state)
