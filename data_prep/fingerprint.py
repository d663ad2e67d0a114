"""What near copies of an image have in common: a 256-bit perceptual hash and coarse colours, of it and of its crops.

The hash is that of PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019):
which of the 16 x 16 lowest cosine coefficients of the brightness, without the constants, exceed their median. Two
random photos differ in half of the bits; a re-encoded, resized or brightened copy in a few.

A crop moves all coefficients, so each image also carries the hashes of some of its own crops: a cropped copy has nearly
the hash of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

SIDE = 128  # pixels of the thumbnail that everything is computed from
GRID = 64  # pixels a side whose cosine transform is taken
FREQUENCIES = 16
BITS = FREQUENCIES**2
COLOUR_CELLS = 4  # a side
CODE_BYTES = BITS // 8 + 2 * COLOUR_CELLS**2
# Grey levels of standard deviation, below which a hash would be made of noise.
MIN_CONTRAST = 4.0
# How far the colours of copies may be apart: levels, and a share of the colour's strength, which brightening scales.
COLOUR_LEVELS, COLOUR_SHARE = 16.0, 0.35
POSITIONS = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # of a crop in the image

Thumbnail = UInt8[np.ndarray, "128 128 3"]


@dataclass(frozen=True)
class Fingerprint:
    """Codes of an image, the whole first, then its crops.

    `codes [V, 64] uint8` holds 32 bytes of hash, then the blue and red difference of 4 x 4 cells as int8.
    `margins [256] uint8`: how safely each bit of the whole image's hash is what it is, 255 the safest.
    """

    codes: np.ndarray
    margins: np.ndarray


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright (EXIF), its transparent parts over white, as our decoder shows it."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def thumbnail(image: Image.Image) -> Thumbnail:
    """The whole image squeezed to `[128, 128, 3]`, brightness and the two colour differences."""
    small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small.convert("YCbCr"))


def fingerprint(pixels: Thumbnail, crops: Sequence[float]) -> Fingerprint | None:
    """The fingerprint of a thumbnail; None for an image so plain that its hash would be noise.

    Args:
      crops: sides of the crops as a share of the image's, each taken at the centre and at the four corners.
    """
    brightness = pixels[..., 0].astype(np.float32)
    if brightness.std() < MIN_CONTRAST:
        return None
    rows, columns, cell_rows, cell_columns = _views(tuple(crops))
    coefficients = (rows @ brightness @ columns.transpose(0, 2, 1)).reshape(len(rows), BITS)
    coefficients -= np.median(coefficients, axis=1, keepdims=True)
    hashes = np.packbits(coefficients > 0, axis=1)
    chroma = np.moveaxis(pixels[..., 1:], 2, 0)[:, None].astype(np.float32) - 128.0
    colours = cell_rows @ chroma @ cell_columns.transpose(0, 2, 1)  # [2, V, 4, 4]
    colours = np.rint(colours).clip(-128, 127).astype(np.int8).swapaxes(0, 1)
    codes = np.concatenate([hashes, colours.reshape(len(rows), -1).view(np.uint8)], axis=1)
    distance = np.abs(coefficients[0])
    # The rank says all that is asked, which bits are the weakest, and fits a byte.
    margins = np.argsort(np.argsort(distance, kind="stable"), kind="stable").astype(np.uint8)
    return Fingerprint(codes, margins)


def similar(left: np.ndarray, right: np.ndarray, max_distance: int) -> np.ndarray:
    """Whether codes `[n, 64]` and `[n, 64] uint8` are of near copies: `[n] bool`."""
    size = BITS // 8
    bits = np.bitwise_count(left[:, :size] ^ right[:, :size]).sum(axis=1, dtype=np.int64)
    a = left[:, size:].view(np.int8).astype(np.float32)
    b = right[:, size:].view(np.int8).astype(np.float32)
    limit = COLOUR_LEVELS + COLOUR_SHARE * np.maximum(np.abs(a), np.abs(b))
    return (bits <= max_distance) & (np.abs(a - b) <= limit).all(axis=1)


def num_views(crops: Sequence[float]) -> int:
    return 1 + len(POSITIONS) * len(crops)


@lru_cache(maxsize=8)
def _views(crops: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """Linear maps of thumbnail rows and columns to each view's coefficients `[V, 16, 128]` and cells `[V, 4, 128]`."""
    boxes = [(1.0, 0.0, 0.0), *((side, y, x) for side in crops for y, x in POSITIONS)]
    cosine = scipy.fft.dct(np.eye(GRID), axis=0, norm="ortho")[1 : FREQUENCIES + 1]
    maps: list[list[np.ndarray]] = [[], [], [], []]
    for side, y, x in boxes:
        for place, offset in enumerate((y, x)):
            maps[place].append(cosine @ _resample(side, offset, GRID))
            maps[place + 2].append(_resample(side, offset, COLOUR_CELLS))
    return tuple(np.stack(m).astype(np.float32) for m in maps)


def _resample(side: float, offset: float, count: int) -> Float[np.ndarray, "count 128"]:
    """Averages `count` equal pieces of a crop of `SIDE` pixels; `offset` 0..1 places it between the ends."""
    edges = SIDE * ((1.0 - side) * offset + side * np.arange(count + 1) / count)
    pixel = np.arange(SIDE)
    low = np.maximum(edges[:-1, None], pixel)
    high = np.minimum(edges[1:, None], pixel + 1)
    overlap = np.maximum(high - low, 0.0)
    return overlap / overlap.sum(axis=1, keepdims=True)
