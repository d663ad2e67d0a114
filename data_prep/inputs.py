"""The input's files and their rows: JSONL and CSV (also gzipped), Parquet, WebDataset tars, TFDS's ArrayRecord.

A file that cannot be read is a `UserError` that names the place; no row is ever skipped. Large files are read in pieces
by several workers; the rows and their order do not depend on the pieces.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import inputs_tar, inputs_tfds
from vitscale.errors import UserError

FORMATS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json.gz": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
RECORDS = "tfds"  # format of a shard of ArrayRecord, whose folder says what it holds
PIECE_BYTES = 64 * 2**20  # about; a worker reads one piece at a time
MAX_LINE_BYTES = 256 * 2**20
BOM = b"\xef\xbb\xbf"  # that some editors write before UTF-8

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """Part of a file: bytes of JSONL, row groups of Parquet, records of ArrayRecord. `stop=None`: to the end."""

    path: Path
    start: int = 0
    stop: int | None = None

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Line:
    """Place of a row that was read from the middle of a file: `number` lines after byte `start`.

    Its number in the file is counted when it is told, which few rows need.
    """

    path: Path
    start: int
    number: int

    def __str__(self) -> str:
        return str(_lines_before(self.path, self.start) + self.number)


Place = int | Line


@dataclass(frozen=True)
class RowPlace:
    """Where a row lies, for people: "catalogue.jsonl:17"."""

    file: str
    place: Place

    def __str__(self) -> str:
        return f"{self.file}:{self.place}"


def find_inputs(path: Path, split: str = "") -> list[Path]:
    """The input's files in order: the file itself, or all files of a known format in a folder.

    Args:
      path: a file, a folder, or "tfds:" with the name of a data set that TFDS has prepared.
      split: of a data set of TFDS.
    """
    if str(path).startswith(inputs_tfds.PREFIX) or inputs_tfds.is_folder(path):
        return inputs_tfds.find_shards(path, split)
    if not path.exists():
        raise UserError(f"input {path} does not exist.")
    if path.is_file():
        file_format(path)
        return [path]
    files = sorted(p for p in path.iterdir() if p.is_file() and _format_of(p) is not None)
    if not files:
        raise UserError(
            f"input folder {path} holds no file that ends in {', '.join(FORMATS)}; a folder of images "
            "needs a CSV of their texts."
        )
    return files


def file_format(path: Path) -> str:
    if inputs_tfds.is_shard(path):
        return RECORDS
    found = _format_of(path)
    if found is None:
        hint = "; unpack it to .tar" if path.name.endswith((".tar.gz", ".tgz")) else ""
        raise UserError(
            f"input {path} is of an unknown format: supported are {', '.join(FORMATS)}, and the "
            f"ArrayRecord shards of a folder that TFDS wrote{hint}."
        )
    return found


def metadata_files(files: Iterable[Path]) -> list[Path]:
    """Files besides the input's own that say what its bytes mean."""
    folders = dict.fromkeys(path.parent for path in files if inputs_tfds.is_shard(path))
    return [path for folder in folders for path in inputs_tfds.metadata_files(folder)]


