"""Resizing a box: Pillow's antialiased result, whichever library filters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitscale.data import resize
from vitscale.data.resize import Patch, resize_into

CORNER = st.floats(0, 0.9)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(
    *[st.integers(1, 60)] * 4,
    st.tuples(CORNER, CORNER, st.floats(0.01, 1), st.floats(0.01, 1)),
)
@settings(max_examples=150, deadline=None)
def test_any_box_is_pillows_within_two_levels(
    width: int, height: int, columns: int, rows: int, corners: tuple[float, ...]
) -> None:
    x, y, w, h = corners
    left, upper = x * width, y * height
    box = (left, upper, left + w * (width - left), upper + h * (height - upper))
    pixels = noise(width, height, columns)
    out = np.zeros((rows, columns, 3), np.uint8)
    resize_into(Patch(pixels.tobytes(), width, height, box), out)
    expected = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    assert np.abs(out.astype(int) - np.asarray(expected)).max() <= 2


def test_without_the_rust_library_it_is_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "rust_lib", None)
    pixels, box = noise(30, 20), (2.5, 1, 29, 17.25)
    out = np.zeros((7, 9, 3), np.uint8)
    resize_into(Patch(pixels.tobytes(), 30, 20, box), out)
    expected = Image.fromarray(pixels).resize((9, 7), Image.Resampling.BILINEAR, box=box)
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_exact_size_is_copied() -> None:
    pixels = noise(20, 10)
    out = np.zeros((6, 8, 3), np.uint8)
    resize_into(Patch(pixels.tobytes(), 20, 10, (4, 3, 12, 9)), out)
    np.testing.assert_array_equal(out, pixels[3:9, 4:12])
    # Half a pixel further on, the same size is an interpolation.
    resize_into(Patch(pixels.tobytes(), 20, 10, (4.5, 3, 12.5, 9)), out)
    average = (pixels[3:9, 4:12].astype(int) + pixels[3:9, 5:13]) / 2
    assert np.abs(out - average).max() <= 1


def test_writes_into_a_row_of_a_batch_and_into_any_strides() -> None:
    pixels = noise(20, 10)
    patch = Patch(pixels.tobytes(), 20, 10, (0, 0, 20, 10))
    batch = np.zeros((3, 5, 6, 3), np.uint8)
    resize_into(patch, batch[1])
    assert batch[1].any()
    assert not batch[[0, 2]].any()
    mirrored = np.zeros((5, 6, 3), np.uint8)
    resize_into(patch, mirrored[:, ::-1])
    np.testing.assert_array_equal(mirrored[:, ::-1], batch[1])
