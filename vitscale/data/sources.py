"""Where examples come from: ArrayRecord shards, or a CSV beside a folder of images.

`collect_classes` decides the class ids of a run; `open_source` opens one source with its labels
mapped to those ids, so that sources with different vocabularies mix, and a checkpoint's classes can
be evaluated on other data.
"""

from __future__ import annotations

import csv
import difflib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from array_record.python.array_record_module import ArrayRecordReader as Reader
from jaxtyping import Float

from vitscale.config import SourceConfig
from vitscale.data import records
from vitscale.data.decode import ImageError
from vitscale.data.records import Example, Labels
from vitscale.errors import UserError

MULTI_LABEL_SEPARATOR = "|"  # a CSV cell "red|blue" holds two labels
SAMPLING_WEIGHT_COLUMN = "sampling_weight"
PROBED_IMAGES = 8  # looked for when a CSV is opened, so that a wrong image_root fails at once
NO_LABELS = Labels.of([])


class Source(Protocol):
    """Examples by number. Reading is safe from several threads."""

    name: str
    # Label field -> class names; the label ids of the examples index them.
    classes: Mapping[str, Sequence[str]]
    sampling_weights: Float[np.ndarray, " N"] | None  # None: uniform
    # Field -> labels left out because `classes` has no such value: of a CSV all of them, of shards
    # those that were read.
    unknown_labels: dict[str, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """One example, image undecoded. Raises `ImageError` if only its image cannot be read."""
        ...

    def example_id(self, index: int) -> str:
        """The id alone, without reading the example."""
        ...

    def field_labels(self, field: str) -> list[Labels]:
        """Every example's labels of one field. Cheap for a CSV; shards are read through once."""
        ...


def collect_classes(configs: Sequence[SourceConfig], root: str) -> dict[str, list[str]]:
    """The class names of every label field over all sources; a label's id is its place in the list.

    Shards bring their classes.json, whose order is kept. CSV columns bring their distinct values in
    the rows of the source's split, sorted (as numbers if all of them are integers), after those
    that shards brought.
    """
    classes: dict[str, list[str]] = {}
    values: dict[str, set[str]] = {}
    for config in configs:
        if config.kind == "csv":
            table = _read_csv(config, root)
            for field in config.fields:
                cells = pc.unique(table[field]).to_pylist()
                values.setdefault(field, set()).update(*map(_split_cell, cells))
            continue
        for field, names in _shard_classes(config, root).items():
            known = classes.setdefault(field, [])
            if known[: len(names)] != names[: len(known)]:
                raise UserError(
                    f"the shards in {config.path} and an earlier source number the classes of "
                    f"{field!r} differently; write both with the same vocabulary."
                )
            known.extend(names[len(known) :])
    for field, found in values.items():
        known = classes.setdefault(field, [])
        known.extend(_sorted_values(found - set(known)))
    return classes


def open_source(config: SourceConfig, root: str, classes: Mapping[str, Sequence[str]]) -> Source:
    """Opens a source, its labels mapped to ids in `classes` (of this run, or of a checkpoint).

    A value that its field's classes lack is not a label; `source.unknown_labels` counts those.
    Raises `UserError` for missing files and columns, an empty split, duplicate ids, and a field
    that `classes` does not have.
    """
    kind = CsvSource if config.kind == "csv" else ShardSource
    return kind(config, root, classes)


class CsvSource:
    """Rows of a CSV that name image files under `image_root`.

    A cell of a label column holds a class name, several separated by "|", or nothing: not labelled.
    """

    def __init__(
        self, config: SourceConfig, root: str, classes: Mapping[str, Sequence[str]]
    ) -> None:
        table = _read_csv(config, root)
        self.name = _source_name(config)
        self._file = Path(root, config.path)
        self._paths = table[config.image_column].combine_chunks()
        self._ids = table[config.id_column or config.image_column].combine_chunks()
        self._root = _image_root(config, root)
        self.classes = _classes_of(classes, config.fields, self.name)
        self.unknown_labels = {field: 0 for field in config.fields}
        self._labels = {field: self._encode(field, table[field]) for field in config.fields}
        self.sampling_weights: np.ndarray | None = None
        if config.sampling == "sampling_weight":
            self.sampling_weights = _to_weights(table[SAMPLING_WEIGHT_COLUMN], self._file)
        self._check_ids()
        self._check_paths()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        labels = {field: cells[codes[index]] for field, (codes, cells) in self._labels.items()}
        weight = 1.0 if self.sampling_weights is None else float(self.sampling_weights[index])
        return Example(self.example_id(index), self._read_image(index), labels, weight)

    def example_id(self, index: int) -> str:
        return self._ids[index].as_py()

    def field_labels(self, field: str) -> list[Labels]:
        codes, cells = self._labels[field]
        return [cells[code] for code in codes.tolist()]

    def _read_image(self, index: int) -> bytes:
        path = self._root / self._paths[index].as_py()
        # Links are followed here, not at the start: that would touch every file of a large folder.
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self._root):
            raise self._outside(index)
        try:
            return real.read_bytes()
        except FileNotFoundError as error:
            raise ImageError("missing file") from error
        except OSError as error:
            raise ImageError("unreadable file") from error

    def _encode(self, field: str, column: pa.ChunkedArray) -> tuple[np.ndarray, list[Labels]]:
        """A column as (number of the cell's text `[N] int32`, the labels of each distinct text)."""
        encoded = column.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        counts = np.bincount(codes, minlength=len(encoded.dictionary))
        ids = {value: i for i, value in enumerate(self.classes[field])}
        cells = []
        for text, count in zip(encoded.dictionary.to_pylist(), counts.tolist(), strict=True):
            values = _split_cell(text)
            known = [ids[value] for value in values if value in ids]
            self.unknown_labels[field] += (len(values) - len(known)) * count
            cells.append(Labels.of(known))
        return codes, cells

    def _check_ids(self) -> None:
        empty = np.flatnonzero(pc.equal(self._ids, "").to_numpy(zero_copy_only=False))
        if len(empty):
            raise UserError(f"{self._file}: example {empty[0]} has an empty id or image path.")
        counted = pc.value_counts(self._ids)
        if len(counted) < len(self._ids):
            repeated = counted.filter(pc.greater(counted.field("counts"), 1))
            raise UserError(
                f"{self._file}: the id {repeated[0]['values'].as_py()!r} occurs "
                f"{repeated[0]['counts'].as_py()} times ({len(repeated)} ids repeat); "
                "every row needs its own id."
            )

    def _check_paths(self) -> None:
        suspicious = pc.match_substring_regex(self._paths, r"^/|^\\|(^|/)\.\.(/|$)")
        for index in np.flatnonzero(suspicious.to_numpy(zero_copy_only=False)).tolist():
            path = os.path.normpath(self._root / self._paths[index].as_py())
            if not Path(path).is_relative_to(self._root):
                raise self._outside(index)
        probed = [self._root / p for p in self._paths[:PROBED_IMAGES].to_pylist()]
        if not any(path.is_file() for path in probed):
            raise UserError(
                f"{self._file}: none of its first {len(probed)} images exists, for example "
                f"{probed[0]}; set image_root to the folder that the paths start from."
            )

    def _outside(self, index: int) -> UserError:
        return UserError(
            f"{self._file}: the image path {self._paths[index].as_py()!r} of "
            f"{self.example_id(index)!r} leads outside of {self._root}."
        )


