"""Where the members of uncompressed tar files lie, found by going through each file once."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from vitscale.data.sources.storage import Entry, Location, map_reads
from vitscale.errors import UserError

LABEL_SUFFIXES = ("cls", "txt", "json")
JSON_SUFFIX = "json"
MAX_LABEL_BYTES = 65_536  # of a label member that is kept as text
# One request an MiB instead of one a member where the tar is not local.
BUFFER = {True: 65_536, False: 2**20}
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("tar", pa.int32()),
        ("suffix", pa.list_(pa.string())),
        ("offset", pa.list_(pa.int64())),
        ("size", pa.list_(pa.int64())),
        ("text", pa.list_(pa.string())),  # of label members
    ]
)


def write_tar_index(path: Path, folder: Location, entries: Sequence[Entry]) -> None:
    """Writes one row an example, tar after tar."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        numbers = range(len(entries))
        for start in range(0, len(entries), 64):
            some = numbers[start : start + 64]
            batches = map_reads(
                lambda number: _index_tar(folder.join(entries[number].name), number),
                some,
                local=folder.is_local,
            )
            for batch in batches:
                writer.write_batch(batch)


def _index_tar(location: Location, number: int) -> pa.RecordBatch:
    rows: dict[str, dict] = {}
    with location.open() as file:
        buffered = io.BufferedReader(file, BUFFER[location.is_local])
        for name, offset, size, text in _members(buffered, location):
            key, suffix = split_name(name)
            row = rows.setdefault(
                key,
                {"key": key, "tar": number, "suffix": [], "offset": [], "size": [], "text": []},
            )
            if suffix in row["suffix"]:
                raise UserError(f"{location} holds {name!r} twice, the second at byte {offset:,}.")
            for column, value in zip(
                ("suffix", "offset", "size", "text"), (suffix, offset, size, text), strict=True
            ):
                row[column].append(value)
    return pa.RecordBatch.from_pylist(list(rows.values()), schema=INDEX_SCHEMA)


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix): "dir/0001.seg.png" is the member "seg.png" of "dir/0001"."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def _members(file: io.BufferedReader, location: Location) -> list[tuple]:
    """(name, offset, size, text or None) of every regular file."""
    found = []
    try:
        tar = tarfile.TarFile(fileobj=file)
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # the module would keep every header
            if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
                continue
            text = None
            if member.name.lower().endswith(LABEL_SUFFIXES) and member.size <= MAX_LABEL_BYTES:
                content = tar.extractfile(member)
                assert content is not None
                text = content.read().decode("utf-8", "replace")
            found.append((member.name, member.offset_data, member.size, text))
        end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{location} is damaged, cut short or compressed: {error}, in its "
            f"{location.entry().size:,} bytes; only whole, uncompressed tar files are read."
        ) from error
    _check_end(file, end, location)
    return found


def _check_end(file: io.BufferedReader, offset: int, location: Location) -> None:
    """The module takes a broken header, and a file that just stops, for the end."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(
            f"{location} is damaged or cut short at byte {offset:,}: neither a member nor the end "
            "mark follows; write or copy it again."
        )
