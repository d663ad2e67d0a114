"""Device side, inside jit: what turns a uint8 batch into the network's input. Pure functions, elementwise over the
batch (over pairs of rows where images are mixed).

Random choices are keyed by each example's draw number (`Batch.position`), never by its row or its device. The draw
number says which example it is and which step it belongs to, so that an example that comes again is changed in another
way, and the result is the same for every sharding of the batch and after every restart. What a config switches off is
not in the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8, UInt32

from vitscale.config import AugmentConfig
from vitscale.data import augment_ops as ops
from vitscale.data import mixing
from vitscale.data.rand_augment import DRAWS_PER_LAYER, rand_augment

Images = UInt8[Array, "B H W 3"]
Positions = UInt32[Array, " B"]

# Of an example's draws. Far from small numbers: the model's key of step s is fold_in(fold_in(key(seed), 1), s).
JITTER_STREAM, RAND_AUGMENT_STREAM, ERASING_STREAM, MIXING_STREAM = range(2**30, 2**30 + 4)

# Zhong et al., 2020: share of the image's area, and height / width.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def augment_batch(
    batch: Mapping[str, Any],
    config: AugmentConfig,
    *,
    seed: int,
    size: tuple[int, int] | None = None,
    compute_dtype: DTypeLike = jnp.float32,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> dict[str, Any]:
    """A training batch as the network sees it: `vitscale.data.loader.Batch.arrays` with the image normalised.

    Where images are mixed, every field's `labels` and `weights` have twice the slots, `[B, 2K]` (own, then the
    partner's), and `shares [B, 2]` says what each half counts (`vitscale.train.tasks.label_targets`).

    Args:
        seed: of the run.
        size: (height, width) to train at; default: the batch's own.
        compute_dtype, mean, std: see `normalise`.
    """
    position = batch["position"]
    fill = np.clip(np.round(255 * np.asarray(mean)), 0, 255).astype(np.uint8)
    images = batch["image"]
    if size is not None:
        images = resize(images, size)
    images = augment(images, position, config, seed=seed, fill=fill)
    if not config.mixes:
        return {**batch, "image": normalise(images, compute_dtype, mean, std)}
    draws = uniforms(position[::2], mixing.DRAWS, seed=seed, stream=MIXING_STREAM)
    mixable = mixing.mixable_pairs(batch["valid"], batch["task_mask"])
    mixes = mixing.draw_mixes(draws, mixable, (images.shape[1], images.shape[2]), config)
    mixed = mixing.mix_images(images, mixes.pixels)
    return {
        **batch,
        "image": normalise(mixed, compute_dtype, mean, std),
        "labels": {name: mixing.with_partners(x) for name, x in batch["labels"].items()},
        "weights": {name: mixing.with_partners(x) for name, x in batch["weights"].items()},
        "shares": mixes.shares,
    }


def augment(
    images: Images,
    position: Positions,
    config: AugmentConfig,
    *,
    seed: int,
    fill: UInt8[np.ndarray, " 3"],
) -> Images:
    """Flip → colour jitter → RandAugment → random erasing, of each image by itself.

    Args:
        position: global draw number of each example. seed: of the run. fill: colour of what is erased or uncovered.
    """
    colour = jnp.asarray(fill)
    if config.flip:
        images = random_flip(images, position, seed=seed)
    images = colour_jitter(images, position, config, seed=seed)
    if config.rand_augment_layers:
        count = DRAWS_PER_LAYER * config.rand_augment_layers
        draws = uniforms(position, count, seed=seed, stream=RAND_AUGMENT_STREAM)
        images = rand_augment(images, draws, config.rand_augment_magnitude, colour)
    if config.random_erasing:
        draws = uniforms(position, 5, seed=seed, stream=ERASING_STREAM)
        images = random_erasing(images, draws, config.random_erasing, colour)
    return images


def normalise(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
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


def resize(images: Images, size: tuple[int, int]) -> UInt8[Array, "B h w 3"]:
    """Antialiased bilinear, the filter that the host resizes with; the images themselves when they have this size."""
    if images.shape[1:3] == tuple(size):
        return images
    shape = (images.shape[0], *size, 3)
    small = jax.image.resize(images.astype(jnp.float32), shape, method="linear", antialias=True)
    return jnp.clip(jnp.round(small), 0, 255).astype(jnp.uint8)


def random_flip(images: Images, position: Positions, *, seed: int) -> Images:
    """Mirrors each image left to right with probability 1/2, decided by `fold_in(key(seed),
    position)`."""
    key = jax.random.key(seed)
    mirror = jax.vmap(lambda p: jax.random.bernoulli(jax.random.fold_in(key, p)))(position)
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def colour_jitter(
    images: Images, position: Positions, config: AugmentConfig, *, seed: int
) -> Images:
    """Brightness, contrast, saturation and hue, in this order, each by a factor from 1 - x .. 1 + x (hue: -x .. x)."""
    limits = (config.brightness, config.contrast, config.saturation, config.hue)
    if not any(limits):
        return images
    draws = 2 * uniforms(position, len(limits), seed=seed, stream=JITTER_STREAM) - 1
    if config.brightness:
        images = ops.brightness(images, 1 + config.brightness * draws[:, 0])
    if config.contrast:
        images = ops.contrast(images, 1 + config.contrast * draws[:, 1], ops.mean_grey(images))
    if config.saturation:
        images = ops.saturation(images, 1 + config.saturation * draws[:, 2])
    if config.hue:
        images = ops.shift_hue(images, config.hue * draws[:, 3])
    return images


def random_erasing(
    images: Images, draws: Float[Array, "B 5"], probability: float, fill: UInt8[Array, " 3"]
) -> Images:
    """One rectangle of each image, with this probability, becomes `fill` (Zhong et al., 2020, arXiv 1708.04896).

    Area and aspect ratio are the paper's; a side that would not fit is cut to the image's, where the paper draws again.
    draws: uniforms in [0, 1): whether, area, aspect ratio, place (y, x).
    """
    height, width = images.shape[1:3]
    area = height * width * _between(*ERASED_AREA, draws[:, 1])
    aspect = jnp.exp(_between(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1]), draws[:, 2]))
    erased = (draws[:, 0] < probability)[:, None, None]
    sides = (jnp.sqrt(area * aspect), jnp.sqrt(area / aspect))
    for axis, (length, side) in enumerate(zip((height, width), sides, strict=True)):
        extent = jnp.clip(jnp.round(side), 1, length)
        start = jnp.floor(draws[:, 3 + axis] * (length - extent + 1))
        places = jnp.arange(length)
        along = (places >= start[:, None]) & (places < (start + extent)[:, None])
        erased = erased & jnp.expand_dims(along, 2 - axis)
    return jnp.where(erased[..., None], fill, images)


def uniforms(position: Positions, count: int, *, seed: int, stream: int) -> Float[Array, "B n"]:
    """`count` numbers in [0, 1) for each draw number, of one stream."""

    def of_one(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), stream)
        return jax.random.uniform(key, (count,))

    return jax.vmap(of_one)(position)


def _between(low: float, high: float, uniform: Float[Array, " B"]) -> Float[Array, " B"]:
    return low + (high - low) * uniform
