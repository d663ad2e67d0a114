"""From the bytes of one image to RGB pixels of a fixed size: host side, Pillow, pure functions.

Every failure is an `ImageError` with a short reason, so that the callers can count rejects by
reason. Colours are taken as they are stored: ICC profiles are not applied.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "H W 3"]
Size = int | tuple[int, int]  # of the result in pixels: a side of the square, or (height, width)
Box = tuple[float, float, float, float]  # left, upper, right, lower; in pixels, upright

# Only what a catalogue holds: Pillow's other parsers are attack surface, and sniffing them costs
# time.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM")
ORIENTATION_TAG = 0x0112
# What EXIF orientation 2..8 asks for, from https://exiftool.org/TagNames/EXIF.html
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CROP_ATTEMPTS = 10
# A JPEG is decoded at 1/2, 1/4 or 1/8 only if that leaves this many pixels for each pixel of the
# result, so that the antialiased resize still does the filtering. On photos of 400 x 533 the result
# then differs by 0.5 grey levels on average; with 2.0 it would be up to 1.3.
DRAFT_OVERSAMPLING = 3.0

# `max_pixels` is the limit here; Pillow warns at its own, which the user cannot set.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """An image that cannot be used. Rejects are counted by `reason`, one of a few short phrases."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def open_header(data: bytes, max_pixels: int) -> Image.Image:
    """Checks an image's header and leaves it undecoded: the caller may still choose a scale.

    Raises `ImageError`: "empty", "not an image" (or not of `FORMATS`), "too large" (more than
    `max_pixels`, or than the 179 million that Pillow refuses by itself).
    """
    if not data:
        raise ImageError("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too large") from error
    except Exception as error:  # UnidentifiedImageError, or whatever a parser chokes on
        # A known signature with a broken header behind it was an image once.
        raise ImageError("corrupt" if data.startswith(SIGNATURES) else "not an image") from error
    if image.width * image.height > max_pixels:
        raise ImageError("too large")
    return image


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The whole image as upright 8-bit RGB. Raises `ImageError` like the two that it calls."""
    return to_rgb(open_header(data, max_pixels))


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes to upright RGB: alpha is laid over white, 16 bits are scaled to 8.

    Raises `ImageError`: "truncated", "corrupt" or "too large".
    """
    turn = TRANSPOSE.get(_orientation(image))
    try:
        image.load()
        if image.mode != "RGB" or "transparency" in image.info:
            image = _convert(image)
    except Image.DecompressionBombError as error:
        raise ImageError("too large") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        raise ImageError("truncated" if truncated else "corrupt") from error
    upright = image if turn is None else image.transpose(turn)
    upright.info = {}  # the orientation is applied now: nobody may apply it again
    return upright


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the EXIF orientation is applied. Decodes nothing."""
    return image.size if _orientation(image) < 5 else (image.height, image.width)


def sample_crop(
    width: int, height: int, rng: np.random.Generator, min_area: float, aspect: float = 1.0
) -> Box:
    """The Inception crop (Szegedy et al., 2015): `min_area` to 1 of the area, ratio 3/4 to 4/3 of `aspect`.

    Ten attempts, then the largest central box of an allowed ratio, as in torchvision's
    `RandomResizedCrop`. Corners are whole pixels.
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


def random_resized_crop(
    image: Image.Image, size: Size, rng: np.random.Generator, min_area: float = 0.35
) -> Pixels:
    """A random crop (`sample_crop`) resized with an antialiasing filter.

    Args:
        image: from `open_header` (the decoding scale is then chosen for the crop) or `open_image`.
        size: of the result; its aspect ratio is the middle of the crops'.
        rng: decides the box; 40 uniform numbers are taken whatever the image is.
        min_area: smallest share of the image's area.
    """
    width, height = upright_size(image)
    rows, columns = as_pair(size)
    return resize_box(image, size, sample_crop(width, height, rng, min_area, columns / rows))


def as_pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    return size if isinstance(size, tuple) else (size, size)


def resize(image: Image.Image, size: Size) -> Pixels:
    """The whole image squashed to `size`, antialiased."""
    width, height = upright_size(image)
    return resize_box(image, size, (0, 0, width, height))


def resize_box(image: Image.Image, size: Size, box: Box) -> Pixels:
    """The part `box` of the upright image at `size`; triangle filter scaled to antialias."""
    rows, columns = as_pair(size)
    full_width, full_height = upright_size(image)
    _draft(image, (rows, columns), box)
    rgb = to_rgb(image)
    if rgb.size != (full_width, full_height):
        x_scale, y_scale = rgb.width / full_width, rgb.height / full_height
        # Draft sizes are rounded up; min() keeps a box that ends at the border inside of the
        # smaller image.
        box = (
            box[0] * x_scale,
            box[1] * y_scale,
            min(box[2] * x_scale, rgb.width),
            min(box[3] * y_scale, rgb.height),
        )
    if rgb.size != (columns, rows) or box != (0, 0, columns, rows):
        rgb = rgb.resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    return np.asarray(rgb)


def draw_generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one draw: a pure function of the run's seed and the draw's global
    number."""
    return np.random.Generator(np.random.PCG64([seed, position]))


def _draft(image: Image.Image, size: tuple[int, int], box: Box) -> None:
    """Asks libjpeg for a smaller decoding when `box` stays large enough (`DRAFT_OVERSAMPLING`)."""
    if image.format != "JPEG":
        return
    shrink = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0]) / DRAFT_OVERSAMPLING
    if shrink >= 2:
        image.draft(None, (math.floor(image.width / shrink), math.floor(image.height / shrink)))


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:  # getexif() is slow, and most images carry none
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1
    return value if value in TRANSPOSE else 1


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
