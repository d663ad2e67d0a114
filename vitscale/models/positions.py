"""Position embeddings that are not learned: 2-D sine-cosine, and rotations of queries and keys."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitscale.errors import UserError


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-D sine-cosine position embedding `[rows * columns, width] float32` (MoCo v3, Chen et al., 2021)."""
    if width % 4:
        raise UserError(f"sincos2d needs a width that divides by 4, not {width}.")
    y, x = np.mgrid[: grid[0], : grid[1]].astype(np.float64)
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1 or 1))
    y, x = np.outer(y.ravel(), omega), np.outer(x.ravel(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def rope2d(
    grid: tuple[int, int], prefix: int, head_dim: int, temperature: float = 100.0
) -> np.ndarray:
    """Cosines and sines `[2, prefix + rows * columns, head_dim / 2] float32` of axial rotations.

    Heo et al., 2024 (arXiv 2403.13298), section 3.2: half of the channel pairs turn with the column, half with the
    row, at frequencies temperature^(-t / (head_dim / 4)). Prefix tokens (cls, registers) do not turn.
    """
    if head_dim % 4:
        raise UserError(f"rope2d needs width / num_heads to divide by 4, not {head_dim}.")
    y, x = np.mgrid[: grid[0], : grid[1]].astype(np.float64)
    frequency = temperature ** (-np.arange(head_dim // 4) / (head_dim // 4))
    angles = np.concatenate(
        [np.outer(x.ravel(), frequency), np.outer(y.ravel(), frequency)], axis=1
    )
    angles = np.concatenate([np.zeros((prefix, head_dim // 2)), angles])
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(x: Float[Array, "B N H d"], table: Float[Array, "2 *B N e"]) -> Float[Array, "B N H d"]:
    """Turns the channel pairs (2t, 2t + 1) of every token by its angles, in float32."""
    cosine, sine = table[0][..., None, :], table[1][..., None, :]  # over heads
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
