"""MixUp (Zhang et al., 2018, arXiv 1710.09412) and CutMix (Yun et al., 2019, arXiv 1905.04899) inside jit, by pairs.

Rows 2i and 2i + 1 of the global batch are a pair, and each receives a part of the other. Both lie on one device, so
that nothing crosses devices and every sharding gives the same result. A pair is mixed only when both rows train the
same tasks: then each row's target is the same mixture of both rows' targets as its pixels are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from scipy import special

from vitscale.config import AugmentConfig

DRAWS = 5  # uniforms a pair: whether to mix, which way, how much, centre of the cut (y, x)
QUANTILES = 4096


class Mixes(NamedTuple):
    """How much of itself each row keeps."""

    shares: Float[Array, "B 2"]  # of the row's own labels and of its partner's; their sum is 1
    pixels: Float[Array, "B H W 1"]  # share of the row's own pixel


def draw_mixes(
    draws: Float[Array, "P 5"],
    mixable: Bool[Array, " B"],
    size: tuple[int, int],
    config: AugmentConfig,
) -> Mixes:
    """The mixture of each of P = B / 2 pairs.

    Args:
        draws: uniforms in [0, 1).
        mixable: whether a row may be mixed with its partner: the same for both rows of a pair.
        size: (height, width) of the images.
    """
    pixels, share = jnp.ones((draws.shape[0], *size)), jnp.ones(draws.shape[0])
    if config.mixup_alpha > 0:
        share = _beta(draws[:, 2], config.mixup_alpha)
        pixels = jnp.broadcast_to(share[:, None, None], pixels.shape)
    if config.cutmix_alpha > 0:
        cut = draws[:, 1] < (0.5 if config.mixup_alpha > 0 else 1.0)
        kept = _outside_of_cut(draws[:, 2:], size, config.cutmix_alpha)
        pixels = jnp.where(cut[:, None, None], kept, pixels)
        share = jnp.where(cut, kept.mean(axis=(1, 2)), share)
    mixed = (draws[:, 0] < config.mix_probability) & mixable[::2]
    share = jnp.where(mixed, share, 1.0)
    pixels = jnp.where(mixed[:, None, None], pixels, 1.0)
    rows = jnp.repeat(share, 2)
    return Mixes(jnp.stack([rows, 1 - rows], axis=1), jnp.repeat(pixels, 2, axis=0)[..., None])


def _beta(uniform: Float[Array, " P"], alpha: float) -> Float[Array, " P"]:
    """Beta(alpha, alpha) by its quantiles: a rejection sampler's loop would ask all devices whether they are done."""
    table = jnp.asarray(_beta_quantiles(alpha))
    return table[jnp.minimum((uniform * QUANTILES).astype(jnp.int32), QUANTILES - 1)]


@functools.cache
def _beta_quantiles(alpha: float) -> np.ndarray:
    """The middles of `QUANTILES` equally likely ranges, float32."""
    return special.betaincinv(alpha, alpha, (np.arange(QUANTILES) + 0.5) / QUANTILES).astype(
        np.float32
    )


def _outside_of_cut(
    draws: Float[Array, "P 3"], size: tuple[int, int], alpha: float
) -> Float[Array, "P H W"]:
    """1 outside and 0 inside a rectangle in the image's proportions, its area drawn, its centre anywhere."""
    side = jnp.sqrt(1 - _beta(draws[:, 0], alpha))
    inside = jnp.ones((draws.shape[0], 1, 1), bool)
    for axis, length in enumerate(size):
        centre = jnp.floor(draws[:, 1 + axis] * length)
        half = jnp.floor(side * length) / 2
        start, stop = jnp.round(centre - half), jnp.round(centre + half)
        places = jnp.arange(length)
        along = (places >= start[:, None]) & (places < stop[:, None])
        inside &= jnp.expand_dims(along, 2 - axis)
    return 1.0 - inside


def mixable_pairs(
    valid: Bool[Array, " B"], task_mask: Mapping[str, Bool[Array, " B"]]
) -> Bool[Array, " B"]:
    """Whether both rows of each row's pair are valid and train the same tasks."""
    both = valid & swap(valid)
    for mask in task_mask.values():
        both &= mask == swap(mask)
    return both


def mix_images(
    images: UInt8[Array, "B H W 3"], pixels: Float[Array, "B H W 1"]
) -> Float[Array, "B H W 3"]:
    """Each row's own share of every pixel, and its partner's for the rest; exact where the share is 0 or 1."""
    own = images.astype(jnp.float32)
    return pixels * own + (1 - pixels) * swap(images).astype(jnp.float32)


def with_partners(labels: Int[Array, "B K"]) -> Int[Array, "B 2*K"]:
    """The label slots (ids or weights) of each row, then those of its partner."""
    return jnp.concatenate([labels, swap(labels)], axis=1)


def swap(rows: Array) -> Array:
    """Rows 2i and 2i + 1 exchanged."""
    pairs = rows.reshape(rows.shape[0] // 2, 2, *rows.shape[1:])
    return jax.lax.rev(pairs, (1,)).reshape(rows.shape)
