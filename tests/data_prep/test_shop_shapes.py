"""The drawings: enough types, all different, all inside the frame, every style value visible."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_prep.shop.pen import Pen, ProductType
from data_prep.shop.products import make_product, render_sprite
from data_prep.shop.shapes import TYPES
from data_prep.shop.surface import (
    COLOURS,
    PATTERNS,
    SHADES,
    oklch_to_srgb,
    pattern_mask,
    shade_rgb,
    texture,
)


def outline(kind: ProductType, style: dict[str, str], size: int = 64) -> np.ndarray:
    pen = Pen(size)
    kind.draw(pen, style)
    return np.asarray(pen.image)


def first_style(kind: ProductType) -> dict[str, str]:
    return {name: values[0] for name, values in kind.attributes.items()}


def test_at_least_forty_types_in_two_families() -> None:
    assert len(TYPES) >= 40
    families = [kind.family for kind in TYPES]
    assert families.count("wear") >= 20
    assert families.count("home") >= 20


def test_all_types_are_drawn_differently() -> None:
    drawings = [outline(kind, first_style(kind)) for kind in TYPES]
    for i, one in enumerate(drawings):
        for j in range(i):
            changed = np.mean(one != drawings[j])
            assert changed > 0.03, (TYPES[i].name, TYPES[j].name)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_style_value_changes_the_drawing_and_stays_inside(kind: ProductType) -> None:
    base = first_style(kind)
    plain = outline(kind, base)
    assert 0.02 < (plain > 0).mean() < 0.9
    for name, values in kind.attributes.items():
        for value in values[1:]:
            changed = outline(kind, {**base, name: value})
            assert (changed != plain).any(), (name, value)
            edge = np.concatenate([changed[0], changed[-1], changed[:, 0], changed[:, -1]])
            assert not edge.any(), (name, value)


def test_every_material_and_pattern_is_visible() -> None:
    tiles = [texture(m, 64) for m in ("denim", "linen", "wool", "wood", "rattan", "leather")]
    assert all(tile.std() > 0.02 for tile in tiles)
    cushion = next(i for i, kind in enumerate(TYPES) if kind.name == "cushion")
    product = make_product(0, 0, cushion)
    images = {
        name: np.asarray(render_sprite(dataclasses.replace(product, pattern=name), 64))
        for name in PATTERNS
    }
    assert len({image.tobytes() for image in images.values()}) == len(PATTERNS)
    for name in PATTERNS[1:]:
        assert 0.05 < pattern_mask(name, 1, 64).mean() < 0.8


def test_named_colours_and_shades_are_apart() -> None:
    swatches = [shade_rgb(colour, shade) for colour in COLOURS for shade in range(len(SHADES))]
    gaps = np.abs(np.array(swatches)[:, None] - np.array(swatches)[None]).max(axis=-1)
    np.fill_diagonal(gaps, 1.0)
    assert gaps.min() > 0.02


def test_oklch_matches_known_srgb_values() -> None:
    # sRGB red (1, 0, 0) is OKLCH (0.62796, 0.25768, 29.234) by CSS Color 4.
    np.testing.assert_allclose(oklch_to_srgb(0.62796, 0.25768, 29.234), [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(oklch_to_srgb(0.5999, 0.0, 0.0), [0.5] * 3, atol=0.01)
