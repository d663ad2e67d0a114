"""Every operation against Pillow's own (hue: torchvision's or colorsys), on photos' worth of values and odd ones."""

import colorsys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vitscale.data import augment_ops as ops
from vitscale.data import rand_augment as ra

HEIGHT, WIDTH = 37, 50
FILL = np.array([124, 116, 104], np.uint8)
CENTRE = (HEIGHT / 2, WIDTH / 2)


def photos() -> np.ndarray:
    """Smooth noise, plain noise, few grey levels, one colour, and a dark image."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    levels = rng.choice(np.array([3, 90, 91, 200], np.uint8), (HEIGHT, WIDTH, 3))
    plain = np.full((HEIGHT, WIDTH, 3), (7, 130, 250), np.uint8)
    return np.stack([smooth, noise, levels, plain, smooth // 5 + 20])


PHOTOS = photos()


def pillow(function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(function(Image.fromarray(photo))) for photo in PHOTOS])


def assert_within(ours: jax.Array, theirs: np.ndarray, levels: int) -> None:
    assert ours.dtype == jnp.uint8
    difference = np.abs(np.asarray(ours).astype(int) - theirs.astype(int))
    assert difference.max() <= levels, difference.max()


def each(value: float) -> jax.Array:
    return jnp.full(len(PHOTOS), value)


def test_grey_is_pillows() -> None:
    expected = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in PHOTOS])
    np.testing.assert_array_equal(np.asarray(ops.grey(PHOTOS))[..., 0], expected)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.6, 1.0, 1.4, 1.9])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color", "Sharpness"])
def test_enhancements(name: str, factor: float) -> None:
    ours = {
        "Brightness": ops.brightness,
        "Contrast": lambda x, f: ops.contrast(x, f, ops.mean_grey(x)),
        "Color": ops.saturation,
        "Sharpness": ops.sharpness,
    }[name]
    expected = pillow(lambda image: getattr(ImageEnhance, name)(image).enhance(factor))
    assert_within(jax.jit(ours)(PHOTOS, each(factor)), expected, 1)


def test_smooth() -> None:
    expected = pillow(lambda image: image.filter(ImageFilter.SMOOTH))
    np.testing.assert_array_equal(ops.smooth(PHOTOS), expected)


def test_tables_from_histograms() -> None:
    counts = ops.histogram(PHOTOS)
    for image, of_image in zip(PHOTOS, np.asarray(counts), strict=True):
        for channel in range(3):
            expected = np.bincount(image[..., channel].ravel(), minlength=256)
            np.testing.assert_array_equal(of_image[:, channel], expected)
    equalised = ops.look_up(PHOTOS, ops.equalise(counts))
    assert_within(equalised, pillow(ImageOps.equalize), 0)
    # Pillow multiplies by a rounded 255 / (high - low), and truncates.
    stretched = ops.look_up(PHOTOS, ops.auto_contrast(counts))
    assert_within(stretched, pillow(ImageOps.autocontrast), 1)


@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_posterise(bits: int) -> None:
    ours = ops.posterise(PHOTOS, jnp.full(len(PHOTOS), bits))
    assert_within(ours, pillow(lambda image: ImageOps.posterize(image, bits)), 0)


@pytest.mark.parametrize("threshold", [0, 77, 128, 256])
def test_solarise(threshold: int) -> None:
    ours = ops.solarise(PHOTOS, each(threshold))
    assert_within(ours, pillow(lambda image: ImageOps.solarize(image, threshold)), 0)
    assert_within(ops.invert(PHOTOS), pillow(ImageOps.invert), 0)


def test_solarise_add() -> None:
    def reference(image: Image.Image) -> Image.Image:
        return image.point([min(255, v + 110) if v < 128 else v for v in range(256)] * 3)

    assert_within(ops.solarise_add(PHOTOS, each(110.7)), pillow(reference), 0)


@pytest.mark.parametrize("turns", [-0.5, -0.13, 0.0, 0.25, 0.4])
def test_hue(turns: float) -> None:
    def turned(pixel: np.ndarray) -> list[float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return [255 * x for x in colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)]

    ours = np.asarray(jax.jit(ops.shift_hue)(PHOTOS, each(turns)))
    expected = np.apply_along_axis(turned, -1, PHOTOS)
    assert np.abs(ours - expected).max() <= 0.51


def affine(inverse: np.ndarray) -> np.ndarray:
    """Pillow's bilinear transform; its map is about the corner, ours about the centre."""
    centre = np.array([CENTRE[1], CENTRE[0]])
    offset = centre + inverse[:, 2] - inverse[:, :2] @ centre
    data = (*inverse[0, :2], offset[0], *inverse[1, :2], offset[1])

    def transform(image: Image.Image) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            data,
            Image.Resampling.BILINEAR,
            fillcolor=tuple(int(x) for x in FILL),
        )

    return pillow(transform)