def list_pieces(files: Iterable[Path], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The files in pieces of about `piece_bytes`, in order. CSV, gzip and tar files are whole pieces."""
    return [piece for path in files for piece in _pieces_of(path, piece_bytes)]


def iterate_rows(
    source: Path | Piece, batch_rows: int, columns: list[str] | None = None
) -> Iterator[tuple[Place, Row]]:
    """(line or row number from 1, row as a mapping). A file that cannot be read is a `UserError`.

    Args:
      columns: fields that are wanted; where reading only these is cheaper, a row has no others. None: all.
    """
    piece = source if isinstance(source, Piece) else Piece(source)
    path = piece.path
    kind = file_format(path)
    try:
        if kind == "jsonl":
            yield from _iterate_jsonl(piece)
        elif kind == "csv":
            yield from _iterate_csv(path)
        elif kind == "parquet":
            yield from _iterate_parquet(piece, batch_rows, columns)
        elif kind == "webdataset":
            yield from inputs_tar.iterate_examples(path, columns)
        else:
            yield from inputs_tfds.iterate_records(path, piece.start, piece.stop, columns)
    except UnicodeDecodeError as error:
        raise UserError(f"input {path} is not valid UTF-8: {error.reason}.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"input {path} is not a whole gzip file: {error}.") from error
    except (pa.ArrowException, OSError, csv.Error) as error:  # pages that are damaged raise OSError
        raise UserError(f"input {path} cannot be read: {error}.") from error


def column_names(path: Path) -> list[str]:
    """Fields that the file declares for all its rows; none where the rows say it."""
    kind = file_format(path)
    if kind == RECORDS:
        return inputs_tfds.field_names(path)
    return list(_open_parquet(path).schema_arrow.names) if kind == "parquet" else []


def _pieces_of(path: Path, piece_bytes: int) -> list[Piece]:
    kind = file_format(path)
    if kind == "jsonl" and path.suffix != ".gz":
        return _cut_bytes(path, path.stat().st_size, piece_bytes)
    if kind == "parquet":
        metadata = _open_parquet(path).metadata
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        return _cut(path, sizes, piece_bytes)
    if kind == RECORDS:
        records = inputs_tfds.count_records(path)
        each = path.stat().st_size // max(records, 1)
        return _cut(path, [each] * records, piece_bytes)
    return [Piece(path)]


def _cut_bytes(path: Path, size: int, piece_bytes: int) -> list[Piece]:
    starts = range(0, size, piece_bytes)
    if len(starts) < 2:
        return [Piece(path)]
    return [Piece(path, start, min(start + piece_bytes, size)) for start in starts]


def _cut(path: Path, sizes: list[int], piece_bytes: int) -> list[Piece]:
    """Runs of parts, each of the fewest that come to `piece_bytes`."""
    pieces, start, total = [], 0, 0
    for stop, size in enumerate(sizes, 1):
        total += size
        if total >= piece_bytes and stop < len(sizes):
            pieces.append(Piece(path, start, stop))
            start, total = stop, 0
    return [*pieces, Piece(path, start, len(sizes))] if pieces else [Piece(path)]


def _iterate_jsonl(piece: Piece) -> Iterator[tuple[Place, Row]]:
    """The lines that begin in the piece."""
    path = piece.path
    with _open_bytes(path) as file:
        begin = _next_line(file, piece.start)
        position, number = begin, 0
        while piece.stop is None or position < piece.stop:
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                break
            number += 1
            place: Place = Line(path, begin, number) if begin else number
            row = _parse_line(line.removeprefix(BOM) if position == 0 else line, path, place)
            position += len(line)
            if row is not None:
                yield place, row


def _parse_line(line: bytes, path: Path, place: Place) -> Row | None:
    """The record of a line; None for an empty line."""
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"input {path}, line {place}: longer than {MAX_LINE_BYTES >> 20} MiB.")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"input {path}, line {place} is not valid UTF-8: {error.reason} at byte {error.start}."
        ) from error
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"input {path}, line {place}: not JSON ({error.msg}, column {error.colno})."
        ) from error
    except RecursionError as error:
        raise UserError(f"input {path}, line {place}: JSON that is nested too deep.") from error
    if not isinstance(row, dict):
        raise UserError(f"input {path}, line {place}: a record must be a JSON object.")
    return row


def _next_line(file: IO[bytes], start: int) -> int:
    """Goes to the first line that begins at byte `start` or later; returns where that is."""
    if start == 0:
        return 0
    position = file.seek(start - 1)
    while part := file.readline(2**20):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position


@functools.lru_cache(maxsize=64)
def _lines_before(path: Path, stop: int) -> int:
    count = 0
    with open(path, "rb") as file:
        while stop > 0 and (block := file.read(min(stop, 2**20))):
            count += block.count(b"\n")
            stop -= len(block)
    return count


def _iterate_csv(path: Path) -> Iterator[tuple[Place, Row]]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long description
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)  # else an open quote swallows the rest
        names = [name for name in reader.fieldnames or () if name]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"input {path}: the header names {twice[0]!r} twice.")
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise UserError(
                    f"input {path}, line {reader.line_num}: the row does not have the "
                    f"{len(reader.fieldnames or ())} cells of the header."
                )
            # An empty cell is the only way that a CSV can say "nothing".
            yield reader.line_num, {key: value or None for key, value in row.items()}


def _iterate_parquet(
    piece: Piece, batch_rows: int, columns: list[str] | None
) -> Iterator[tuple[Place, Row]]:
    file = _open_parquet(piece.path)
    metadata = file.metadata
    stop = metadata.num_row_groups if piece.stop is None else piece.stop
    number = sum(metadata.row_group(i).num_rows for i in range(piece.start))
    groups = list(range(piece.start, stop))
    for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"input {path} is not a Parquet file: {error}.") from error


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _format_of(path: Path) -> str | None:
    return next((kind for suffix, kind in FORMATS.items() if path.name.endswith(suffix)), None)
