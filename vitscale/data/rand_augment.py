"""RandAugment (Cubuk et al., 2020, arXiv 1909.13719) inside jit, for a whole batch at once.

No operation is computed for images that another one was drawn for, beyond what all share: a layer is one affine warp
(the identity for most), one table of 256 values a channel, and one blend with a degenerate image. The tables of all
tonal operations are made for every image, and are 768 numbers each.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vitscale.data import augment_ops as ops
from vitscale.data.augment_ops import Images, PerImage

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TONAL = (
    "auto_contrast",
    "equalise",
    "invert",
    "posterise",
    "solarise",
    "solarise_add",
    "contrast",
    "brightness",
)
BLENDED = ("colour", "sharpness")
OPERATIONS = GEOMETRIC + TONAL + BLENDED

# At magnitude 10. Of the published variants these are the ones that grow with the magnitude (timm's "inc").
MAX_DEGREES = 30.0
MAX_SHEAR = 0.3
MAX_TRANSLATION = 0.45  # of the side
MAX_POSTERISED_BITS = 4  # taken away
MAX_SOLARISE_ADD = 110.0
MAX_ENHANCEMENT = 0.9  # factors 1 - this .. 1 + this

DRAWS_PER_LAYER = 2  # uniforms: operation, direction


def rand_augment(
    images: Images, draws: Float[Array, "B D"], magnitude: float, fill: UInt8[Array, " 3"]
) -> Images:
    """D / 2 operations one after another, each drawn uniformly from `OPERATIONS`, half of them in either direction.

    Args:
        draws: uniforms in [0, 1), `DRAWS_PER_LAYER` a layer.
        magnitude: of every operation, 0 .. 10.
        fill: colour of what a warp uncovers.
    """
    for layer in range(draws.shape[1] // DRAWS_PER_LAYER):
        chosen, direction = draws[:, DRAWS_PER_LAYER * layer], draws[:, DRAWS_PER_LAYER * layer + 1]
        operation = jnp.minimum((chosen * len(OPERATIONS)).astype(jnp.int32), len(OPERATIONS) - 1)
        signed = jnp.where(direction < 0.5, -1.0, 1.0) * (magnitude / 10)
        images = apply_operations(images, operation, signed, fill)
    return images


def apply_operations(
    images: Images, operation: Int[Array, " B"], signed: PerImage, fill: UInt8[Array, " 3"]
) -> Images:
    """One operation an image. operation: into `OPERATIONS`; signed: strength, -1 .. 1, its sign the direction."""
    images = ops.warp(images, _inverse_maps(images, operation, signed), fill)
    images = ops.look_up(images, _tables(images, operation, signed))
    is_colour, is_sharpness = (operation == OPERATIONS.index(name) for name in BLENDED)
    degenerate = jnp.where(ops.per_image(is_colour), ops.grey(images), ops.smooth(images))
    factor = jnp.where(is_colour | is_sharpness, 1 + MAX_ENHANCEMENT * signed, 1.0)
    return ops.blend(degenerate, images, factor)


def _inverse_maps(
    images: Images, operation: Int[Array, " B"], signed: PerImage
) -> Float[Array, "B 2 3"]:
    """From output to source pixels, for `ops.warp`; the identity where the operation is not geometric."""
    height, width = images.shape[1:3]
    strength = {
        name: jnp.where(operation == OPERATIONS.index(name), signed, 0.0) for name in GEOMETRIC
    }
    angle = jnp.deg2rad(MAX_DEGREES) * strength["rotate"]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    # At most one of these is not the identity, so that their order does not matter.
    shift_x, shift_y = strength["translate_x"], strength["translate_y"]
    x = [cosine, MAX_SHEAR * strength["shear_x"] - sine, MAX_TRANSLATION * width * shift_x]
    y = [sine + MAX_SHEAR * strength["shear_y"], cosine, MAX_TRANSLATION * height * shift_y]
    return jnp.stack([jnp.stack(x, axis=-1), jnp.stack(y, axis=-1)], axis=1)


def _tables(images: Images, operation: Int[Array, " B"], signed: PerImage) -> Int[Array, "B 256 3"]:
    """What each image's operation makes of the levels 0 .. 255; themselves where it is not tonal."""
    strength, enhanced = jnp.abs(signed), 1 + MAX_ENHANCEMENT * signed
    counts = ops.histogram(images)
    # An image with every level once: what an operation makes of it is the table.
    ramp = jnp.arange(ops.LEVELS, dtype=jnp.uint8)[None, None, :, None]
    taken = jnp.round(MAX_POSTERISED_BITS * strength).astype(jnp.int32)
    tables = {
        "auto_contrast": ops.auto_contrast(counts)[:, None],
        "equalise": ops.equalise(counts)[:, None],
        "invert": ops.invert(ramp),
        "posterise": ops.posterise(ramp, 8 - taken),
        "solarise": ops.solarise(ramp, ops.LEVELS * (1 - strength)),
        "solarise_add": ops.solarise_add(ramp, MAX_SOLARISE_ADD * strength),
        "contrast": ops.contrast(ramp, enhanced, ops.mean_grey(images)),
        "brightness": ops.brightness(ramp, enhanced),
    }
    table = jnp.broadcast_to(ramp, (images.shape[0], 1, ops.LEVELS, 3)).astype(jnp.int32)
    for name, candidate in tables.items():
        chosen = ops.per_image(operation == OPERATIONS.index(name))
        table = jnp.where(chosen, candidate.astype(jnp.int32), table)
    return table[:, 0]
