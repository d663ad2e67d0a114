"""Image operations inside jit, on uint8 batches, each with one strength an image: those of Pillow, batched.

Values follow Pillow's integer arithmetic (its luminance, its truncation), so that one grey level is the largest
difference (`tests/data/test_data_augment_ops.py`). All of them are elementwise over the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

Images = UInt8[Array, "B H W 3"]
PerImage = Float[Array, " B"]

LEVELS = 256
IN_BOUNDS = "promise_in_bounds"  # of gathers: nothing to check for each pixel


def per_image(x: Array) -> Array:
    """`[B]` → `[B, 1, 1, 1]`."""
    return x[:, None, None, None]


def grey(images: Images) -> Int[Array, "B H W 1"]:
    """ITU-R 601 luminance in Pillow's fixed point (`convert("L")`)."""
    parts = images.astype(jnp.int32) * jnp.asarray([19595, 38470, 7471])
    return (parts.sum(axis=-1, keepdims=True) + 0x8000) >> 16


def mean_grey(images: Images) -> Int[Array, "B 1 1 1"]:
    """The mean luminance of each image, rounded."""
    pixels = images.shape[1] * images.shape[2]
    total = grey(images).sum(axis=(1, 2, 3), dtype=jnp.int32)
    return per_image((2 * total + pixels) // (2 * pixels))


def blend(degenerate: Array, images: Images, factor: PerImage) -> Images:
    """`degenerate + factor * (images - degenerate)`, clipped and truncated: `PIL.Image.blend`.

    Factor 0 is `degenerate` (broadcast), 1 the images themselves, above 1 the opposite of `degenerate`.
    """
    start = degenerate.astype(jnp.float32)
    mixed = start + per_image(factor) * (images.astype(jnp.float32) - start)
    return jnp.clip(mixed, 0, LEVELS - 1).astype(jnp.uint8)


def brightness(images: Images, factor: PerImage) -> Images:
    return blend(jnp.zeros((1, 1, 1, 1)), images, factor)


def contrast(images: Images, factor: PerImage, mean: Int[Array, "B 1 1 1"]) -> Images:
    """mean: `mean_grey` of the images (given, as the images may be a ramp of levels that stands for them)."""
    return blend(mean, images, factor)


def saturation(images: Images, factor: PerImage) -> Images:
    return blend(grey(images), images, factor)


def sharpness(images: Images, factor: PerImage) -> Images:
    return blend(smooth(images), images, factor)


def smooth(images: Images) -> Int[Array, "B H W 3"]:
    """Pillow's SMOOTH filter: 3 x 3 of ones with 5 in the middle, over 13; the outermost pixels stay as they are."""
    x = images.astype(jnp.int32)
    columns = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    box = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    inner = (2 * (box + 4 * x[:, 1:-1, 1:-1]) + 13) // 26
    return jax.lax.dynamic_update_slice(x, inner, (0, 1, 1, 0))


def shift_hue(images: Images, turns: PerImage) -> Images:
    """Turns each pixel's hue (HSV) by a share of the full circle."""
    x = images.astype(jnp.float32) / (LEVELS - 1)
    value = x.max(axis=-1)
    chroma = value - x.min(axis=-1)
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixths = sixths[..., None] + 6 * per_image(turns)
    k = jnp.mod(sixths + jnp.asarray([5.0, 3.0, 1.0]), 6.0)
    turned = value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return jnp.round(turned * (LEVELS - 1)).astype(jnp.uint8)


def invert(images: Images) -> Images:
    return LEVELS - 1 - images


def posterise(images: Images, bits: Int[Array, " B"]) -> Images:
    """Keeps the highest `bits` (1 .. 8) of every value."""
    shift = per_image(8 - bits).astype(jnp.uint8)
    return (images >> shift) << shift


def solarise(images: Images, threshold: PerImage) -> Images:
    """Inverts what is at or above `threshold`."""
    return jnp.where(images.astype(jnp.int32) < per_image(threshold), images, invert(images))


def solarise_add(images: Images, amount: PerImage) -> Images:
    """Adds the whole part of `amount` to what is below 128."""
    brighter = images.astype(jnp.int32) + per_image(amount).astype(jnp.int32)
    return jnp.where(images < LEVELS // 2, jnp.clip(brighter, 0, LEVELS - 1), images).astype(
        jnp.uint8
    )


def histogram(images: Images) -> Int[Array, "B 256 3"]:
    """How many pixels of each image have each value, by channel.

    Accelerators compare every pixel with every value inside one reduction, since they scatter slowly; XLA's CPU backend
    would write all those comparisons to memory.
    """
    return jax.lax.platform_dependent(images, cpu=_counted, default=_compared)


def _compared(images: Images) -> Int[Array, "B 256 3"]:
    levels = jnp.arange(LEVELS, dtype=jnp.uint8)[:, None]
    return jnp.sum(images[:, :, :, None] == levels, axis=(1, 2), dtype=jnp.int32)


def _counted(images: Images) -> Int[Array, "B 256 3"]:
    def of_channel(values: UInt8[Array, " N"]) -> Int[Array, " 256"]:
        return jnp.zeros(LEVELS, jnp.int32).at[values].add(1)

    of_image = jax.vmap(of_channel, in_axes=1, out_axes=1)
    return jax.vmap(of_image)(images.reshape(images.shape[0], -1, 3))


def auto_contrast(counts: Int[Array, "B 256 3"]) -> Int[Array, "B 256 3"]:
    """The table that stretches each channel linearly to 0 .. 255, from its histogram."""
    levels = jnp.arange(LEVELS)[:, None]
    present = counts > 0
    low = jnp.where(present, levels, LEVELS).min(axis=1, keepdims=True)
    high = jnp.where(present, levels, -1).max(axis=1, keepdims=True)
    stretched = (levels - low) * (LEVELS - 1) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, LEVELS - 1), levels)


