"""Decoding: every kind of image file becomes the same RGB, every bad one has its reason."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitscale.data import decode
from vitscale.data.decode import ImageError

LIMIT = 1_000_000


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def pixels(data: bytes) -> np.ndarray:
    image = decode.open_image(data, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 3),
    ],
)
def test_formats_keep_their_colours(file_format: str, options: dict, tolerance: float) -> None:
    image = picture()
    difference = np.abs(pixels(encode(image, file_format, **options)) - np.asarray(image))
    assert difference.mean() <= tolerance


def test_grey_cmyk_and_palette_become_rgb() -> None:
    image = picture()
    grey = pixels(encode(image.convert("L"), "JPEG", quality=95))
    assert np.abs(grey - np.asarray(image.convert("L"))[..., None]).mean() < 3
    cmyk = pixels(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk - np.asarray(image)).mean() < 6
    palette = image.quantize(64)
    assert (pixels(encode(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    assert pixels(encode(palette, "GIF")).shape == (30, 40, 3)


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3] = 255  # black above, transparent below
    for file_format in ("PNG", "WEBP"):
        out = pixels(encode(Image.fromarray(rgba), file_format, lossless=True))
        assert (out[:4] == 0).all()
        assert (out[4:] == 255).all()
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert (pixels(encode(grey_alpha, "PNG"))[4:] == 255).all()
    keyed = Image.new("RGB", (4, 4), (10, 20, 30))
    assert (pixels(encode(keyed, "PNG", transparency=(10, 20, 30))) == 255).all()


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    out = pixels(encode(Image.fromarray(grey), "PNG"))
    assert np.abs(out[..., 0] - grey / 257).max() <= 0.51
    assert (out[..., 0] == out[..., 2]).all()


def test_sixteen_bit_rgb_png() -> None:
    value = 40000
    row = b"\x00" + struct.pack(">HHH", value, 0, 65535) * 2

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    assert np.abs(pixels(data)[0, 0] - [value / 257, 0, 255]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, file_format: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), file_format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    header = decode.open_header(data, LIMIT)
    assert decode.upright_size(header) == expected.size
    upright = decode.open_image(data, LIMIT)
    assert (np.asarray(upright) == np.asarray(expected)).all()
    # Again on its own result: nothing turns a second time.
    assert decode.upright_size(upright) == expected.size
    assert (np.asarray(decode.to_rgb(upright)) == np.asarray(expected)).all()
    lazily = decode.resize_box(header, 10, (2, 3, 25, 27))
    assert (lazily == decode.resize_box(upright, 10, (2, 3, 25, 27))).all()


def test_broken_exif_keeps_the_picture() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert pixels(data).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (b"\xff\xd8\xff", "corrupt"),
        (encode(picture(), "JPEG")[:400], "corrupt"),
        (encode(picture(), "JPEG")[:-200], "truncated"),
        (encode(picture(), "PNG")[:-300], "truncated"),
        (encode(Image.new("1", (1001, 1000)), "PNG"), "too large"),
        (encode(picture(), "TIFF"), "not an image"),
    ],
)
def test_bad_images_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode.open_image(data, LIMIT)
    assert caught.value.reason == reason


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = encode(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(ImageError, match="too large"):
        decode.open_header(bomb, 50_000_000)


@given(st.binary(max_size=200), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_no_bytes_raise_anything_else(noise: bytes, at: int) -> None:
    good = encode(picture(), "JPEG", quality=60)
    at %= len(good)
    for data in (noise, good[:at] + noise, good[:at] + noise + good[at + len(noise) :]):
        with contextlib.suppress(ImageError):
            assert decode.resize(decode.open_header(data, LIMIT), 8).shape == (8, 8, 3)


def test_one_pixel_image() -> None:
    data = encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")
    image = decode.open_image(data, LIMIT)
    assert (decode.resize(image, 4) == [9, 8, 7]).all()
    rng = decode.draw_generator(0, 0)
    assert (decode.random_resized_crop(image, 4, rng) == [9, 8, 7]).all()


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_crop_box_is_inside_and_large_enough(width: int, height: int, seed: int) -> None:
    left, upper, right, lower = decode.sample_crop(
        width, height, decode.draw_generator(seed, 1), 0.35
    )
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


def test_crop_statistics() -> None:
    boxes = np.array(
        [decode.sample_crop(200, 200, decode.draw_generator(7, i), 0.35) for i in range(1500)]
    )
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = w * h / 200**2, w / h
    assert 0.34 < area.min() < 0.37
    assert area.max() > 0.95
    assert 0.74 <= ratio.min() < 0.78
    assert 1.28 < ratio.max() <= 1.36
    assert abs(np.log(ratio).mean()) < 0.02
    # Off-centre on both sides alike.
    assert abs((boxes[:, 0] - (200 - boxes[:, 2])).mean()) < 3


def test_resize_is_pillows_antialiased_box() -> None:
    image = picture(90, 70)
    out = decode.resize_box(image, 24, (10, 5, 80, 65))
    expected = image.resize((24, 24), Image.Resampling.BILINEAR, box=(10, 5, 80, 65))
    assert (out == np.asarray(expected)).all()
    squashed = decode.resize(image, 24)
    assert (squashed == np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))).all()


def test_exact_size_is_not_resampled() -> None:
    image = picture(32, 32)
    assert (decode.resize(image, 32) == np.asarray(image)).all()
    assert (decode.resize_box(image, 8, (4, 6, 12, 14)) == np.asarray(image)[6:14, 4:12]).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_jpeg_decoding_loses_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 60, (900, 1203, 3), dtype=np.uint8))
    image = Image.blend(picture(1203, 900), noise, 0.3)
    data = encode(image, "JPEG", quality=90, exif=exif)
    full = decode.open_image(data, 10 * LIMIT)
    width, height = full.size
    for box in [(0, 0, width, height), (100, 40, width - 60, height - 101)]:
        header = decode.open_header(data, 10 * LIMIT)
        reduced = decode.resize_box(header, 48, box)
        assert max(header.size) < 1203  # it did decode at a smaller scale
        difference = np.abs(reduced.astype(int) - decode.resize_box(full, 48, box))
        assert difference.mean() < 1.0


def test_draw_generator_is_a_function_of_seed_and_draw() -> None:
    numbers = [
        decode.draw_generator(s, d).random() for s, d in [(0, 1), (1, 0), (0, 2**40), (0, 1)]
    ]
    assert numbers[0] == numbers[3]
    assert len(set(numbers)) == 3
