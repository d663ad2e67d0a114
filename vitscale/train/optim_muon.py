"""Muon: momentum whose matrices are made orthogonal (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

optax 0.2.8 has it in `optax.contrib`, but keeps the iteration's coefficients in the state, so that a checkpoint would
bring old ones back, and transposes and flattens stacked kernels, which a sharded axis does not survive for free.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steepest at 0, so few iterations do
ITERATIONS = 5
# Far below any gradient's norm, and large enough that values whose squares vanish in float32 stay small when divided.
EPS = 1e-12
ADAM_RMS = 0.2  # of AdamW's updates, as Moonlight measured it


class MuonState(NamedTuple):
    """Of every matrix its momentum."""

    momentum: dict[str, Any]


def scale_by_muon(b1: float, momentum_dtype: str) -> optax.GradientTransformation:
    """Nesterov momentum of `[..., m, n]` arrays, each matrix of them orthogonalised and brought to Adam's size.

    momentum = b1 momentum + (1 - b1) g; direction = 0.2 sqrt(max(m, n)) orthogonalise(b1 momentum + (1 - b1) g).

    An orthogonal matrix has an RMS of 1 / sqrt(max(m, n)), and AdamW's updates one of 0.2 to 0.4: with this factor
    learning rate and weight decay carry over from AdamW (Moonlight: Liu et al., 2025, arXiv 2502.16982, section 2.2).
    """

    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params, dtype=jnp.dtype(momentum_dtype)))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        momentum = optax.tree.update_moment(grads, state.momentum, b1, 1)
        ahead = optax.tree.update_moment(grads, momentum, b1, 1)
        updates = jax.tree.map(_direction, ahead)
        return updates, MuonState(optax.tree.cast(momentum, jnp.dtype(momentum_dtype)))

    return optax.GradientTransformation(init, update)


def _direction(momentum: Float[Array, "*L m n"]) -> Float[Array, "*L m n"]:
    return ADAM_RMS * max(momentum.shape[-2:]) ** 0.5 * orthogonalise(momentum)


def orthogonalise(x: Float[Array, "*L m n"]) -> Float[Array, "*L m n"]:
    """U S' Vᵀ for each matrix x = U S Vᵀ, with S' about 0.7 to 1.2 instead of S; zero for a zero matrix.

    Five Newton-Schulz iterations x ← a x + (b A + c A²) x, A = x xᵀ, from x / |x| (Frobenius). For a tall matrix the
    same with A = xᵀ x on the right: always the smaller product.
    """
    a, b, c = COEFFICIENTS
    is_tall = x.shape[-2] > x.shape[-1]
    x = x / (jnp.sqrt(jnp.square(x).sum(axis=(-2, -1), keepdims=True)) + EPS)
    for _ in range(ITERATIONS):
        gram = x.mT @ x if is_tall else x @ x.mT
        polynomial = b * gram + c * (gram @ gram)
        x = a * x + (x @ polynomial if is_tall else polynomial @ x)
    return x
