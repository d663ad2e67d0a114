"""ArrayRecord shards that `vitscale prep` wrote (`vitscale.data.records`); local or under gs://."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from vitscale.config import SourceConfig
from vitscale.data import records
from vitscale.data.records import BadExample, Example, Labels
from vitscale.data.sources import labels as label_tools
from vitscale.data.sources.array_records import ArrayRecords, RecordFile
from vitscale.data.sources.base import (
    SAMPLING_WEIGHT,
    Read,
    batches_of,
    example_or_raise,
    source_name,
)
from vitscale.data.sources.cache import build_once
from vitscale.data.sources.labels import NO_LABELS, Classes, IdEncoder
from vitscale.data.sources.storage import Location, fingerprint, locate
from vitscale.errors import UserError


class ShardSource:
    """Examples of one split. Opening reads three small files of the folder and no shard."""

    def __init__(
        self, config: SourceConfig, root: str, classes: Mapping[str, Sequence[str]]
    ) -> None:
        self._opened_with = (config, root, classes)
        self.name = source_name(config)
        self._folder = _folder(config, root)
        if config.split is None:
            raise UserError(f"source {config.path}: shards need a split, for example 'train'.")
        self._split, self._sampling = config.split, config.sampling
        self._records = ArrayRecords(_record_files(self._folder, config.split))
        stored = read_classes(config, root)
        # Unless told which fields to read, those that the run has no classes for are passed over.
        wanted = config.fields or tuple(field for field in stored if field in classes)
        self.classes = label_tools.classes_of(classes, wanted, self.name)
        self._encoders = {
            name: IdEncoder.of(list(stored[name]), self.classes[name]) for name in wanted
        }

    def __reduce__(self) -> tuple:
        return ShardSource, self._opened_with

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return example_or_raise(self.read([index])[0])

    def read(self, indices: Sequence[int]) -> list[Read]:
        stored = self._records.read(indices)
        return [self._parse(i, record) for i, record in zip(indices, stored, strict=True)]

    def example_id(self, index: int) -> str:
        stored = self._stored(index, self._records.read([index])[0])
        return stored.example_id if isinstance(stored, BadExample) else stored.id

    def field_labels(self, field: str) -> list[Labels]:
        reads = (read for batch in batches_of(len(self)) for read in self.read(batch))
        return [NO_LABELS if isinstance(read, BadExample) else read.labels[field] for read in reads]

    @functools.cached_property
    def sampling_weights(self) -> Float[np.ndarray, " N"] | None:
        if self._sampling == "uniform":
            return None
        index = self._folder.join(f"index-{self._split}.parquet")
        if not index.is_file():
            raise UserError(
                f"{self._folder} has no {index.name}, which holds the sampling weights."
            )
        made_from = fingerprint([index.entry()])
        path = build_once(
            self._folder,
            f"weights-{self._split}.npy",
            made_from,
            lambda path: _write_weights(path, index, len(self)),
        )
        return np.load(path, mmap_mode="r")

    @functools.cached_property
    def unknown_labels(self) -> Mapping[str, int]:
        counts = dict.fromkeys(self._encoders, 0)
        narrow = {name: e for name, e in self._encoders.items() if not e.knows_all}
        if not narrow:
            return counts
        for batch in batches_of(len(self)):
            for index, record in zip(batch, self._records.read(batch), strict=True):
                stored = self._stored(index, record)
                if isinstance(stored, Example):
                    for name, encode in narrow.items():
                        counts[name] += encode.count_unknown(stored.labels.get(name, NO_LABELS))
        return counts

    def _stored(self, index: int, record: bytes | BadExample) -> Read:
        """The example in the shard's own numbering."""
        if isinstance(record, BadExample):
            return record
        try:
            return records.parse_example(record)
        except (
            Exception
        ):  # protobuf's DecodeError, or a feature that is missing or is of another type
            name, position = self._records.place(index)
            return BadExample("unreadable record", f"{name}#{position}")

    def _parse(self, index: int, record: bytes | BadExample) -> Read:
        stored = self._stored(index, record)
        if isinstance(stored, BadExample):
            return stored
        try:
            found = {
                field: encode(stored.labels.get(field, NO_LABELS))
                for field, encode in self._encoders.items()
            }
        except BadExample as error:
            return BadExample(error.reason, stored.id)
        return Example(stored.id, stored.image, found, stored.sampling_weight)


