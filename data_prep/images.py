"""Opens images from untrusted records: inside the image folder, of bounded size, decodable."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
REJECTS_SCHEMA = pa.schema([("id", pa.string()), ("stage", pa.string()), ("reason", pa.string())])


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


def check_batch(
    batch: pa.RecordBatch, root: Path, max_pixels: int
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Splits a `RECORD_SCHEMA` batch into usable records, their `image_path` resolved, and rejects.

    A record without an image is usable: it gets labels, and no example in the shards.
    """
    paths: list[str | None] = []
    reasons: list[str | None] = []
    columns = (batch.column(name).to_pylist() for name in ("problem", "image_path", "image_bytes"))
    for problem, name, data in zip(*columns, strict=True):
        path = None
        if problem is None and name is not None:
            found = resolve_image(root, name)
            if isinstance(found, Path):
                path, data = str(found), found.read_bytes()
            else:
                problem = found
        if problem is None and data is not None:
            problem = check_image(data, max_pixels)
        paths.append(path)
        reasons.append(problem)
    stages = ["read" if p is not None else "images" for p in batch.column("problem").to_pylist()]
    good = pa.array([reason is None for reason in reasons])
    bad = pc.invert(good)
    place = batch.schema.get_field_index("image_path")
    usable = batch.set_column(place, batch.schema.field(place), pa.array(paths, pa.string()))
    rejects = pa.RecordBatch.from_arrays(
        [batch.column("id"), pa.array(stages, pa.string()), pa.array(reasons, pa.string())],
        schema=REJECTS_SCHEMA,
    )
    return usable.filter(good), rejects.filter(bad)
