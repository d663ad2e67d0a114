"""From the bytes of one image to a row of the batch: host side, pure functions, safe from any number of threads.

A JPEG is decoded by libjpeg-turbo, and only as much of it as the wanted box needs (`jpeg`); everything
else goes through Pillow. Every failure is a `BadExample` with a short reason, so that rejects are counted
by reason. Colours are taken as they are stored: ICC profiles are not applied.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitscale.data import jpeg
from vitscale.data.crops import Box, ChooseBox
from vitscale.data.records import BadExample
from vitscale.data.resize import Patch, filter_margin, resize_into

Pixels = UInt8[np.ndarray, "H W 3"]

# Only what a catalogue holds: Pillow's other parsers are attack surface, and sniffing them costs
# time.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SIGNATURES = (jpeg.SIGNATURE, b"\x89PNG", b"RIFF", b"GIF8", b"BM")
# libjpeg's chroma upsampling reads one neighbour, which is two pixels away at most.
CHROMA_MARGIN = 2.0
# Of a box, in pixels: less is a mistake, and rounding would decide what is seen.
LEAST_EXTENT = 1e-3

# `max_pixels` is the limit here; Pillow warns at its own, which the user cannot set.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_into(data: bytes, out: Pixels, choose_box: ChooseBox | None, max_pixels: int) -> None:
    """Decodes a part of an image into `out`, upright, resized with an antialiasing filter.

    The result is that of Pillow's `resize(out's size, BILINEAR, box=box)` of the whole image, to 0.2 grey
    levels on average, and 1.5 at most where a large JPEG is decoded at a reduced scale. Releases the GIL
    in decoding and resizing.

    Args:
        out: uint8 RGB of the wanted size, usually a row of a batch.
        choose_box: from the upright image's width and height to the part to take; None: all of it.
        max_pixels: more than these in the whole image are "too large", and nothing is decoded.

    Raises `BadExample`: "empty", "not an image" (or not of `FORMATS`), "too large", "unsupported" (a
    coding of JPEG that browsers do not show), "truncated", "corrupt". `out` may then hold anything.
    """
    _decode(_open(data, max_pixels), out, choose_box)


def decode_rgb(data: bytes, max_pixels: int) -> Pixels:
    """The whole upright image as RGB: alpha is laid over white, 16 bits are scaled to 8. Raises as `decode_into`."""
    stored = _open(data, max_pixels)
    width, height = stored.turn.upright(stored.width, stored.height)
    out = np.empty((height, width, 3), np.uint8)
    _decode(stored, out, None)
    return out


def image_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height of the upright image in pixels, from the header only. Raises as `decode_into`."""
    stored = _open(data, max_pixels)
    return stored.turn.upright(stored.width, stored.height)


def open_header(data: bytes, max_pixels: int) -> Image.Image:
    """Pillow's view of an image, not yet decoded. Raises `BadExample` as `decode_into` does for headers."""
    if not data:
        raise BadExample("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadExample("too large") from error
    except Exception as error:  # UnidentifiedImageError, or whatever a parser chokes on
        # A known signature with a broken header behind it was an image once.
        raise BadExample("corrupt" if data.startswith(SIGNATURES) else "not an image") from error
    if image.width * image.height > max_pixels:
        raise BadExample("too large")
    return image


class Turn(NamedTuple):
    """From the stored image to the upright one: first the mirroring, then the exchange of rows and columns."""

    mirror_x: bool = False
    mirror_y: bool = False
    transpose: bool = False

    def upright(self, width: int, height: int) -> tuple[int, int]:
        """Size of the upright image, from the stored one's; or the reverse."""
        return (height, width) if self.transpose else (width, height)

    def stored_box(self, box: Box, width: int, height: int) -> Box:
        """A box of the upright image in a stored image of `width` x `height`."""
        left, upper, right, lower = box
        if self.transpose:
            left, upper, right, lower = upper, left, lower, right
        if self.mirror_x:
            left, right = width - right, width - left
        if self.mirror_y:
            upper, lower = height - lower, height - upper
        return (left, upper, right, lower)

    def apply(self, pixels: Pixels) -> Pixels:
        """Stored pixels turned upright: a view."""
        turned = pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return turned.swapaxes(0, 1) if self.transpose else turned


# EXIF orientation 1 .. 8, https://exiftool.org/TagNames/EXIF.html
TURNS = (
    Turn(),
    Turn(mirror_x=True),
    Turn(mirror_x=True, mirror_y=True),
    Turn(mirror_y=True),
    Turn(transpose=True),
    Turn(mirror_y=True, transpose=True),
    Turn(mirror_x=True, mirror_y=True, transpose=True),
    Turn(mirror_x=True, transpose=True),
)


@dataclass(frozen=True)
class _Jpeg:
    """A JPEG whose header was read, for libjpeg-turbo."""

    data: bytes
    header: jpeg.Header

    @property
    def width(self) -> int:
        return self.header.width

    @property
    def height(self) -> int:
        return self.header.height

    @property
    def turn(self) -> Turn:
        return TURNS[self.header.orientation - 1]

    def read(self, box: Box, columns: int, rows: int) -> Patch:
        """The pixels that `box` (of the stored image) needs to be resized to `columns` x `rows`."""
        width, height = box[2] - box[0], box[3] - box[1]
        scale = jpeg.choose_scale(width, height, columns, rows)
        box = _scaled(box, scale, self.width, self.height)
        needed = _with_margin(box, columns, rows, CHROMA_MARGIN)
        region = jpeg.decode_region(self.data, self.header, needed, scale)
        box = _moved(box, region.left, region.upper)
        return Patch(region.pixels, region.width, region.height, box)


@dataclass(frozen=True)
class _Pillow:
    """An image of any format, opened by Pillow."""

    image: Image.Image
    turn: Turn
    width: int
    height: int

    def read(self, box: Box, columns: int, rows: int) -> Patch:
        """As `_Jpeg.read`; decodes the whole image. Raises `BadExample`: "truncated", "corrupt", "too large"."""
        image = self.image
        if image.format == "JPEG":
            width, height = box[2] - box[0], box[3] - box[1]
            scale = jpeg.choose_scale(width, height, columns, rows)
            # Pillow rounds the sizes up, as `_scaled` does, and knows no other scales than these.
            image.draft(None, (self.width // scale, self.height // scale))
            box = _scaled(box, scale, self.width, self.height)
        rgb = _to_rgb(image)
        left, upper, right, lower = _with_margin(box, columns, rows, 0)
        part = (
            max(0, math.floor(left)),
            max(0, math.floor(upper)),
            min(rgb.width, math.ceil(right)),
            min(rgb.height, math.ceil(lower)),
        )
        patch = rgb if part == (0, 0, *rgb.size) else rgb.crop(part)
        return Patch(patch.tobytes(), patch.width, patch.height, _moved(box, part[0], part[1]))


def _open(data: bytes, max_pixels: int) -> _Jpeg | _Pillow:
    """An image with its header read."""
    if not data.startswith(jpeg.SIGNATURE):
        image = open_header(data, max_pixels)
        return _Pillow(image, TURNS[_orientation(image) - 1], image.width, image.height)
    header = jpeg.read_header(data)
    if header.width * header.height > max_pixels:
        raise BadExample("too large")
    if header.components == 4 or not _has_libjpeg():  # libjpeg-turbo does not turn CMYK into RGB
        turn = TURNS[header.orientation - 1]
        return _Pillow(open_header(data, max_pixels), turn, header.width, header.height)
    return _Jpeg(data, header)


def _decode(stored: _Jpeg | _Pillow, out: Pixels, choose_box: ChooseBox | None) -> None:
    width, height = stored.turn.upright(stored.width, stored.height)
    box = (0, 0, width, height) if choose_box is None else choose_box(width, height)
    box = (max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3]))
    if box[2] - box[0] < LEAST_EXTENT or box[3] - box[1] < LEAST_EXTENT:
        raise ValueError(f"the box {box} holds nothing of {width} x {height} pixels")
    rows, columns, _ = out.shape
    columns, rows = stored.turn.upright(columns, rows)
    patch = stored.read(stored.turn.stored_box(box, stored.width, stored.height), columns, rows)
    if stored.turn == TURNS[0]:
        resize_into(patch, out)
        return
    small = np.empty((rows, columns, 3), np.uint8)
    resize_into(patch, small)
    out[:] = stored.turn.apply(small)


def _scaled(box: Box, scale: int, width: int, height: int) -> Box:
    """`box` in an image of `width` x `height` at 1 / `scale`, whose sides are rounded up.

    Where they are, the last pixel stands for less than `scale`: a box never reaches beyond it.
    """
    if scale == 1:
        return box
    left, upper, right, lower = (side / scale for side in box)
    return (left, upper, min(right, -(-width // scale)), min(lower, -(-height // scale)))


def _with_margin(box: Box, columns: int, rows: int, more: float) -> Box:
    """`box` and what the filter sees around it, and `more` pixels on each side; it may leave the image."""
    x = filter_margin(box[2] - box[0], columns) + more
    y = filter_margin(box[3] - box[1], rows) + more
    return (box[0] - x, box[1] - y, box[2] + x, box[3] + y)


def _moved(box: Box, left: float, upper: float) -> Box:
    """`box` seen from a part that begins at (`left`, `upper`)."""
    return (box[0] - left, box[1] - upper, box[2] - left, box[3] - upper)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decodes to RGB as it lies. Raises `BadExample`: "truncated", "corrupt" or "too large"."""
    try:
        image.load()
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        return _convert(image)
    except Image.DecompressionBombError as error:
        raise BadExample("too large") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        raise BadExample("truncated" if truncated else "corrupt") from error


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:  # getexif() is slow, and most images carry none
        return 1
    try:
        value = image.getexif().get(jpeg.ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1
    return value if value in range(1, 9) else 1


def _convert(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey: Pillow's own conversion clips at 255 rather than scales.
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


@functools.cache
def _has_libjpeg() -> bool:
    """Whether JPEGs are decoded by libjpeg-turbo; warns once if not."""
    if not jpeg.available():
        warnings.warn(
            "No libjpeg-turbo 3 was found, so JPEGs are decoded whole by Pillow, at about a third of the "
            "rate: pip install turbojpeg, or install the system's libturbojpeg 3.",
            RuntimeWarning,
            stacklevel=2,
        )
    return jpeg.available()