def equalise(counts: Int[Array, "B 256 3"]) -> Int[Array, "B 256 3"]:
    """The table that makes each channel's values equally frequent, from its histogram."""
    levels = jnp.arange(LEVELS)[:, None]
    high = jnp.where(counts > 0, levels, -1).max(axis=1, keepdims=True)
    highest = jnp.where(levels == high, counts, 0).sum(axis=1, keepdims=True)
    up_to = jnp.cumsum(counts, axis=1)
    step = (up_to[:, -1:] - highest) // (LEVELS - 1)
    table = (step // 2 + up_to - counts) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(table, 0, LEVELS - 1), levels)


def look_up(images: Images, tables: Int[Array, "B 256 3"]) -> Images:
    """Every value replaced by its entry in its image's and channel's table."""
    flat = images.reshape(images.shape[0], -1, 3).astype(jnp.int32)
    picked = jnp.take_along_axis(tables.astype(jnp.uint8), flat, axis=1, mode=IN_BOUNDS)
    return picked.reshape(images.shape)


def warp(
    images: Images, inverse: Float[Array, "B 2 3"], fill: UInt8[Array, " 3"]
) -> UInt8[Array, "B H W 3"]:
    """An affine map, bilinear; `fill` where the source lies outside of the image.

    inverse: rows (x, y) of the map from output to source, in pixels from the image's centre. The identity is exact.
    """
    height, width = images.shape[1:3]
    y = (jnp.arange(height) + 0.5 - height / 2)[:, None]
    x = (jnp.arange(width) + 0.5 - width / 2)[None, :]
    row = inverse[:, :, :, None, None]
    source_x = row[:, 0, 0] * x + row[:, 0, 1] * y + row[:, 0, 2] + width / 2
    source_y = row[:, 1, 0] * x + row[:, 1, 1] * y + row[:, 1, 2] + height / 2
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    left, top = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
    right_share, lower_share = source_x - 0.5 - left, source_y - 0.5 - top
    flat = images.reshape(images.shape[0], -1, 3)

    def tap(columns: Array, rows: Array) -> Array:
        columns = jnp.clip(columns, 0, width - 1).astype(jnp.int32)
        rows = jnp.clip(rows, 0, height - 1).astype(jnp.int32)
        index = (rows * width + columns).reshape(images.shape[0], -1, 1)
        picked = jnp.take_along_axis(flat, index, axis=1, mode=IN_BOUNDS).reshape(images.shape)
        return picked.astype(jnp.float32)

    across, down = right_share[..., None], lower_share[..., None]
    upper = tap(left, top) * (1 - across) + tap(left + 1, top) * across
    lower = tap(left, top + 1) * (1 - across) + tap(left + 1, top + 1) * across
    value = jnp.round(upper * (1 - down) + lower * down).astype(jnp.uint8)
    return jnp.where(inside[..., None], value, fill)
