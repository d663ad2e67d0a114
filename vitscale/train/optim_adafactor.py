"""Adafactor as Vision Transformers are trained with (Zhai et al., 2022, arXiv 2106.04560, section 3.4; big_vision).

Shazeer & Stern (2018, arXiv 1804.04235) keep of a matrix's second moment the means of its rows and columns only. The
ViT flavour adds momentum, caps the second moment's decay, and leaves out relative step sizes and update clipping.

`optax.scale_by_factored_rms` would choose the two largest dimensions, so that a stack of 32 or more layers is factored
along them and differs from the same layers by themselves, and it keeps a dummy array for every part that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vitscale.train.parameter_rules import matrix_axes

MIN_FACTORED_SIZE = 32  # both sides of a matrix; big_vision's choice, optax has 128
DECAY_EXPONENT = 0.8
EPS = 1e-30  # added to squared gradients
# The fields of the state whose arrays have one axis less than their parameter, and which.
REDUCED_AXIS = {"row": -1, "column": -2}


class AdafactorState(NamedTuple):
    """Second moments: `row` and `column` means of matrices that are factored, `full` arrays of everything else."""

    updates: Array  # [] int32: how many were done
    momentum: dict[str, Array]
    row: dict[str, Float[Array, "*L m"]]
    column: dict[str, Float[Array, "*L n"]]
    full: dict[str, Array]


def scale_by_adafactor(
    axes: Mapping[str, tuple[str, ...]], b1: float, b2_cap: float, momentum_dtype: str
) -> optax.GradientTransformation:
    """Average over time of g / sqrt(v), without bias correction; v decays by min(b2_cap, 1 - t^-0.8) at update t.

    Factored is what has at least 32 rows and columns in its last two axes, layers not counted: there
    v = row columnᵀ / mean(row). Second moments are float32.
    """
    momentum_type = jnp.dtype(momentum_dtype)

    def is_factored(name: str, param: Any) -> bool:
        is_matrix = len(matrix_axes(axes[name])) > 1
        return is_matrix and min(param.shape[-2:]) >= MIN_FACTORED_SIZE

    def init(params: Any) -> AdafactorState:
        factored = [name for name, param in params.items() if is_factored(name, param)]
        return AdafactorState(
            updates=jnp.zeros((), jnp.int32),
            momentum={n: jnp.zeros(p.shape, momentum_type) for n, p in params.items()},
            row={n: jnp.zeros(params[n].shape[:-1], jnp.float32) for n in factored},
            column={
                n: jnp.zeros((*params[n].shape[:-2], params[n].shape[-1]), jnp.float32)
                for n in factored
            },
            full={
                n: jnp.zeros(p.shape, jnp.float32) for n, p in params.items() if n not in factored
            },
        )

    def update(grads: Any, state: AdafactorState, params: Any = None) -> tuple[Any, AdafactorState]:
        del params
        updates = state.updates + 1
        decay = jnp.minimum(b2_cap, 1 - updates.astype(jnp.float32) ** -DECAY_EXPONENT)

        def average(old: Array, new: Array) -> Array:
            return decay * old + (1 - decay) * new

        scaled, row, column, full = {}, {}, {}, {}
        for name, grad in grads.items():
            squared = jnp.square(grad) + EPS
            if name in state.full:
                full[name] = average(state.full[name], squared)
                scaled[name] = grad * full[name] ** -0.5
            else:
                row[name] = average(state.row[name], squared.mean(REDUCED_AXIS["row"]))
                column[name] = average(state.column[name], squared.mean(REDUCED_AXIS["column"]))
                relative = row[name] / row[name].mean(axis=-1, keepdims=True)
                scaled[name] = (
                    grad * relative[..., :, None] ** -0.5 * column[name][..., None, :] ** -0.5
                )
        momentum = optax.tree.update_moment(scaled, state.momentum, b1, 1)
        kept = optax.tree.cast(momentum, momentum_type)
        return momentum, AdafactorState(updates, kept, row, column, full)

    return optax.GradientTransformation(init, update)
