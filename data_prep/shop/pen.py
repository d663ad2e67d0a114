"""How the generated catalogue draws: a pen in unit coordinates, and the registry of product types.

A product is drawn as an *index image*: every pixel holds a code for a part (main fabric, second colour, trim, ...)
and a tone. One look-up table then colours it (surface.py), so that a shape is written once and drawn fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Part = Literal["main", "second", "trim", "light", "dark", "leaf", "glow", "hole"]
Point = tuple[float, float]
Style = Mapping[
    str, str
]  # attribute -> the phrase that names its value, e.g. {"sleeve": "long sleeve"}

PARTS: tuple[Part, ...] = ("main", "second", "trim", "light", "dark", "leaf", "glow")
TONES = 5  # tones -2 (deep shadow) ... 2 (highlight) of every part


def part_code(part: Part, tone: int = 0) -> int:
    """Index value of a part at a tone; 0 is transparent."""
    return 0 if part == "hole" else 1 + PARTS.index(part) * TONES + tone + 2


class Pen:
    """Draws into a square index image `[size, size] uint8`; coordinates are 0..1 with y downwards.

    `wide` and `tall` stretch the drawing about its centre: the proportions of one product.
    """

    def __init__(self, size: int, wide: float = 1.0, tall: float = 1.0) -> None:
        self.size = size
        self.image = Image.new("L", (size, size), 0)
        self._draw = ImageDraw.Draw(self.image)
        self._wide, self._tall = wide * size, tall * size

    def _xy(self, points: Sequence[Point], mirrored: bool) -> list[Point]:
        half, sign = self.size / 2, -1.0 if mirrored else 1.0
        return [
            (half + sign * (x - 0.5) * self._wide, half + (y - 0.5) * self._tall) for x, y in points
        ]

    def _box(self, x0: float, y0: float, x1: float, y1: float, mirrored: bool) -> list[float]:
        (ax, ay), (bx, by) = self._xy(((x0, y0), (x1, y1)), mirrored)
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]

    def poly(
        self, points: Sequence[Point], part: Part = "main", tone: int = 0, both: bool = False
    ) -> None:
        """A filled polygon; `both` adds its mirror image."""
        for mirrored in (False, True)[: 1 + both]:
            self._draw.polygon(self._xy(points, mirrored), part_code(part, tone))

    def blob(
        self, points: Sequence[Point], part: Part = "main", tone: int = 0, both: bool = False
    ) -> None:
        """A closed smooth curve through the points (Catmull-Rom), filled."""
        self.poly(smooth(points), part, tone, both)

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        part: Part = "main",
        tone: int = 0,
        radius: float = 0.0,
        both: bool = False,
    ) -> None:
        """A rectangle; `radius` rounds its corners."""
        for mirrored in (False, True)[: 1 + both]:
            box = self._box(x0, y0, x1, y1, mirrored)
            if radius:
                self._draw.rounded_rectangle(box, radius * self.size, part_code(part, tone))
            else:
                self._draw.rectangle(box, part_code(part, tone))

    def oval(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        part: Part = "main",
        tone: int = 0,
        both: bool = False,
    ) -> None:
        """An ellipse in a box."""
        for mirrored in (False, True)[: 1 + both]:
            self._draw.ellipse(self._box(x0, y0, x1, y1, mirrored), part_code(part, tone))

    def pie(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        start: float,
        end: float,
        part: Part = "main",
        tone: int = 0,
    ) -> None:
        """The part of an ellipse cut off by its chord, angles in degrees clockwise from the right."""
        self._draw.chord(self._box(x0, y0, x1, y1, False), start, end, part_code(part, tone))

    def arc(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        start: float,
        end: float,
        width: float = 0.02,
        part: Part = "main",
        tone: int = 0,
    ) -> None:
        """A stroke along an ellipse, angles in degrees clockwise from the right."""
        stroke = max(1, round(width * self.size))
        box = self._box(x0, y0, x1, y1, False)
        self._draw.arc(box, start, end, part_code(part, tone), stroke)

    def line(
        self,
        points: Sequence[Point],
        width: float = 0.02,
        part: Part = "main",
        tone: int = 0,
        both: bool = False,
    ) -> None:
        """A polyline with round joints."""
        stroke = max(1, round(width * self.size))
        for mirrored in (False, True)[: 1 + both]:
            xy = self._xy(points, mirrored)
            self._draw.line(xy, part_code(part, tone), stroke, joint="curve")


def smooth(points: Sequence[Point], steps: int = 6) -> list[Point]:
    """Samples a closed Catmull-Rom curve through `points` at `steps` places a segment."""
    p = np.asarray(points, np.float64)
    basis = _catmull_rom(steps)
    window = np.stack([np.roll(p, shift, axis=0) for shift in (1, 0, -1, -2)])  # [4, n, 2]
    curve = np.einsum("sk,knc->nsc", basis, window).reshape(-1, 2)
    return [(x, y) for x, y in curve.tolist()]


@lru_cache(maxsize=4)
def _catmull_rom(steps: int) -> np.ndarray:
    t = np.arange(steps) / steps
    powers = np.stack([np.ones_like(t), t, t**2, t**3], axis=1)
    matrix = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    return powers @ matrix


@dataclass(frozen=True)
class ProductType:
    """One type of product: how it is drawn, what it is made of and what people call it."""

    name: str
    family: Literal["wear", "home"]
    forms: tuple[str, ...]  # what people call it, singular; the first is the usual one
    place: str  # topic of the boards it is pinned to
    materials: tuple[str, ...]
    patterned: float  # probability of a pattern other than plain
    attributes: Mapping[str, tuple[str, ...]]  # style attribute -> phrases
    draw: Callable[[Pen, Style], None]


REGISTRY: dict[str, ProductType] = {}


def product_type(
    *forms: str,
    family: Literal["wear", "home"],
    place: str,
    materials: str,
    patterned: float = 0.5,
    **attributes: tuple[str, ...],
) -> Callable[[Callable[[Pen, Style], None]], Callable[[Pen, Style], None]]:
    """Registers a drawing function as a product type named by its first surface form."""

    def register(draw: Callable[[Pen, Style], None]) -> Callable[[Pen, Style], None]:
        name = forms[0]
        REGISTRY[name] = ProductType(
            name, family, forms, place, tuple(materials.split()), patterned, attributes, draw
        )
        return draw

    return register
