"""Device side, inside jit: what turns a uint8 batch into the network's input. Pure functions,
elementwise over the batch.

Random choices are keyed by each example's draw number, never by its row or its device, so that the
result is the same for every sharding of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8, UInt32


def normalise(
    images: UInt8[Array, "B H W 3"],
    compute_dtype: DTypeLike = jnp.float32,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Float[Array, "B H W 3"]:
    """(x / 255 - mean) / std by channel, computed in float32 and cast to `compute_dtype` at the end.

    The default maps 0..255 to [-1, 1].
    """
    deviation = np.asarray(std, np.float64)
    scale = jnp.asarray(1 / (255.0 * deviation), jnp.float32)
    shift = jnp.asarray(np.asarray(mean, np.float64) / deviation, jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(compute_dtype)


def random_flip(
    images: UInt8[Array, "B H W 3"], position: UInt32[Array, " B"], *, seed: int
) -> UInt8[Array, "B H W 3"]:
    """Mirrors each image left to right with probability 1/2, decided by `fold_in(key(seed),
    position)`."""
    key = jax.random.key(seed)
    mirror = jax.vmap(lambda p: jax.random.bernoulli(jax.random.fold_in(key, p)))(position)
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def augment(
    images: UInt8[Array, "B H W 3"],
    position: UInt32[Array, " B"],
    *,
    seed: int,
    flip: bool,
    compute_dtype: DTypeLike = jnp.float32,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Float[Array, "B H W 3"]:
    """The training augmentation on the device: an optional random flip, then `normalise`.

    Args:
        images: the host's crops. position: global draw number of each example (`Batch.position`).
            seed: of the run. flip: mirror half of the images; off for evaluation and for classes
            that tell left from right. compute_dtype: of the result. mean, std: see `normalise`.
    """
    if flip:
        images = random_flip(images, position, seed=seed)
    return normalise(images, compute_dtype, mean, std)
