"""Antialiased resizing of 8-bit RGB on the host: a box of a packed image straight into an array."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitscale.data.crops import Box

try:
    # fast_image_resize (Rust, SIMD): 3 to 4 times Pillow's speed, and within 2 grey levels of its result.
    from cykooz_resizer import rust_lib
except (
    ImportError
):  # it has wheels for x86_64 and macOS; elsewhere Pillow does the same, only slower
    rust_lib = None

RGB8, CONVOLUTION, TRIANGLE = 3, 2, 2  # PixelType.U8x3, Algorithm.convolution, FilterType.bilinear
FILTER_RADIUS = 1.0  # of the triangle filter, in pixels of the smaller of the two images

_thread = threading.local()


@dataclass(frozen=True)
class Patch:
    """Decoded pixels, and the box of them that is wanted.

    Pixels around the box are there for the filter, which reaches `FILTER_RADIUS` x scale beyond it.
    """

    pixels: bytes  # height * width * 3, packed rows of RGB
    width: int
    height: int
    box: Box  # in pixels of this patch


def resize_into(patch: Patch, out: UInt8[np.ndarray, "H W 3"]) -> None:
    """The box of `patch` at the size of `out`; triangle filter scaled to antialias, as Pillow's `resize(box=)`.

    A box of whole pixels that has the size of `out` already is copied. `out` may have any strides.
    Releases the GIL while it filters.
    """
    rows, columns = out.shape[:2]
    left, upper, right, lower = patch.box
    if (
        (right - left, lower - upper) == (columns, rows)
        and left == int(left)
        and upper == int(upper)
    ):
        pixels = np.frombuffer(patch.pixels, np.uint8).reshape(patch.height, patch.width, 3)
        out[:] = pixels[int(upper) : int(lower), int(left) : int(right)]
        return
    filtered = _pillow(patch, rows, columns) if rust_lib is None else _rust(patch, rows, columns)
    out[:] = np.frombuffer(filtered, np.uint8).reshape(rows, columns, 3)


def filter_margin(extent: float, size: int) -> float:
    """How far beyond a box that is `extent` pixels long the filter reaches when the result is `size` pixels long."""
    return FILTER_RADIUS * max(1.0, extent / size)


def _rust(patch: Patch, rows: int, columns: int) -> bytes:
    if not hasattr(_thread, "resizer"):  # holds scratch memory: one for each thread
        _thread.resizer = rust_lib.RustResizer()
    left, upper, right, lower = patch.box
    options = (
        rust_lib.RustResizeOptions()
        .set_resize_alg(CONVOLUTION, TRIANGLE, 2)
        .set_use_alpha(False)
        .set_crop_box(left, upper, right - left, lower - upper)
    )
    source = rust_lib.Image(patch.width, patch.height, RGB8, patch.pixels)
    result = rust_lib.Image(columns, rows, RGB8, None)
    _thread.resizer.resize(source, result, options)
    return result.buffer()


def _pillow(patch: Patch, rows: int, columns: int) -> bytes:
    size = (patch.width, patch.height)
    image = Image.frombuffer("RGB", size, patch.pixels, "raw", "RGB", 0, 1)
    return image.resize((columns, rows), Image.Resampling.BILINEAR, box=patch.box).tobytes()
