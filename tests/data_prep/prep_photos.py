"""Pictures with structure, so that perceptual hashes mean something, and what people do to pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance


def photo(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """Overlapping shapes of random place, size and colour."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(draw.integers(120, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = draw.uniform(-0.1, 0.9) * width, draw.uniform(-0.1, 0.9) * height
        box = (x, y, x + draw.uniform(0.1, 0.5) * width, y + draw.uniform(0.1, 0.5) * height)
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape(box, fill=tuple(draw.integers(0, 220, 3).tolist()))
    return image


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def crop(image: Image.Image, side: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    width, height = image.width * side, image.height * side
    left, top = (image.width - width) * x, (image.height - height) * y
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


def resize(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)))


def brighten(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)
