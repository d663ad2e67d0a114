"""Rows of a WebDataset tar, gone through from its beginning to its end.

Members with the same name up to the first dot are one example: `0001.jpg`, `0001.txt`, `0001.json`. Its fields are

    __key__    the name up to the first dot
    __path__   the tar's name and the key, which is unique where keys repeat from tar to tar
    <suffix>   of each other member: bytes of an image, text of anything else
    image      the first member that is an image, where the .json has no such key
    <key>      each key of the .json member
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vitscale.data.sources.tar_index import split_name
from vitscale.errors import UserError

KEY, PATH, IMAGE, JSON = "__key__", "__path__", "image", "json"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_MEMBER_BYTES = 256 * 2**20


def iterate_examples(
    path: Path, columns: Collection[str] | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the example from 1, its fields); only members that can hold one of `columns` are read."""
    done: set[str] = set()
    key, number = None, 0
    members: dict[str, bytes | None] = {}
    with open(path, "rb") as file:
        for name, size, offset in _members(file, path):
            found, suffix = split_name(name)
            if found != key:
                if key is not None:
                    number += 1
                    yield number, _row(path, key, members, columns)
                    done.add(key)
                if found in done:
                    raise UserError(
                        f"input {path}: the members of {found!r} do not lie side by side, at byte "
                        f"{offset:,}; write the tar with sorted names."
                    )
                key, members = found, {}
            if suffix in members:
                raise UserError(
                    f"input {path} holds {name!r} twice, the second at byte {offset:,}."
                )
            wanted = _is_wanted(suffix, columns, members)
            members[suffix] = _content(file, path, name, size, offset) if wanted else None
    if key is not None:
        yield number + 1, _row(path, key, members, columns)


def _is_wanted(suffix: str, columns: Collection[str] | None, members: Mapping[str, Any]) -> bool:
    if columns is None or suffix in columns or suffix == JSON:
        return True
    first = not any(_is_image(known) for known in members)
    return _is_image(suffix) and first and IMAGE in columns


def _members(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, size, offset) of every regular file. A tar that is not whole is a `UserError`."""
    try:
        tar = tarfile.TarFile(fileobj=file)
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # the module would keep every header
            if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
                yield member.name, member.size, member.offset_data
        end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"input {path} is damaged, cut short or compressed: {error}; only whole, uncompressed tar "
            "files are read."
        ) from error
    # The module takes a broken header, and a file that just stops, for the end.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(
            f"input {path} is damaged or cut short at byte {end:,}: neither a member nor the end mark "
            "follows; write or copy it again."
        )


def _content(file: IO[bytes], path: Path, name: str, size: int, offset: int) -> bytes:
    if size > MAX_MEMBER_BYTES:
        raise UserError(
            f"input {path}: {name!r} has {size:,} bytes, more than {MAX_MEMBER_BYTES >> 20} MiB."
        )
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise UserError(
            f"input {path} is cut short within {name!r}, at byte {offset + len(data):,}."
        )
    return data


def _row(
    path: Path,
    key: str,
    members: Mapping[str, bytes | None],
    columns: Collection[str] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {KEY: key, PATH: f"{path.name}/{key}"}
    for suffix, data in members.items():
        if suffix == JSON or data is None:
            continue
        if _is_image(suffix):
            row[suffix] = data
            row.setdefault(IMAGE, data)
        else:
            try:
                row[suffix] = _text(data, path, f"{key}.{suffix}")
            except UserError:
                if columns is not None:
                    raise
                row[suffix] = data  # nobody has said that it is text
    if members.get(JSON) is not None:
        fields = _fields(members[JSON] or b"", path, f"{key}.{JSON}")
        twice = sorted(fields.keys() & (row.keys() - {IMAGE}))
        if twice:
            raise UserError(f"input {path}: {key!r} has {twice[0]!r} in its .json and beside it.")
        row |= fields
    return row


def _fields(data: bytes, path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(_text(data, path, name))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"input {path}: {name!r} is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"input {path}: {name!r} must hold a JSON object.")
    return found


def _text(data: bytes, path: Path, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"input {path}: {name!r} is not valid UTF-8: {error.reason} at byte {error.start}."
        ) from error


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in IMAGE_SUFFIXES
