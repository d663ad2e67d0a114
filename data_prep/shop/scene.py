"""Pictures of products: the catalogue shot, a photo in the wild, a scene of several products."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.shop.backgrounds import background_tiles

# Everything is composed at twice the final size and reduced: edges come out smooth.
SUPERSAMPLE = 2
SCENE_GRIDS = {
    1: (1, 1),
    2: (2, 1),
    3: (2, 2),
    4: (2, 2),
    5: (3, 2),
}  # products -> columns, rows of the layout

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PhotoConfig:
    """How hard the photos in the wild are. Probabilities and sizes are per photo."""

    min_scale: float = 0.50  # longest side of the product as a share of the frame
    max_scale: float = 0.90
    max_rotation: float = 25.0  # degrees, either way
    flip: float = 0.3  # mirrored
    shear: float = 0.10  # largest sideways slant
    clutter: float = 0.6  # things lying around
    other_product: float = 0.25  # a smaller product of the same split in a corner
    occlusion: float = 0.15  # something in front of an edge of the product
    lighting: float = 0.18  # largest relative change of brightness
    colour_cast: float = 0.06  # largest relative change of red against blue
    blur: float = 0.25
    noise: float = 3.0  # standard deviation of sensor noise, of 255
    jpeg_quality_min: int = 45
    jpeg_quality_max: int = 92


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The bytes of an RGB image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def catalogue_shot(sprite: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """The product upright on a clean, nearly white ground with a faint shadow: RGB `size` x `size`."""
    canvas = SUPERSAMPLE * size
    ground = int(rng.integers(238, 256))
    image = Image.new("RGB", (canvas, canvas), (ground, ground, ground))
    scale = rng.uniform(0.80, 0.92)
    placed = place(sprite, canvas, (0.5 * canvas, 0.5 * canvas), scale * canvas)
    _drop_shadow(image, placed, 0.02, 0.22)
    image.paste(placed, (0, 0), placed)
    return image.reduce(SUPERSAMPLE)


def wild_photo(
    sprite: Image.Image,
    other: Image.Image | None,
    rng: np.random.Generator,
    size: int,
    photo: PhotoConfig,
) -> Image.Image:
    """The product as a customer would photograph it: RGB `size` x `size`.

    `other` is the sprite of another product, which appears small in a corner; None leaves it out.
    """
    canvas = SUPERSAMPLE * size
    image = background(rng, canvas)
    if rng.random() < photo.clutter:
        _draw_clutter(ImageDraw.Draw(image), rng, canvas)
    if other is not None:
        corner = (rng.choice([0.14, 0.86]) * canvas, rng.choice([0.16, 0.84]) * canvas)
        small = place(other, canvas, corner, rng.uniform(0.22, 0.34) * canvas, rng.uniform(-30, 30))
        image.paste(small, (0, 0), small)
    scale = rng.uniform(photo.min_scale, photo.max_scale)
    slack = 0.5 * (1.0 - scale) + 0.03
    centre = (
        canvas * (0.5 + rng.uniform(-slack, slack)),
        canvas * (0.5 + rng.uniform(-slack, slack)),
    )
    angle = float(np.clip(rng.normal(0, 0.5), -1, 1)) * photo.max_rotation
    shear = rng.uniform(-photo.shear, photo.shear)
    placed = place(sprite, canvas, centre, scale * canvas, angle, shear, rng.random() < photo.flip)
    _drop_shadow(image, placed, rng.uniform(0.02, 0.06), rng.uniform(0.25, 0.5))
    image.paste(placed, (0, 0), placed)
    if rng.random() < photo.occlusion:
        _draw_occluder(ImageDraw.Draw(image), rng, canvas, placed.getbbox())
    image = image.reduce(SUPERSAMPLE)
    if rng.random() < photo.blur:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 0.9) * size / 64))
    return relight(image, rng, photo)


def scene_photo(
    sprites: Sequence[Image.Image], rng: np.random.Generator, size: int, photo: PhotoConfig
) -> tuple[Image.Image, list[Box]]:
    """Several products in one room, with the box `(x0, y0, x1, y1)` in pixels around each."""
    canvas = SUPERSAMPLE * size
    image = background(rng, canvas)
    if rng.random() < photo.clutter:
        _draw_clutter(ImageDraw.Draw(image), rng, canvas)
    columns, rows = SCENE_GRIDS[len(sprites)]
    cells = rng.permutation(columns * rows)[: len(sprites)]
    boxes: list[Box] = []
    for sprite, cell in zip(sprites, cells, strict=True):
        room = canvas / max(columns, rows)
        x = (cell % columns + 0.5 + rng.uniform(-0.06, 0.06)) * canvas / columns
        y = (cell // columns + 0.5 + rng.uniform(-0.06, 0.06)) * canvas / rows
        length = room * rng.uniform(0.68, 0.92)
        placed = place(
            sprite, canvas, (x, y), length, rng.normal(0, 6), 0.0, rng.random() < photo.flip
        )
        _drop_shadow(image, placed, 0.015, 0.35)
        image.paste(placed, (0, 0), placed)
        x0, y0, x1, y1 = placed.getbbox() or (0, 0, 1, 1)
        boxes.append(tuple(v / SUPERSAMPLE for v in (x0, y0, x1, y1)))  # type: ignore[arg-type]
    return relight(image.reduce(SUPERSAMPLE), rng, photo), boxes


def place(
    sprite: Image.Image,
    canvas: int,
    centre: tuple[float, float],
    length: float,
    angle: float = 0.0,
    shear: float = 0.0,
    flip: bool = False,
) -> Image.Image:
    """The sprite on a transparent square canvas, its longest side `length` pixels, turned by `angle` degrees."""
    x0, y0, x1, y1 = sprite.getbbox() or (0, 0, sprite.width, sprite.height)
    scale = length / max(x1 - x0, y1 - y0, 1)
    cos, sin = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
    # Forward map of sprite to canvas: rotation * shear * flip; PIL wants its inverse.
    sign = -1.0 if flip else 1.0
    a, b, c, d = sign * cos, shear * cos - sin, sign * sin, shear * sin + cos
    det = a * d - b * c
    ia, ib, ic, id_ = d / det, -b / det, -c / det, a / det
    mx, my = 0.5 * (x0 + x1), 0.5 * (y0 + y1)
    px, py = centre
    matrix = (ia, ib, mx - ia * px - ib * py, ic, id_, my - ic * px - id_ * py)
    return sprite.transform(
        (canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def background(rng: np.random.Generator, canvas: int) -> Image.Image:
    """A surface seen from above, or a wall above a floor."""
    floors, walls = background_tiles(canvas)
    first = (floors + walls)[rng.integers(len(floors) + len(walls))]
    image = _crop(first, rng, canvas, canvas)
    if rng.random() < 0.5:
        horizon = int(canvas * rng.uniform(0.5, 0.8))
        image.paste(_crop(walls[rng.integers(len(walls))], rng, canvas, horizon), (0, 0))
        floor = floors[rng.integers(len(floors))]
        image.paste(_crop(floor, rng, canvas, canvas - horizon), (0, horizon))
        skirting = tuple(int(v) for v in rng.integers(60, 240, 1).repeat(3))
        ImageDraw.Draw(image).line(
            [(0, horizon), (canvas, horizon)], skirting, max(1, canvas // 50)
        )
    return image


def _crop(tile: Image.Image, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    x = int(rng.integers(tile.width - width + 1))
    y = int(rng.integers(tile.height - height + 1))
    return tile.crop((x, y, x + width, y + height))


def _drop_shadow(image: Image.Image, placed: Image.Image, shift: float, strength: float) -> None:
    """Darkens the image below and beside the product: a blurred, shifted copy of its outline."""
    canvas = image.width
    small = placed.getchannel("A").reduce(max(1, canvas // 32)).filter(ImageFilter.BoxBlur(1))
    mask = small.point(lambda v: int(v * strength)).resize(
        (canvas, canvas), Image.Resampling.BILINEAR
    )
    offset = int(shift * canvas)
    image.paste((0, 0, 0), (offset // 2, offset, offset // 2 + canvas, offset + canvas), mask)


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    grey = rng.uniform(40, 215)
    r, g, b = np.clip(grey + rng.normal(0, 26, 3), 0, 255)
    return int(r), int(g), int(b)


def _draw_clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator, canvas: int) -> None:
    """Books, cups, cables, leaves: a few plain shapes of muted colours, anywhere."""
    for _ in range(rng.integers(1, 5)):
        x, y = rng.uniform(0, canvas, 2)
        w, h = rng.uniform(0.06, 0.22, 2) * canvas
        colour = _muted(rng)
        match int(rng.integers(4)):
            case 0:
                draw.rectangle((x, y, x + w, y + h), colour)
                draw.rectangle((x, y, x + w, y + 0.2 * h), _muted(rng))
            case 1:
                draw.ellipse((x, y, x + w, y + w), colour)
                draw.ellipse((x + 0.2 * w, y + 0.2 * w, x + 0.8 * w, y + 0.8 * w), _muted(rng))
            case 2:
                points = rng.uniform(0, canvas, (3, 2))
                draw.line([(px, py) for px, py in points.tolist()], colour, max(1, canvas // 60))
            case _:
                points = np.array([x, y]) + rng.uniform(-1, 1, (5, 2)) * [w, h]
                draw.polygon([(px, py) for px, py in points.tolist()], colour)


def _draw_occluder(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, canvas: int, box: tuple[int, ...] | None
) -> None:
    """A strip or a disc in front of one side of the product, covering up to about a fifth of it."""
    x0, y0, x1, y1 = box or (0, 0, canvas, canvas)
    w, h = x1 - x0, y1 - y0
    depth = rng.uniform(0.08, 0.20)
    colour = _muted(rng)
    match int(rng.integers(4)):
        case 0:
            draw.rectangle((0, y1 - depth * h, canvas, canvas), colour)
        case 1:
            draw.rectangle((0, 0, x0 + depth * w, canvas), colour)
        case 2:
            draw.rectangle((x1 - depth * w, 0, canvas, canvas), colour)
        case _:
            r = rng.uniform(0.14, 0.22) * max(w, h)
            x, y = x0 + rng.uniform(0.1, 0.9) * w, rng.choice([y0, y1])
            draw.ellipse((x - r, y - r, x + r, y + r), colour)


def relight(image: Image.Image, rng: np.random.Generator, photo: PhotoConfig) -> Image.Image:
    """Brightness, colour temperature, a gradient of light over the frame, and sensor noise."""
    n = image.width
    gain = 1.0 + rng.uniform(-photo.lighting, photo.lighting)
    cast = rng.uniform(-photo.colour_cast, photo.colour_cast)
    axis = np.linspace(-0.5, 0.5, n, dtype=np.float32)
    gx, gy = rng.uniform(-1, 1, 2).astype(np.float32) * np.float32(photo.lighting)
    plane = np.float32(gain) * (1.0 + gx * axis[None, :] + gy * axis[:, None])
    pixels = np.asarray(image).astype(np.float32)
    pixels *= plane[..., None] * np.array([1.0 + cast, 1.0, 1.0 - cast], np.float32)
    if photo.noise:
        pixels += np.float32(photo.noise) * rng.standard_normal((n, n, 1), np.float32)
    return Image.fromarray(np.clip(pixels, 0.0, 255.0).astype(np.uint8), "RGB")
