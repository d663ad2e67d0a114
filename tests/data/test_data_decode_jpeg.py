"""Partial decoding of JPEGs: what Pillow makes of the whole image, for any crop, layout and damage."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitscale.data import decode, jpeg
from vitscale.data.crops import Box, draw_generator, sample_crop
from vitscale.data.records import BadExample

LIMIT = 10_000_000

pytestmark = pytest.mark.skipif(not jpeg.available(), reason="libjpeg-turbo 3 is not installed")


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """Shapes and noise, as a photo has them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), noise, 0.1)


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def crop(data: bytes, box: Box | None, columns: int, rows: int) -> np.ndarray:
    out = np.zeros((rows, columns, 3), np.uint8)
    decode.decode_into(data, out, None if box is None else lambda width, height: box, LIMIT)
    return out


def error(data: bytes, box: Box, columns: int, rows: int) -> float:
    """Mean difference from Pillow's resize of the whole image, in grey levels."""
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    expected = whole.resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    return float(np.abs(crop(data, box, columns, rows).astype(int) - np.asarray(expected)).mean())


# Grey, all the chroma layouts that Pillow writes, both orders of coefficients, restart markers.
LAYOUTS = [
    encoded(textured(131, 97).convert("L")),
    *(
        encoded(textured(131, 97), subsampling=subsampling, progressive=progressive)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    ),
    encoded(textured(131, 97), restart_marker_rows=1),
    encoded(textured(131, 97), restart_marker_blocks=3, progressive=True),
    encoded(textured(131, 97).convert("CMYK")),
]
UNIT = st.floats(0, 1, exclude_max=True)


@given(
    st.sampled_from(LAYOUTS),
    st.tuples(st.floats(0, 0.98), st.floats(0, 0.98), st.floats(0.02, 1), st.floats(0.02, 1)),
    st.integers(8, 60),
    st.integers(8, 60),
)
@settings(max_examples=200, deadline=None)
def test_any_box_of_any_layout_is_pillows(
    data: bytes, corners: tuple[float, ...], columns: int, rows: int
) -> None:
    x, y, w, h = corners
    left, upper = x * 131, y * 97
    box = (left, upper, left + w * (131 - left), upper + h * (97 - upper))
    assert error(data, box, columns, rows) <= 1.5


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_edge_of_a_crop_sees_its_neighbours(subsampling: int) -> None:
    data = encoded(textured(320, 240), subsampling=subsampling, quality=95)
    for left in range(40, 60):
        box = (left, left, left + 200, left + 150)
        # Pillow holds the same decoded pixels, so only rounding in the filter remains.
        out = crop(data, box, 150, 112).astype(int)
        whole = Image.open(io.BytesIO(data))
        expected = np.asarray(whole.resize((150, 112), Image.Resampling.BILINEAR, box=box))
        assert np.abs(out - expected).max() <= 2


def photos() -> list[bytes]:
    sklearn = pytest.importorskip("sklearn")
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def test_training_crops_of_photos() -> None:
    errors = []
    for data in photos():
        width, height = decode.image_size(data, LIMIT)
        for draw in range(4):
            box = sample_crop(width, height, draw_generator(0, draw), 0.35)
            errors.append(error(data, box, 224, 224))
    assert max(errors) < 0.3


@pytest.mark.parametrize("scale", jpeg.SCALES)
def test_reduced_scale_loses_nothing(scale: int) -> None:
    """With as few pixels as `OVERSAMPLING` ever leaves, for each of the scales."""
    for data in photos():
        width, height = decode.image_size(data, LIMIT)
        for box in ((0, 0, width, height), (31, 20, width - 5, height - 41.5)):
            columns, rows = (
                int((box[end] - box[end - 2]) / scale / jpeg.OVERSAMPLING) for end in (2, 3)
            )
            assert jpeg.choose_scale(box[2] - box[0], box[3] - box[1], columns, rows) == scale
            assert error(data, box, columns, rows) < 1.0


def test_scale_is_reduced_only_when_both_axes_allow_it() -> None:
    assert jpeg.choose_scale(600, 600, 100, 100) == 2
    assert jpeg.choose_scale(599, 600, 100, 100) == 1
    assert jpeg.choose_scale(10_000, 1300, 100, 100) == 4
    assert jpeg.choose_scale(10_000, 10_000, 100, 100) == 8
    assert jpeg.choose_scale(50, 50, 100, 100) == 1
    assert jpeg.choose_scale(400, 400, 1, 1) == 8
    assert jpeg.choose_scale(70, 70, 1, 1) == 1


def test_only_the_needed_part_is_decoded() -> None:
    data = encoded(textured(640, 480), subsampling=2)
    header = jpeg.read_header(data)
    region = jpeg.decode_region(data, header, (200, 101, 300, 205.5), 1)
    assert (region.left, region.upper) == (192, 101)  # whole blocks of 16 columns on the left
    assert (region.width, region.height) == (108, 105)
    half = jpeg.decode_region(data, header, (100, 50.5, 150, 100), 2)
    assert (half.left, half.upper, half.width, half.height) == (96, 50, 54, 50)
    assert len(half.pixels) == 54 * 50 * 3


