"""Reads the images of an evaluation set, wherever they are, to compare the corpus with them.

An image that cannot be read is an error, never skipped: its copies in the corpus would go unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from array_record.python import array_record_module

from data_prep.images import FORMATS, inspect_image, resolve_image, sign
from data_prep.inputs import file_format, iterate_rows
from data_prep.schema import PrepConfig
from data_prep.schema_images import EvaluationSetConfig, ImageConfig
from data_prep.sources import image_value
from vitscale.data.records import SHARD_NAME, parse_example
from vitscale.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PIECE_IMAGES = 1024  # image files that are signed together


@dataclass(frozen=True)
class Piece:
    """Part of an evaluation set that one worker reads: a file of rows, a shard, or some image files."""

    kind: str  # "rows", "shard" or "images"
    paths: tuple[Path, ...]


def list_pieces(item: EvaluationSetConfig) -> list[Piece]:
    path = Path(item.path)
    if path.is_file():
        file_format(path)
        return [Piece("rows", (path,))]
    if not path.is_dir():
        raise UserError(f"evaluation set {item.name}: {path} does not exist.")
    shards = [(p, SHARD_NAME.fullmatch(p.name)) for p in sorted(path.glob("*.array_record"))]
    if shards:
        chosen = [p for p, match in shards if match and item.split in ("", match["split"])]
        if not chosen:
            raise UserError(
                f"evaluation set {item.name}: no shards of split {item.split!r} in {path}."
            )
        return [Piece("shard", (p,)) for p in chosen]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"evaluation set {item.name}: {path} holds neither shards nor image files.")
    return [
        Piece("images", tuple(files[i : i + PIECE_IMAGES]))
        for i in range(0, len(files), PIECE_IMAGES)
    ]


def sign_piece(
    item: EvaluationSetConfig, place: int, piece: Piece, config: PrepConfig
) -> Iterator[dict[str, object]]:
    """Rows of `SIGNATURES_SCHEMA`; `place` is the set's index."""
    # What is too small to train on may be judged on, and copied.
    usable = PrepConfig(
        config.sources, images=ImageConfig(), max_image_pixels=config.max_image_pixels
    )
    for name, data in read_images(item, piece):
        seen = inspect_image(data, usable, with_thumbnail=True)
        if seen.problem is not None:
            raise UserError(
                f"evaluation set {item.name}: {name}: {seen.problem}; copies of it could not be found, "
                f"so mend it ({', '.join(FORMATS)}) or take it out."
            )
        yield sign(name, data, seen.thumbnail, config.dedup.crops, place)


def read_images(item: EvaluationSetConfig, piece: Piece) -> Iterator[tuple[str, bytes]]:
    """(name, encoded bytes) of each image of a piece."""
    if piece.kind == "images":
        for path in piece.paths:
            yield str(path), path.read_bytes()
    elif piece.kind == "shard":
        yield from _read_shard(piece.paths[0])
    else:
        yield from _read_rows(item, piece.paths[0])


def _read_shard(path: Path) -> Iterator[tuple[str, bytes]]:
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        for index in range(reader.num_records()):
            example = parse_example(reader.read([index])[0])
            yield example.id, example.image
    finally:
        reader.close()


def _read_rows(item: EvaluationSetConfig, path: Path) -> Iterator[tuple[str, bytes]]:
    root = Path(item.image_root or path.parent).resolve()
    count = 0
    for number, row in iterate_rows(path, PIECE_IMAGES, None):
        name = f"{path.name}:{number}"
        if item.image_field not in row:
            raise UserError(
                f"evaluation set {item.name}: {name} has no field {item.image_field!r}; "
                f"it has {', '.join(row)}."
            )
        value = image_value(row[item.image_field])
        data = value.get("image_bytes")
        if value.get("image_path") is not None:
            found = resolve_image(root, value["image_path"])
            if isinstance(found, str):
                raise UserError(f"evaluation set {item.name}: {name}: {found}.")
            data = found.read_bytes()
        if data is None:
            raise UserError(f"evaluation set {item.name}: {name} has no image.")
        count += 1
        yield name, data
    if count == 0:
        raise UserError(f"evaluation set {item.name}: {path} is empty.")
