import dataclasses
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prep_catalogue import config, jpeg
from prep_photos import brighten, crop, encode, photo, resize

from data_prep import images
from data_prep.fingerprint import Fingerprint, fingerprint, similar, thumbnail
from data_prep.images import inspect_image, reencode
from data_prep.schema_images import DedupConfig, ImageConfig
from vitscale.errors import UserError

CROPS = DedupConfig().crops
LIMIT = DedupConfig().max_distance


def print_of(image: Image.Image) -> Fingerprint:
    found = fingerprint(thumbnail(image), CROPS)
    assert found is not None
    return found


def are_copies(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether the whole of one is like any view of the other."""
    ways = ((a, b), (b, a))
    return any(
        similar(np.repeat(x.codes[:1], len(y.codes), 0), y.codes, LIMIT).any() for x, y in ways
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 95), st.floats(0.5, 1.5), st.floats(0.8, 1.1))
def test_a_copy_is_recognised(seed: int, quality: int, scale: float, brightness: float) -> None:
    original = photo(seed)
    copy = brighten(resize(original, scale), brightness)
    decoded = Image.open(io.BytesIO(encode(copy, quality=quality)))
    assert are_copies(print_of(original), print_of(decoded))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(CROPS),
    st.sampled_from([(0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)]),
)
def test_a_trimmed_copy_is_recognised(seed: int, side: float, place: tuple[float, float]) -> None:
    original = photo(seed)
    assert are_copies(print_of(original), print_of(crop(original, side, *place)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_different_pictures_are_told_apart(seed: int, step: int) -> None:
    assert not are_copies(print_of(photo(seed)), print_of(photo(seed + step)))


def test_the_same_shape_in_another_colour_is_another_product() -> None:
    original = photo(3)
    bright, blue, red = original.convert("YCbCr").split()
    opposite = [channel.point(lambda level: 255 - level) for channel in (blue, red)]
    recoloured = Image.merge("YCbCr", [bright, *opposite])
    a, b = print_of(original), print_of(recoloured)
    bits = np.bitwise_count(a.codes[0, :32] ^ b.codes[0, :32]).sum()
    assert bits <= LIMIT  # the hash, which sees brightness, cannot tell
    assert not are_copies(a, b)


def test_plain_images_have_no_fingerprint() -> None:
    assert fingerprint(thumbnail(Image.new("RGB", (300, 200), "red")), CROPS) is None


def test_a_rotated_file_with_its_tag_is_the_same_picture() -> None:
    original = photo(3)
    turned = original.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    with Image.open(io.BytesIO(encode(turned, quality=95, exif=exif))) as stored:
        assert stored.size == (180, 240)
        assert are_copies(print_of(original), print_of(stored))


def test_small_and_narrow_images_are_rejected_undecoded() -> None:
    limits = config(images=ImageConfig(min_side=50, max_aspect_ratio=3.0))
    assert inspect_image(encode(photo(0, 150, 50)), limits).problem is None
    # Cut off after the header: decoding would say so.
    small = inspect_image(encode(photo(0, 200, 49))[:700], limits).problem
    assert small == "image has a side below images.min_side"
    narrow = inspect_image(encode(photo(0, 50, 151))[:700], limits).problem
    assert narrow == "image has an aspect ratio above images.max_aspect_ratio"


def bomb(side: int) -> bytes:
    """A PNG whose header announces `side` x `side` pixels: a few bytes, gigabytes once decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    size = side.to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8000, 100_000, 2**31 - 1])
def test_a_bomb_is_never_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import PngImagePlugin

    for kind in (Image.Image, PngImagePlugin.PngImageFile):
        monkeypatch.setattr(kind, "load", lambda self: pytest.fail("decoded"))
    problem = inspect_image(bomb(side), config(), with_thumbnail=True).problem
    assert problem in (images.TOO_LARGE, "image cannot be decoded")
    assert side > 100_000 or problem == images.TOO_LARGE


def test_reencoding_bounds_the_side_and_keeps_the_picture_upright() -> None:
    original = photo(5, 400, 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode(
        original.transpose(Image.Transpose.ROTATE_90), exif=exif, icc_profile=b"profile"
    )
    assert reencode(stored, 400, 90) is stored
    with Image.open(io.BytesIO(reencode(stored, 200, 90))) as small:
        assert small.format == "JPEG"
        assert small.size == (200, 150)
        assert small.getexif().get(0x0112) is None
        assert small.info["icc_profile"] == b"profile"
        assert are_copies(print_of(original), print_of(small))
    fine, coarse = (reencode(stored, 200, quality) for quality in (95, 40))
    assert len(coarse) < 0.7 * len(fine)


def test_transparent_parts_become_white() -> None:
    clear = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    with Image.open(io.BytesIO(reencode(encode(clear, "PNG"), 50, 90))) as small:
        assert small.getpixel((10, 10)) == (255, 255, 255)


def test_a_catalogue_of_tiny_pictures_is_still_checked(tmp_path: Path) -> None:
    assert inspect_image(jpeg(), config(), with_thumbnail=True).problem is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_side": 0}, "images.min_side=0"),
        ({"max_aspect_ratio": 0.5}, "images.max_aspect_ratio=0.5"),
        ({"jpeg_quality": 101}, "images.jpeg_quality=101"),
        ({"reencode_side": 0}, "images.reencode_side=0"),
    ],
)
def test_impossible_settings_are_told(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(ImageConfig(), **values)
