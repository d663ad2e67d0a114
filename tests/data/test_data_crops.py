"""Which part of an image is taken: boxes inside of it, with the statistics of the published crop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data import crops

SIDES = st.integers(1, 500)


@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_crop_box_is_inside(width: int, height: int, seed: int) -> None:
    rng = crops.draw_generator(seed, 1)
    left, upper, right, lower = crops.sample_crop(width, height, rng, 0.35)
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


def test_crop_statistics() -> None:
    boxes = np.array(
        [crops.sample_crop(200, 200, crops.draw_generator(7, i), 0.35) for i in range(1500)]
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


def test_crop_of_an_oblong_result_has_its_aspect() -> None:
    boxes = np.array(
        [crops.sample_crop(400, 200, crops.draw_generator(7, i), 0.1, 2.0) for i in range(500)]
    )
    ratio = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert abs(np.log(ratio).mean() - np.log(2)) < 0.03


def test_draw_generator_is_a_function_of_seed_and_draw() -> None:
    numbers = [crops.draw_generator(s, d).random() for s, d in [(0, 1), (1, 0), (0, 2**40), (0, 1)]]
    assert numbers[0] == numbers[3]
    assert len(set(numbers)) == 3


@given(SIDES, SIDES, st.floats(0.25, 4), st.floats(0.1, 1))
@settings(max_examples=150, deadline=None)
def test_centre_box_has_its_aspect_and_lies_in_the_middle(
    width: int, height: int, aspect: float, fraction: float
) -> None:
    left, upper, right, lower = crops.centre(width, height, aspect, fraction)
    assert (right - left) / (lower - upper) == pytest.approx(aspect)
    assert left + right == pytest.approx(width)
    assert upper + lower == pytest.approx(height)
    longest = max((right - left) / width, (lower - upper) / height)
    assert longest == pytest.approx(fraction)


def test_centre_box_is_the_short_side_recipe() -> None:
    # 400 x 600 with 224 / 0.875 = 256 on the short side: 256 x 384, of which the middle 224 x 224.
    scale = 400 / 256
    expected = (16 * scale, 80 * scale, 240 * scale, 304 * scale)
    assert crops.centre(400, 600, 1.0, 0.875) == pytest.approx(expected)


def test_eval_box_by_kind() -> None:
    assert crops.eval_box("squash", 0.5, 1.0)(30, 20) == (0, 0, 30, 20)
    assert crops.eval_box("centre", 1.0, 1.0)(30, 20) == (5, 0, 25, 20)
    assert crops.eval_box("centre", 0.5, 2.0)(40, 20) == (10, 5, 30, 15)
