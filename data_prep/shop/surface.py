"""Colour, texture and pattern: turns the index image of a product into an RGBA sprite."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from data_prep.shop.pen import PARTS, TONES, part_code

# Colour names as hues of OKLCH (hue in degrees, chroma); the six shades are six lightnesses of each.
COLOURS: dict[str, tuple[float, float]] = {
    "grey": (250.0, 0.006),
    "blue": (262.0, 0.140),
    "beige": (88.0, 0.040),
    "brown": (48.0, 0.058),
    "green": (150.0, 0.130),
    "red": (26.0, 0.190),
    "pink": (2.0, 0.115),
    "teal": (190.0, 0.095),
    "yellow": (98.0, 0.160),
    "purple": (302.0, 0.150),
    "orange": (62.0, 0.165),
    "olive": (124.0, 0.070),
    "turquoise": (228.0, 0.110),
    "magenta": (338.0, 0.190),
}
# OKLab lightness of shade 0 (very dark) ... 5 (very light); below 0.3 all colours look black.
SHADES = (0.30, 0.42, 0.54, 0.66, 0.78, 0.89)
TRIMS = (
    (0.72, 0.53, 0.34),
    (0.36, 0.23, 0.14),
    (0.15, 0.15, 0.16),
    (0.78, 0.62, 0.28),
    (0.70, 0.72, 0.75),
)
PATTERNS = ("plain", "striped", "pinstriped", "diagonal", "dotted", "checked", "plaid", "floral",
            "zigzag", "colour block")  # fmt: skip
GLOSS = {"leather": 0.30, "silk": 0.34, "metal": 0.55, "glass": 0.50, "ceramic": 0.38, "plastic": 0.26,
         "nylon": 0.16, "velvet": 0.10, "wood": 0.08}  # fmt: skip


def oklch_to_srgb(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """`[3] float64` sRGB in 0..1; chroma shrinks until the colour fits the gamut (Ottosson, 2020)."""
    for shrink in np.linspace(1.0, 0.0, 41).tolist():
        a = shrink * chroma * math.cos(math.radians(hue))
        b = shrink * chroma * math.sin(math.radians(hue))
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = np.array(
            [
                4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
                -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
                -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
            ]
        )
        if linear.min() >= -0.002 and linear.max() <= 1.002:
            break
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def shade_rgb(colour: str, shade: int, hue_shift: float = 0.0) -> np.ndarray:
    """`[3] float64` sRGB of a named colour at one of the six shades."""
    hue, chroma = COLOURS[colour]
    return oklch_to_srgb(SHADES[shade], chroma, hue + hue_shift)


def look_up_table(main: np.ndarray, second: np.ndarray, trim: int, material: str) -> np.ndarray:
    """Colours of all codes of an index image: `[codes, 4] float32` RGBA, colours 0..1."""
    parts = {"main": main, "second": second, "trim": TRIMS[trim], "light": (0.93, 0.92, 0.90),
             "dark": (0.14, 0.13, 0.14), "leaf": (0.28, 0.50, 0.24), "glow": (0.98, 0.72, 0.20)}  # fmt: skip
    table = np.zeros((1 + len(PARTS) * TONES, 4), np.float32)
    for part in PARTS:
        for tone in range(-2, 3):
            rgb = np.asarray(parts[part])
            # Shadows multiply; highlights move towards white, so that light products keep theirs.
            factor = (0.58, 0.80, 1.0)[tone + 2] if tone <= 0 else 1.0
            rgb = rgb * factor + max(tone, 0) * 0.13 * (1.0 - rgb)
            table[part_code(part, tone)] = (*rgb, 1.0)
    if material == "glass":
        table[part_code("main", -2) : part_code("main", 2) + 1, 3] = 0.72
    return table


def colour_sprite(
    index: Image.Image, table: np.ndarray, material: str, pattern: str, scale: int
) -> Image.Image:
    """Colours the index image: pattern on the main part, texture on main and second, soft volume on all.

    Returns an RGBA image of the same size. `scale` (0..2) is the size of the pattern's motif.
    """
    size = index.width
    codes = np.asarray(index)
    if pattern != "plain":
        is_main = (codes >= part_code("main", -2)) & (codes <= part_code("main", 2))
        codes = np.where(is_main & pattern_mask(pattern, scale, size), codes + TONES, codes)
    rgba = table[codes]
    textured = (codes > 0) & (codes <= part_code("second", 2))
    light = np.where(textured, texture(material, size), np.float32(1.0))
    light *= _volume(codes > 0)
    rgb = rgba[..., :3] * light[..., None]
    gloss = GLOSS.get(material, 0.0)
    if gloss:
        shine = np.where(textured, gloss * _shine(material, size), np.float32(0.0))[..., None]
        rgb += shine * (1.0 - rgb)
    out = np.empty((size, size, 4), np.uint8)
    np.clip(rgb * 255.0, 0.0, 255.0, out=rgb)
    out[..., :3] = rgb
    out[..., 3] = rgba[..., 3] * 255.0
    return Image.fromarray(out, "RGBA")


def _volume(solid: np.ndarray) -> np.ndarray:
    """`[S, S] float32` factors that darken a product towards its outline, so that it looks round."""
    size = solid.shape[0]
    small = Image.fromarray(solid.astype(np.uint8) * 255, "L").reduce(max(1, size // 32))
    soft = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return 0.72 + soft * np.float32(0.28 / 255.0)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in 0..1: x `[1, S]` and y `[S, 1]`."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]


@lru_cache(maxsize=128)
def pattern_mask(pattern: str, scale: int, size: int) -> np.ndarray:
    """`[S, S] bool`: where a pattern shows the second colour."""
    x, y = _grid(size)
    n = (14.0, 9.0, 6.0)[scale]
    match pattern:
        case "striped":
            mask = (y * n) % 1.0 < 0.42
        case "pinstriped":
            mask = (x * n * 1.2) % 1.0 < 0.28
        case "diagonal":
            mask = ((x + y) * n * 0.8) % 1.0 < 0.45
        case "dotted":
            row = np.floor(y * n)
            u, v = (x * n + 0.5 * (row % 2)) % 1.0 - 0.5, (y * n) % 1.0 - 0.5
            mask = u * u + v * v < 0.075
        case "checked":
            mask = (np.floor(x * n) + np.floor(y * n)) % 2 == 0
        case "plaid":
            u, v = (x * n * 0.7) % 1.0, (y * n * 0.7) % 1.0
            mask = (u < 0.16) | (v < 0.16) | ((u > 0.5) & (u < 0.58)) | ((v > 0.5) & (v < 0.58))
        case "floral":
            m = n * 0.72
            row = np.floor(y * m)
            u, v = (x * m + 0.5 * (row % 2)) % 1.0 - 0.5, (y * m) % 1.0 - 0.5
            radius, angle = np.hypot(u, v), np.arctan2(v, u)
            petals = radius < 0.27 + 0.15 * np.cos(5 * angle)
            mask = petals & (radius > 0.09)
        case "zigzag":
            mask = (y * n + np.abs((x * n * 0.8) % 2.0 - 1.0)) % 1.0 < 0.45
        case "colour block":
            mask = y + 0.12 * (scale - 1) > 0.55
        case _:
            mask = np.zeros((1, 1), bool)
    return np.broadcast_to(mask, (size, size)).copy()


@lru_cache(maxsize=64)
def texture(material: str, size: int) -> np.ndarray:
    """`[S, S] float32` factors around 1: the visible weave, grain or grain-free surface of a material."""
    x, y = _grid(size)
    rng = np.random.default_rng(np.random.SeedSequence([11, *material.encode()]))
    noise = rng.standard_normal((size, size)).astype(np.float32)
    match material:
        case "denim":
            relief = 0.16 * (((x + y) * 34) % 1.0 < 0.5) - 0.08 + 0.05 * noise
        case "linen":
            relief = 0.10 * (((x * 30) % 1.0 < 0.5) ^ ((y * 30) % 1.0 < 0.5)) - 0.05 + 0.05 * noise
        case "wool":
            relief = 0.14 * np.sin(2 * np.pi * (y * 22 + 0.6 * np.abs((x * 22) % 2.0 - 1.0)))
        case "leather":
            relief = 0.07 * soft_noise(rng, size, 26)
        case "velvet":
            relief = 0.15 * soft_noise(rng, size, 7)
        case "wood":
            warp = soft_noise(rng, size, 4)
            relief = 0.13 * np.sin(2 * np.pi * (y * 13 + 0.9 * warp)) + 0.04 * noise
        case "rattan":
            cell = (np.floor(x * 18) + np.floor(y * 18)) % 2
            ridge = np.where(
                cell == 0, np.sin(np.pi * ((x * 18) % 1.0)), np.sin(np.pi * ((y * 18) % 1.0))
            )
            relief = 0.42 * ridge - 0.26
        case "metal":
            relief = 0.05 * np.broadcast_to(noise[:, :1], (size, size))
        case "cotton":
            relief = 0.035 * noise
        case _:
            relief = np.zeros((size, size), np.float32)
    return (1.0 + relief).astype(np.float32)


@lru_cache(maxsize=32)
def _shine(material: str, size: int) -> np.ndarray:
    """`[S, S] float32` in 0..1: where light catches a glossy material."""
    x, y = _grid(size)
    if material in ("metal", "glass"):
        band = np.exp(-(((x - 0.34) / 0.05) ** 2)) + 0.5 * np.exp(-(((x - 0.66) / 0.03) ** 2))
        shine = band + 0.0 * y
    elif material == "silk":
        shine = 0.5 + 0.5 * np.sin(2 * np.pi * (1.6 * x + 2.6 * y))
        shine = shine**3
    else:
        shine = np.exp(-(((x - 0.36) / 0.16) ** 2) - (((y - 0.34) / 0.16) ** 2))
    return np.broadcast_to(shine, (size, size)).astype(np.float32)


def soft_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """`[size, size] float32` smooth noise with about `cells` bumps a side and unit-ish variance."""
    coarse = Image.fromarray(rng.standard_normal((cells + 1, cells + 1)).astype(np.float32), "F")
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
