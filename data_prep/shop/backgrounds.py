"""Surfaces that photos of the generated catalogue are taken on: floors, walls, cloth, grass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from data_prep.shop.surface import soft_noise

KINDS = ("planks", "bricks", "tiles", "carpet", "grass", "plaster", "marble", "wallpaper", "cloth",
         "concrete", "sand", "parquet", "bokeh", "gradient")  # fmt: skip
FLOORS = frozenset({"planks", "tiles", "carpet", "grass", "marble", "concrete", "sand", "parquet"})
VARIANTS = 3  # of every kind, in other colours
MARGIN = 1.5  # a tile is this much larger than the frame, so that every crop is another one


@lru_cache(maxsize=2)
def background_tiles(size: int) -> tuple[tuple[Image.Image, ...], tuple[Image.Image, ...]]:
    """(floors, walls): RGB images, each `MARGIN * size` pixels wide and high. The same in every process."""
    floors: list[Image.Image] = []
    walls: list[Image.Image] = []
    for number, kind in enumerate(KINDS * VARIANTS):
        rng = np.random.default_rng(np.random.SeedSequence([77, number]))
        tile = Image.fromarray(_paint(kind, rng, int(size * MARGIN)), "RGB")
        (floors if kind in FLOORS else walls).append(tile)
    return tuple(floors), tuple(walls)


def _paint(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """`[n, n, 3] uint8` of one surface in a random colour of that surface."""
    axis = np.arange(n, dtype=np.float32) / n
    x, y = axis[None, :], axis[:, None]
    noise = rng.standard_normal((n, n)).astype(np.float32)
    soft = soft_noise(rng, n, 6)
    base = _PALETTE[kind]
    light: np.ndarray
    match kind:
        case "planks" | "parquet":
            rows = rng.integers(5, 10)
            row = np.floor(y * rows)
            offset = (row * 0.37) % 1.0 if kind == "planks" else row * 0.5
            column = np.floor(x * (2 if kind == "planks" else 5) + offset)
            shade = ((row * 7.3 + column * 3.1) % 1.7) / 1.7 - 0.5
            seam = ((y * rows) % 1.0 < 0.05) | (
                (x * (2 if kind == "planks" else 5) + offset) % 1.0 < 0.02
            )
            light = 0.16 * shade + 0.05 * np.sin(60 * y + 4 * soft) - 0.22 * seam
        case "bricks":
            rows = rng.integers(8, 13)
            offset = 0.5 * (np.floor(y * rows) % 2)
            joint = ((y * rows) % 1.0 < 0.13) | ((x * rows / 2 + offset) % 1.0 < 0.06)
            cell = np.floor(y * rows) * 5.7 + np.floor(x * rows / 2 + offset) * 2.3
            light = 0.20 * joint + 0.10 * ((cell % 1.9) / 1.9 - 0.5) + 0.04 * noise
        case "tiles":
            m = rng.integers(4, 9)
            checker = (np.floor(x * m) + np.floor(y * m)) % 2
            grout = ((x * m) % 1.0 < 0.04) | ((y * m) % 1.0 < 0.04)
            light = rng.choice([0.0, 0.30]) * (checker - 0.5) - 0.18 * grout + 0.02 * soft
        case "carpet":
            light = 0.07 * noise + 0.05 * soft
        case "grass":
            light = 0.10 * soft_noise(rng, n, 40) + 0.07 * noise
        case "marble":
            light = -0.16 * np.exp(-np.abs(np.sin(7 * (x + y) + 2.2 * soft)) * 9) + 0.03 * soft
        case "wallpaper":
            m = rng.integers(5, 14)
            light = 0.14 * (((x * m) % 1.0 < 0.5) - 0.5) + 0.0 * y
        case "cloth":
            folds = np.sin(9 * x + 5 * y + 1.6 * soft)
            light = 0.10 * folds + 0.03 * noise
        case "concrete" | "sand" | "plaster":
            light = 0.06 * soft + (0.06 if kind == "sand" else 0.02) * noise
        case "bokeh":
            light = 0.16 * soft_noise(rng, n, 5)
        case _:
            light = 0.35 * (y - 0.5) + 0.15 * (x - 0.5)
    tint = rng.uniform(0.75, 1.15) * (
        np.asarray(base[rng.integers(len(base))]) + rng.normal(0, 0.03, 3)
    )
    rgb = tint.astype(np.float32) * (1.0 + light[..., None])
    if kind == "bokeh":
        rgb += 0.12 * np.stack([soft_noise(rng, n, 4) for _ in range(3)], axis=-1)
    return (np.clip(rgb, 0.0, 1.0) * 255).astype(np.uint8)


_WOODS = ((0.66, 0.47, 0.30), (0.48, 0.32, 0.20), (0.78, 0.65, 0.48), (0.55, 0.50, 0.45))
_WALLS = (
    (0.85, 0.83, 0.78),
    (0.62, 0.70, 0.74),
    (0.70, 0.74, 0.62),
    (0.80, 0.66, 0.60),
    (0.45, 0.50, 0.58),
)
_PALETTE: dict[str, tuple[tuple[float, float, float], ...]] = {
    "planks": _WOODS,
    "parquet": _WOODS,
    "bricks": ((0.62, 0.33, 0.26), (0.70, 0.68, 0.65), (0.50, 0.42, 0.38)),
    "tiles": ((0.80, 0.80, 0.78), (0.55, 0.62, 0.66), (0.72, 0.62, 0.50)),
    "carpet": ((0.55, 0.50, 0.47), (0.42, 0.36, 0.45), (0.66, 0.61, 0.52), (0.35, 0.42, 0.45)),
    "grass": ((0.34, 0.50, 0.22), (0.42, 0.54, 0.26)),
    "plaster": _WALLS,
    "marble": ((0.88, 0.87, 0.86), (0.70, 0.70, 0.72)),
    "wallpaper": _WALLS,
    "cloth": ((0.80, 0.79, 0.80), (0.62, 0.52, 0.56), (0.52, 0.58, 0.66), (0.74, 0.70, 0.58)),
    "concrete": ((0.60, 0.60, 0.60), (0.48, 0.48, 0.50)),
    "sand": ((0.82, 0.74, 0.58), (0.74, 0.66, 0.54)),
    "bokeh": ((0.45, 0.42, 0.40), (0.58, 0.56, 0.48), (0.40, 0.48, 0.50)),
    "gradient": ((0.75, 0.75, 0.76), (0.60, 0.66, 0.72), (0.72, 0.62, 0.62)),
}