WARPS = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "rotation": [[np.cos(0.5), -np.sin(0.5), 0], [np.sin(0.5), np.cos(0.5), 0]],
    "shear x": [[1, -0.3, 0], [0, 1, 0]],
    "shear y": [[1, 0, 0], [0.27, 1, 0]],
    "shift": [[1, 0, 7.3], [0, 1, -11.6]],
    "whole pixels": [[1, 0, -5], [0, 1, 3]],
}


@pytest.mark.parametrize("name", WARPS)
def test_warp(name: str) -> None:
    inverse = np.array(WARPS[name], float)
    ours = np.asarray(
        jax.jit(ops.warp)(PHOTOS, jnp.asarray(np.tile(inverse, (len(PHOTOS), 1, 1))), FILL)
    )
    expected = affine(inverse)
    difference = np.abs(ours.astype(int) - expected.astype(int)).max(axis=-1)
    # A source point on the border, to float32's rounding, may be taken as inside or outside.
    assert (difference > 1).mean() < 2e-3
    if name == "identity":
        np.testing.assert_array_equal(ours, PHOTOS)


def reference_operation(name: str, image: Image.Image, signed: float) -> np.ndarray | None:
    """An operation of RandAugment, written with Pillow; None where it is a warp."""
    factor, strength = 1 + 0.9 * signed, abs(signed)
    if name in ("colour", "contrast", "brightness", "sharpness"):
        enhancer = {"colour": "Color"}.get(name, name.capitalize())
        return np.asarray(getattr(ImageEnhance, enhancer)(image).enhance(factor))
    tonal = {
        "auto_contrast": ImageOps.autocontrast,
        "equalise": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterise": lambda x: ImageOps.posterize(x, 8 - round(4 * strength)),
        "solarise": lambda x: ImageOps.solarize(x, 256 * (1 - strength)),
        "solarise_add": lambda x: x.point(
            [min(255, v + int(110 * strength)) if v < 128 else v for v in range(256)] * 3
        ),
    }
    return np.asarray(tonal[name](image)) if name in tonal else None


def inverse_of(name: str, signed: float) -> np.ndarray:
    angle = np.deg2rad(30 * signed)
    rows = {
        "rotate": [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]],
        "shear_x": [[1, 0.3 * signed, 0], [0, 1, 0]],
        "shear_y": [[1, 0, 0], [0.3 * signed, 1, 0]],
        "translate_x": [[1, 0, 0.45 * WIDTH * signed], [0, 1, 0]],
        "translate_y": [[1, 0, 0], [0, 1, 0.45 * HEIGHT * signed]],
    }
    return np.array(rows[name])


@pytest.mark.parametrize("signed", [-0.9, 0.5])
def test_all_operations_of_rand_augment_in_one_batch(signed: float) -> None:
    """One image an operation, all in one call, each as Pillow does that operation alone."""
    count = len(ra.OPERATIONS)
    apply = jax.jit(ra.apply_operations)
    for number, photo in enumerate(PHOTOS):
        batch = np.tile(photo, (count, 1, 1, 1))
        ours = np.asarray(apply(batch, jnp.arange(count), jnp.full(count, signed), FILL))
        for name, image in zip(ra.OPERATIONS, ours, strict=True):
            expected = reference_operation(name, Image.fromarray(photo), signed)
            if expected is None:
                expected = affine(inverse_of(name, signed))[number]
            difference = np.abs(image.astype(int) - expected.astype(int)).max(axis=-1)
            assert (difference > 1).mean() < 5e-3, name


def test_draws_choose_operations_evenly_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    draws = rng.random((2000, 2), np.float32)
    ramp = np.tile(np.arange(6, dtype=np.uint8)[None, :, None] * 40, (2000, 6, 1, 3))
    out = np.asarray(jax.jit(ra.rand_augment, static_argnums=2)(ramp, draws, 10.0, FILL))
    inverted = (out == 255 - ramp).all(axis=(1, 2, 3)).mean()
    # Invert; and solarise, whose threshold is 0 at full strength.
    assert 1.5 / 15 < inverted < 2.5 / 15
    brighter, darker = (out > ramp).mean(axis=(1, 2, 3)), (out < ramp).mean(axis=(1, 2, 3))
    assert (brighter > 0.5).any()
    assert (darker > 0.5).any()


def test_magnitude_0_leaves_all_but_three_operations_without_effect() -> None:
    """Equalise, auto-contrast and invert have no strength."""
    count = len(ra.OPERATIONS)
    batch = np.tile(PHOTOS[4], (count, 1, 1, 1))
    out = np.asarray(ra.apply_operations(batch, jnp.arange(count), jnp.zeros(count), FILL))
    changed = {n for n, image in zip(ra.OPERATIONS, out, strict=True) if (image != PHOTOS[4]).any()}
    assert changed == {"auto_contrast", "equalise", "invert"}
