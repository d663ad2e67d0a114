"""Rows of a data set that TFDS prepared as ArrayRecord; also of a folder of our own shards.

A row has a field for each feature, those within others joined by "/" ("objects/label"): text as text, class labels by
their names, images as their encoded bytes, sequences as lists; and `tfds_id`, the shard's name and the place in it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.config import SourceConfig
from vitscale.errors import UserError

PREFIX = "tfds:"
ID = "tfds_id"
SUFFIX = "array_record"
BLOCK = 64  # records that are read at once


def is_folder(path: Path) -> bool:
    return (path / "features.json").is_file() and (path / "dataset_info.json").is_file()


def is_shard(path: Path) -> bool:
    return SUFFIX in path.name and is_folder(path.parent)


def find_shards(path: Path, split: str) -> list[Path]:
    """The shards of a split, all there and with as many records as the metadata say.

    Args:
      path: a folder that TFDS wrote, or "tfds:" and a name, such as tfds:oxford_iiit_pet:4.0.0.
      split: may be "" where there is but one.
    """
    from vitscale.data.sources.tfds import open_builder

    name = str(path).removeprefix(PREFIX)
    info = open_builder(SourceConfig(kind="tfds", path=name), "").info
    splits = list(info.splits)
    if split not in splits and (split or len(splits) != 1):
        problem = f"has no split {split!r}" if split else "has several splits"
        raise UserError(f"input {path} {problem}: set input_split to one of {', '.join(splits)}.")
    stored = getattr(info.file_format, "value", None)
    if stored != SUFFIX:
        raise UserError(
            f"input {path} is stored as {stored}: prepare it again with file_format={SUFFIX!r}."
        )
    files = info.splits[split or splits[0]].file_instructions
    for file in files:
        found = count_records(Path(str(file.filename)))
        if found != file.examples_in_shard:
            raise UserError(
                f"input {file.filename} has {found} records, its folder's metadata say "
                f"{file.examples_in_shard}; the folder mixes two runs."
            )
    return [Path(str(file.filename)) for file in files]


def metadata_files(folder: Path) -> list[Path]:
    """Files beside the shards that say what their bytes mean."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt"))


def count_records(path: Path) -> int:
    return _open(path).num_records()


def field_names(path: Path) -> list[str]:
    return [*dict.fromkeys([*_leaves(_features(path.parent)), ID])]


def iterate_records(
    path: Path, start: int, stop: int | None, columns: Collection[str] | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the record in its shard from 1, its fields), of records `start .. stop - 1`."""
    import tensorflow_datasets as tfds

    features = _features(path.parent)
    leaves = _leaves(features)
    if columns is not None:
        tops = {name.split("/")[0] for name in columns if name in leaves}
        features = tfds.features.FeaturesDict({name: features[name] for name in sorted(tops)})
        leaves = {name: kind for name, kind in leaves.items() if name in columns}
    decoders = {
        name: tfds.decode.SkipDecoding()
        for name, kind in features.items()
        if isinstance(kind, tfds.features.Image)
    }
    reader = _open(path)
    stop = reader.num_records() if stop is None else stop
    for begin in range(start, stop, BLOCK):
        for offset, record in enumerate(_read(reader, path, begin, min(begin + BLOCK, stop))):
            index = begin + offset
            try:
                stored = features.deserialize_example_np(record, decoders=decoders)
                row = {name: _value(_cell(stored, name), kind) for name, kind in leaves.items()}
            except Exception as error:  # of protobuf, or of whichever feature finds something else
                raise UserError(
                    f"input {path}, record {index + 1} is not what features.json says: {error}."
                ) from error
            yield index + 1, {ID: f"{path.name}__{index}", **row}


def _read(reader: Any, path: Path, start: int, stop: int) -> list[bytes]:
    try:
        return reader.read(start, stop)
    except RuntimeError as error:
        raise UserError(f"input {path} cannot be read at record {start + 1}: {error}.") from error


def _open(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise UserError(f"input {path} does not exist; write or copy it again.")
    try:
        reader = ArrayRecordReader(str(path))
    except RuntimeError as error:
        raise UserError(f"input {path} cannot be opened: {error}.") from error
    if not reader.ok():
        raise UserError(
            f"input {path} is damaged or cut short: no index of its records at its end; write it again."
        )
    return reader


@functools.lru_cache(maxsize=8)
def _features(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeatureConnector.from_config(str(folder))


def _leaves(features: Any, prefix: str = "") -> dict[str, Any]:
    """Features that hold no others, by their names; those in a sequence without it."""
    found: dict[str, Any] = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a Sequence
        if hasattr(inner, "items"):
            found |= _leaves(inner, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = inner
    return found


def _cell(stored: Mapping[str, Any], name: str) -> Any:
    cell: Any = stored
    for part in name.split("/"):
        cell = cell[part]
    return cell


def _value(cell: Any, kind: Any) -> Any:
    """A decoded feature as plain Python: class numbers by their names, bytes of text as text."""
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    elif isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, (list, tuple)):
        return [_value(item, kind) for item in cell]
    if hasattr(kind, "names") and isinstance(cell, int):
        return kind.int2str(cell) if cell >= 0 else None  # -1: not labelled
    is_image = hasattr(kind, "encoding_format") or type(kind).__name__ == "Image"
    return cell.decode() if isinstance(cell, bytes) and not is_image else cell