class ShardSource:
    """Shards that `vitscale prep` wrote (`vitscale.data.records`), opened when first read."""

    def __init__(
        self, config: SourceConfig, root: str, classes: Mapping[str, Sequence[str]]
    ) -> None:
        self.name = _source_name(config)
        if config.split is None:
            raise UserError(f"source {config.path}: shards need a split, for example 'train'.")
        folder, split = Path(root, config.path), config.split
        self._paths = records.find_shards(folder, split)
        index = records.read_index(folder, split)
        if len(index) == 0:
            raise UserError(f"{folder}: split {split!r} is empty.")
        self._ids = index["id"].combine_chunks()
        self._shards = index["shard"].to_numpy()
        self._positions = index["position"].to_numpy()
        if self._shards.max() >= len(self._paths):
            raise UserError(f"{folder}: index-{split}.parquet names shards that are not there.")
        self._shard_lengths = np.bincount(self._shards, minlength=len(self._paths))
        self.sampling_weights: np.ndarray | None = None
        if config.sampling == "sampling_weight":
            self.sampling_weights = index["sampling_weight"].to_numpy()
        stored = _shard_classes(config, root)
        # Unless told which fields to read, those that the run has no classes for are passed over.
        wanted = config.fields or tuple(field for field in stored if field in classes)
        self.classes = _classes_of(classes, wanted, self.name)
        self.unknown_labels = {field: 0 for field in wanted}
        self._new_ids = {name: _renumbering(stored[name], self.classes[name]) for name in wanted}
        self._readers: list[Reader | None] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        stored = self._read(int(self._shards[index]), int(self._positions[index]))
        labels = {field: self._renumber(field, stored) for field in self._new_ids}
        return Example(stored.id, stored.image, labels, stored.sampling_weight)

    def example_id(self, index: int) -> str:
        return self._ids[index].as_py()

    def field_labels(self, field: str) -> list[Labels]:
        return [self[index].labels[field] for index in range(len(self))]

    def _read(self, shard: int, position: int) -> Example:
        reader = self._readers[shard] or self._open(shard)
        try:
            return records.parse_example(reader.read([position])[0])
        except Exception as error:  # RuntimeError of the reader, or what protobuf says of garbage
            raise UserError(
                f"shard {self._paths[shard]} cannot be read at record {position}: {error}; "
                "write it again."
            ) from error

    def _open(self, shard: int) -> Reader:
        with self._lock:
            reader = self._readers[shard]
            if reader is not None:
                return reader
            path = self._paths[shard]
            # Random access: reading ahead would throw most of it away.
            options = "readahead_buffer_size:0,max_parallelism:0"
            reader = Reader(str(path), options)
            if not reader.ok():
                raise UserError(f"shard {path} is damaged or cut short; write it again.")
            if reader.num_records() != self._shard_lengths[shard]:
                raise UserError(
                    f"shard {path} has {reader.num_records()} records, its index "
                    f"{self._shard_lengths[shard]}; the folder mixes two runs of `vitscale prep`."
                )
            self._readers[shard] = reader
            return reader

    def _renumber(self, field: str, stored: Example) -> Labels:
        labels, new_ids = stored.labels.get(field, NO_LABELS), self._new_ids[field]
        # Ids that classes.json does not have go to its last entry, which is -1.
        outside = (labels.ids < 0) | (labels.ids >= len(new_ids))
        ids = new_ids[np.where(outside, -1, labels.ids)]
        known = ids >= 0
        if known.all():
            return Labels(ids, labels.weights)
        with self._lock:
            self.unknown_labels[field] += int((~known).sum())
        return Labels(ids[known], labels.weights[known])