@pytest.mark.parametrize("layout", ["Y411", "Y440"])
def test_rare_layouts(layout: str) -> None:
    turbojpeg = pytest.importorskip("turbojpeg")
    pixels = np.asarray(textured(131, 97))
    data = turbojpeg.compress(pixels, 85, getattr(turbojpeg.SAMP, layout))
    for box in ((0, 0, 131, 97), (40.5, 20, 120, 91)):
        assert error(data, box, 50, 40) <= 0.5


@pytest.mark.parametrize("factors", [(0x31, 0x31, 0x31), (0x31, 0x11, 0x11), (0x22, 0x11, 0x21)])
def test_factors_without_a_name(factors: tuple[int, ...]) -> None:
    """Layouts that TurboJPEG mistakes for 4:4:4, or knows nothing of."""
    data = bytearray(encoded(textured(131, 97), subsampling=0))
    first = data.index(b"\xff\xc0") + 11
    for component, factor in enumerate(factors):
        data[first + 3 * component] = factor
    # The coefficients are meant for another layout: a jumble, but the same for Pillow.
    assert error(bytes(data), (40, 20, 120, 91), 50, 40) <= 0.5


def test_many_scans_are_refused() -> None:
    """A short file that would keep a decoder busy for minutes."""
    data = encoded(textured(64, 64), progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 300 + data[-2:]
    with pytest.raises(BadExample, match="corrupt"):
        crop(bomb, None, 8, 8)


def test_half_a_picture_is_truncated_only_where_it_is_wanted() -> None:
    data = encoded(textured(200, 400), quality=90)
    # Somebody closed the file properly after half of it: Pillow paints the rest grey.
    half = data[: len(data) // 2] + jpeg.END_OF_IMAGE
    with pytest.raises(BadExample, match="truncated"):
        crop(half, None, 32, 32)
    assert error(half, (0, 0, 200, 150), 32, 32) < 0.5


def test_no_image_depends_on_the_one_before() -> None:
    data = encoded(textured(64, 48))
    expected = crop(data, None, 20, 20)
    at = data.index(b"\xff\xdb")
    tables = int.from_bytes(data[at + 2 : at + 4], "big") + 2
    without_tables = data[:at] + data[at + tables :]
    with pytest.raises(BadExample, match="corrupt"):  # an old decoder would still have the tables
        crop(without_tables, None, 20, 20)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(2, 600)] = rng.integers(256)
        for attempt in (bytes(damaged), without_tables):
            with contextlib.suppress(BadExample):
                crop(attempt, None, 20, 20)
        np.testing.assert_array_equal(crop(data, None, 20, 20), expected)


SMALL = [
    encoded(textured(67, 45), progressive=progressive, subsampling=subsampling)
    for progressive in (False, True)
    for subsampling in (0, 2)
]


@given(
    st.sampled_from(SMALL),
    st.lists(st.tuples(UNIT, st.integers(0, 7)), max_size=8),
    st.one_of(st.none(), UNIT),
    st.booleans(),
    st.tuples(st.floats(0, 0.98), st.floats(0, 0.98)),
)
@settings(max_examples=300, deadline=None)
def test_damage_never_crashes_or_hangs(
    data: bytes,
    flips: list[tuple[float, int]],
    cut: float | None,
    closed: bool,
    corner: tuple[float, float],
) -> None:
    damaged = bytearray(data)
    for place, bit in flips:
        damaged[int(place * len(damaged))] ^= 1 << bit
    if cut is not None:
        del damaged[int(cut * len(damaged)) :]
    if closed:
        damaged += jpeg.END_OF_IMAGE
    out = np.zeros((16, 16, 3), np.uint8)

    def choose_box(width: int, height: int) -> Box:
        return (corner[0] * width, corner[1] * height, width, height)

    with contextlib.suppress(BadExample):
        decode.decode_into(bytes(damaged), out, choose_box, LIMIT)


def test_every_truncation_is_noticed() -> None:
    data = encoded(textured(67, 45), progressive=True)
    for length in range(4, len(data)):
        with pytest.raises(BadExample, match="truncated"):
            crop(data[:length], None, 8, 8)


def test_threads_decode_alike() -> None:
    images = [encoded(textured(160, 120, seed), subsampling=2) for seed in range(8)]
    images[3] = images[3][:900]
    expected = [None if i == 3 else crop(data, None, 64, 64) for i, data in enumerate(images)]

    def decode_one(draw: int) -> bool:
        i = draw % len(images)
        try:
            return bool((crop(images[i], None, 64, 64) == expected[i]).all())
        except BadExample:
            return expected[i] is None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decode_one, range(400)))


def test_the_gil_is_released() -> None:
    """Decoding and resizing a large image take far longer than the main thread ever has to wait."""
    data = encoded(textured(3000, 2400))
    decoding = threading.Thread(target=crop, args=(data, None, 1500, 1200))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    ticks = 0
    try:
        decoding.start()
        while decoding.is_alive():
            ticks += 1
            time.sleep(0.001)
    finally:
        sys.setswitchinterval(interval)
    assert ticks > 10
