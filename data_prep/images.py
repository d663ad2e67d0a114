"""Opens images from untrusted records: inside the image folder, of bounded size, decodable."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from data_prep.dedup import CANDIDATES_SCHEMA
from data_prep.fingerprint import Thumbnail, fingerprint, num_views, thumbnail, to_rgb
from data_prep.lsh import SIGNATURES_SCHEMA
from data_prep.schema import PrepConfig

FORMATS = ("JPEG", "PNG", "WEBP")
REJECTS_SCHEMA = pa.schema([("id", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
TOO_LARGE = "image has more pixels than max_image_pixels"
MAX_IMAGE_BYTES = 256 * 2**20
TOO_MANY_BYTES = "image file has more than 256 MiB"


@dataclass(frozen=True)
class Inspection:
    """What is known of an encoded image: why it cannot be used, or its size and thumbnail."""

    problem: str | None
    pixels: int = 0  # width * height
    thumbnail: Thumbnail | None = None


@dataclass(frozen=True)
class Checked:
    """A batch of records taken apart.

    `usable` and `rejected` are of `RECORD_SCHEMA`, `image_path` resolved (null where there is no such image);
    `rejects` of `REJECTS_SCHEMA` has a row for each rejected record, `signatures` of `SIGNATURES_SCHEMA` and `pixels`
    `[n] int64` for each usable one.
    """

    usable: pa.RecordBatch
    rejected: pa.RecordBatch
    rejects: pa.RecordBatch
    signatures: pa.RecordBatch
    pixels: list[int]

    def candidates(self) -> pa.RecordBatch:
        """What decides which copy of an image stays (`CANDIDATES_SCHEMA`), a row for each usable record."""
        texts = self.usable.column("texts").to_pylist()
        characters = [sum(len(text["text"]) for text in row or []) for row in texts]
        columns = [self.usable.column("id"), self.usable.column("group")]
        columns += [pa.array(characters, pa.int64()), pa.array(self.pixels, pa.int64())]
        return pa.RecordBatch.from_arrays(columns, schema=CANDIDATES_SCHEMA)


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


def inspect_image(data: bytes, config: PrepConfig, with_thumbnail: bool = False) -> Inspection:
    """Checks encoded bytes. The size is read from the header, and an image of a bad size is not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                problem = _size_problem(image.width, image.height, config)
                if problem is not None:
                    return Inspection(problem)
                pixels = image.width * image.height
                image.load()
                return Inspection(None, pixels, thumbnail(image) if with_thumbnail else None)
    except Image.DecompressionBombError:
        return Inspection(TOO_LARGE)
    except Image.UnidentifiedImageError:
        return Inspection("image is not JPEG, PNG or WebP")
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return Inspection("image cannot be decoded")


def read_image(path: Path) -> bytes | None:
    """The bytes of an image file; None for a file that is too large to be one."""
    with open(path, "rb") as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    return data if len(data) <= MAX_IMAGE_BYTES else None


def check_batch(batch: pa.RecordBatch, root: Path, config: PrepConfig) -> Checked:
    """Checks the images of a `RECORD_SCHEMA` batch.

    A record without an image is usable: it gets labels, and no example in the shards.
    """
    paths: list[str | None] = []
    reasons: list[str | None] = []
    pixels: list[int] = []
    signatures: list[dict[str, object]] = []
    columns = ("id", "problem", "image_path", "image_bytes")
    for name, problem, place, data in zip(
        *(batch.column(c).to_pylist() for c in columns), strict=True
    ):
        path = None
        if problem is None and place is not None:
            found = resolve_image(root, place)
            if isinstance(found, str):
                problem = found
            else:
                path, data = str(found), read_image(found)
                problem = TOO_MANY_BYTES if data is None else None
        seen = Inspection(problem)
        if problem is None and data is not None:
            seen = inspect_image(data, config, config.dedup.compares_pixels)
        paths.append(path)
        reasons.append(seen.problem)
        if seen.problem is None:
            pixels.append(seen.pixels)
            signatures.append(sign(name, data, seen.thumbnail, config.dedup.crops))
    stages = ["read" if p is not None else "images" for p in batch.column("problem").to_pylist()]
    good = pa.array([reason is None for reason in reasons], pa.bool_())
    column = batch.schema.get_field_index("image_path")
    resolved = batch.set_column(column, batch.schema.field(column), pa.array(paths, pa.string()))
    rejects = pa.RecordBatch.from_arrays(
        [batch.column("id"), pa.array(stages, pa.string()), pa.array(reasons, pa.string())],
        schema=REJECTS_SCHEMA,
    )
    return Checked(
        resolved.filter(good),
        resolved.filter(pc.invert(good)),
        rejects.filter(pc.invert(good)),
        pa.RecordBatch.from_pylist(signatures, schema=SIGNATURES_SCHEMA),
        pixels,
    )


def sign(
    name: str,
    data: bytes | None,
    small: Thumbnail | None,
    crops: tuple[float, ...],
    place: int = -1,
) -> dict[str, object]:
    """A row of `SIGNATURES_SCHEMA`. `place` is the index of an evaluation set, -1 for the corpus."""
    row: dict[str, object] = {"set": place, "id": name, "views": num_views(crops)}
    row["sha256"] = None if data is None else hashlib.sha256(data).digest()
    found = None if small is None else fingerprint(small, crops)
    if found is not None:
        row |= {"codes": found.codes.tobytes(), "margins": found.margins.tobytes()}
    return row


def reencode(data: bytes, side: int, quality: int) -> bytes:
    """Encoded bytes of an image with a longer side of at most `side` pixels; a smaller one's own bytes.

    The result is an upright JPEG, so that readers which ignore EXIF show it right; its colour profile is kept.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if max(image.size) <= side:
                return data
            profile = image.info.get("icc_profile")
            small = to_rgb(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, icc_profile=profile)
    return buffer.getvalue()


def _size_problem(width: int, height: int, config: PrepConfig) -> str | None:
    if width * height > config.max_image_pixels:
        return TOO_LARGE
    if min(width, height) < config.images.min_side:
        return "image has a side below images.min_side"
    ratio = config.images.max_aspect_ratio
    if ratio is not None and max(width, height) > ratio * min(width, height):
        return "image has an aspect ratio above images.max_aspect_ratio"
    return None