def _renumbering(stored: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """`[len(stored) + 1] int64`: the id in `wanted` of each stored class, or -1; -1 at the end."""
    ids = {name: i for i, name in enumerate(wanted)}
    return np.array([ids.get(name, -1) for name in stored] + [-1], np.int64)


def _classes_of(
    classes: Mapping[str, Sequence[str]], fields: Sequence[str], source: str
) -> Mapping[str, Sequence[str]]:
    for field in fields:
        if field not in classes:
            raise UserError(
                f"source {source} reads the label field {field!r}, but there are classes only for "
                f"{', '.join(classes) or 'no field'}."
            )
    return {field: list(classes[field]) for field in fields}


def _source_name(config: SourceConfig) -> str:
    return config.path if config.split is None else f"{config.path}[{config.split}]"


def _shard_classes(config: SourceConfig, root: str) -> dict[str, list[str]]:
    """classes.json, restricted to the fields that the config names."""
    stored = records.read_classes(Path(root, config.path))
    for field in config.fields:
        if field not in stored:
            raise UserError(
                f"the shards in {config.path} have no label field {field!r}: "
                f"{_nearest(field, stored)}"
            )
    return {field: stored[field] for field in config.fields or stored}


def _read_csv(config: SourceConfig, root: str) -> pa.Table:
    """The rows of the source's split, with the columns it needs, all of them strings."""
    path = Path(root, config.path)
    columns = [config.image_column, config.id_column, *config.fields]
    columns += [config.split_column] if config.split is not None else []
    columns += [SAMPLING_WEIGHT_COLUMN] if config.sampling == "sampling_weight" else []
    needed = list(dict.fromkeys(column for column in columns if column is not None))
    header = _csv_header(path)
    for column in needed:
        if column not in header:
            raise UserError(f"{path} has no column {column!r}: {_nearest(column, header)}")
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    convert = pa.csv.ConvertOptions(
        include_columns=needed, column_types=dict.fromkeys(needed, pa.string())
    )
    try:
        table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from error
    if config.split is not None and len(table):
        splits = sorted(pc.unique(table[config.split_column]).to_pylist())
        table = table.filter(pc.equal(table[config.split_column], config.split))
        if not len(table):
            raise UserError(
                f"{path}: split {config.split!r} is empty; the column {config.split_column!r} has "
                f"{', '.join(map(repr, splits))}."
            )
    if not len(table):
        raise UserError(f"{path} is empty: it has a header and no rows.")
    return table


def _csv_header(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"CSV file {path} does not exist (working folder: {Path.cwd()}).")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file))
    except StopIteration:
        raise UserError(f"{path} is empty: it lacks even a header.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as UTF-8 CSV: {error}") from error


def _image_root(config: SourceConfig, root: str) -> Path:
    folder = Path(root, config.path).parent
    if config.image_root is not None:
        folder = Path(root, config.image_root)
    if not folder.is_dir():
        raise UserError(f"source {config.path}: image_root {folder} is not a folder.")
    return folder.resolve()


def _to_weights(column: pa.ChunkedArray, path: Path) -> Float[np.ndarray, " N"]:
    try:
        return pc.cast(column, pa.float32()).to_numpy()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {SAMPLING_WEIGHT_COLUMN!r} must hold numbers: {error}") from error


def _split_cell(cell: str) -> list[str]:
    """The labels in a cell, without repetition, in the order they are written."""
    values = (part.strip() for part in cell.split(MULTI_LABEL_SEPARATOR))
    return list(dict.fromkeys(value for value in values if value))


def _sorted_values(values: set[str]) -> list[str]:
    try:
        return sorted(values, key=lambda value: (int(value), value))
    except ValueError:
        return sorted(values)


def _nearest(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"it has {', '.join(known)}." + "".join(f" Did you mean {n!r}?" for n in near)