def open_source(
    config: SourceConfig, root: str, classes: Mapping[str, Sequence[str]]
) -> ShardSource:
    return ShardSource(config, root, classes)


def read_classes(config: SourceConfig, root: str) -> Classes:
    """classes.json, restricted to the fields that the config names."""
    folder = _folder(config, root)
    path = folder.join(records.CLASSES_FILE)
    if not path.is_file():
        raise UserError(
            f"{folder} has no {path.name}; it is not a finished folder of shards of `vitscale prep`."
        )
    stored = json.loads(path.read_bytes())
    label_tools.require(config.fields, stored, f"the folder of shards {folder}", "label field")
    return {field: stored[field] for field in config.fields or stored}


def field_names(config: SourceConfig, root: str) -> list[str]:
    return list(read_classes(config, root))


def split_names(config: SourceConfig, root: str) -> list[str]:
    """The splits that a folder of shards holds."""
    names = (entry.name for entry in _folder(config, root).files("*.array_record"))
    return sorted(
        {match["split"] for name in names if (match := records.SHARD_NAME.fullmatch(name))}
    )


def _folder(config: SourceConfig, root: str) -> Location:
    folder = locate(root, config.path)
    if folder.uri.startswith("s3://"):
        raise UserError(
            f"{folder}: ArrayRecord reads local folders and gs:// only; copy or mount it."
        )
    return folder


def _record_files(folder: Location, split: str) -> list[RecordFile]:
    names = [entry.name for entry in folder.files("*.array_record")]
    shards = records.order_shards(names, split, str(folder))
    lengths = _shard_lengths(folder, split, len(shards))
    if not sum(lengths):
        raise UserError(f"{folder}: split {split!r} is empty.")
    return [
        RecordFile(folder.join(name), length, 0, length)
        for name, length in zip(shards, lengths, strict=True)
    ]


def _shard_lengths(folder: Location, split: str, count: int) -> list[int]:
    """Records of each shard, from TFDS's metadata or else from the index, without opening a shard."""
    info = folder.join("dataset_info.json")
    index = folder.join(f"index-{split}.parquet")
    if info.is_file():
        splits = {s["name"]: s for s in json.loads(info.read_bytes()).get("splits", ())}
        if split in splits:
            lengths = [int(length) for length in splits[split]["shardLengths"]]
            if len(lengths) != count:
                raise UserError(
                    f"{info} counts {len(lengths)} shards of split {split!r}, the folder has {count}; "
                    "it mixes two runs of `vitscale prep`."
                )
            return lengths
    if not index.is_file():
        raise UserError(
            f"{folder} has neither {info.name} with split {split!r} nor {index.name}; it is not a "
            "finished folder of shards of `vitscale prep`."
        )
    lengths_found = np.zeros(count, np.int64)
    with index.open() as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["shard"]):
            shards = batch.column("shard").to_numpy()
            if len(shards) and shards.max() >= count:
                raise UserError(f"{folder}: {index.name} names shards that are not there.")
            lengths_found += np.bincount(shards, minlength=count)
    return lengths_found.tolist()


def _write_weights(path: Path, index: Location, count: int) -> None:
    """The sampling weights of an index as a .npy of `[count] float32`."""
    with index.open() as file:
        table = pq.ParquetFile(file)
        if table.metadata.num_rows != count:
            raise UserError(
                f"{index} has {table.metadata.num_rows} rows, its shards {count} records; the folder "
                "mixes two runs of `vitscale prep`."
            )
        weights = np.lib.format.open_memmap(path, "w+", np.float32, (count,))
        done = 0
        for batch in table.iter_batches(columns=[SAMPLING_WEIGHT]):
            weights[done : done + len(batch)] = batch.column(SAMPLING_WEIGHT).to_numpy()
            done += len(batch)
        weights.flush()
