"""Which part of an image becomes an example: boxes in pixels of the upright image, chosen before it is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

Box = tuple[float, float, float, float]  # left, upper, right, lower; in pixels, upright
ChooseBox = Callable[[int, int], Box]  # from the width and height of the upright image

CROP_ATTEMPTS = 10


def draw_generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one draw: a pure function of the run's seed and the draw's global number."""
    return np.random.Generator(np.random.PCG64([seed, position]))


def sample_crop(
    width: int, height: int, rng: np.random.Generator, min_area: float, aspect: float = 1.0
) -> Box:
    """The Inception crop (Szegedy et al., 2015): `min_area` to 1 of the area, ratio 3/4 to 4/3 of `aspect`.

    Ten attempts, then the largest central box of an allowed ratio, as in torchvision's
    `RandomResizedCrop`. Corners are whole pixels. 40 uniform numbers are taken whatever the size is.
    """
    draws = rng.random((CROP_ATTEMPTS, 4)).tolist()
    log_ratio = math.log(4 / 3)
    for area_draw, ratio_draw, x_draw, y_draw in draws:
        area = width * height * (min_area + (1 - min_area) * area_draw)
        ratio = aspect * math.exp(log_ratio * (2 * ratio_draw - 1))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x_draw * (width - w + 1)), int(y_draw * (height - h + 1))
            return (left, upper, left + w, upper + h)
    w = max(1, min(width, round(height * aspect * 4 / 3)))
    h = max(1, min(height, round(width / aspect * 4 / 3)))
    left, upper = (width - w) // 2, (height - h) // 2
    return (left, upper, left + w, upper + h)


def squash(width: int, height: int) -> Box:
    """The whole image, whatever its aspect ratio."""
    return (0, 0, width, height)


def centre(width: int, height: int, aspect: float = 1.0, fraction: float = 1.0) -> Box:
    """`fraction` of the sides of the largest central box of ratio `aspect` (width / height).

    For a square of side S it is what resizing the short side to S / `fraction` and cutting S x S from
    the middle shows, without that recipe's rounding to whole pixels.
    """
    w = min(width, height * aspect) * fraction
    h = min(height, width / aspect) * fraction
    left, upper = (width - w) / 2, (height - h) / 2
    return (left, upper, left + w, upper + h)


def eval_box(kind: Literal["squash", "centre"], fraction: float, aspect: float) -> ChooseBox:
    """The box of `ModelConfig.eval_crop` and `eval_crop_fraction`; `aspect` is width / height of the result."""
    if kind == "squash":
        return squash
    return lambda width, height: centre(width, height, aspect, fraction)
