"""Position tables and patch kernels at another resolution, as small fixed matrices along each image axis."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@cache
def resize_matrix(old: int, new: int) -> np.ndarray:
    """Antialiased bicubic resampling of `old` samples to `new`, as a matrix `[new, old] float32`.

    Keys' kernel with a = -0.5, stretched by old / new when it shrinks: what PIL, `jax.image.resize` and torch's
    `antialias=True` compute.
    """
    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(
            jax.image.resize(jnp.eye(old), (new, old), method="bicubic", antialias=True)
        )


@cache
def pseudo_inverse(old: int, new: int) -> np.ndarray:
    """pinv(Rᵀ) `[new, old] float32` of the resampling R = `resize_matrix(old, new)`."""
    return np.linalg.pinv(resize_matrix(old, new).astype(np.float64).T).astype(np.float32)


def resize_position_embedding(
    table: Float[Array, "N D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "M D"]:
    """A table of one row a patch on a grid of `old` (rows, columns), resampled to the grid `new`."""
    if old == new:
        return table
    return _along_axes(table, old, resize_matrix(old[0], new[0]), resize_matrix(old[1], new[1]))


def resize_patch_kernel(
    kernel: Float[Array, "P D"], old_patch: int, new_patch: int
) -> Float[Array, "Q D"]:
    """The patch embedding for another patch size, rows (y, x, channel) (FlexiViT, arXiv 2212.08013, section 3.4).

    The kernel whose product with a resized patch is the old kernel's product with the patch itself, exactly when
    patches grow and in the least-squares sense when they shrink.
    """
    if old_patch == new_patch:
        return kernel
    inverse = pseudo_inverse(old_patch, new_patch)
    channels = kernel.shape[0] // old_patch**2
    flat = kernel.reshape(old_patch**2, channels * kernel.shape[1])
    return _along_axes(flat, (old_patch, old_patch), inverse, inverse).reshape(
        new_patch**2 * channels, kernel.shape[1]
    )


def _along_axes(
    table: Float[Array, "N D"], grid: tuple[int, int], rows: np.ndarray, columns: np.ndarray
) -> Float[Array, "M D"]:
    values = table.reshape(*grid, table.shape[-1])
    precise = jax.lax.Precision.HIGHEST  # TPUs would round the weights to bfloat16
    values = jnp.einsum("yh,hwd,xw->yxd", rows, values, columns, precision=precise)
    return values.reshape(-1, table.shape[-1])
