"""Opens images from untrusted records: inside the image folder, of bounded size, decodable."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")


def resolve_image(root: Path, name: str) -> Path | str:
    """The path of image `name` below `root`, or the reason why there is none.

    `root` must be resolved already. The resolved path is compared, so that neither "..", an
    absolute path nor a symbolic link leads out of the folder.
    """
    if "\x00" in name:
        return "image path holds a NUL character"
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            return "image path leaves the image folder"
        if not path.is_file():
            return "image file does not exist"
    except OSError:  # a name that is too long, a loop of links
        return "image path cannot be resolved"
    return path


def check_image(data: bytes, max_pixels: int) -> str | None:
    """The reason to reject encoded bytes, or None. The size is read from the header, undecoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    return "image has more pixels than max_image_pixels"
                image.load()
    except Image.DecompressionBombError:
        return "image has more pixels than max_image_pixels"
    except Image.UnidentifiedImageError:
        return "image is not JPEG, PNG or WebP"
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return "image cannot be decoded"
    return None
