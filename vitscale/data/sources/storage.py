"""Files and folders, local or under gs:// and s3://, through one small interface over `pyarrow.fs`."""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from vitscale.errors import UserError

SCHEME = re.compile(r"^(gs|s3)://")
ANY_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
DEFAULT_S3_REGION = "us-east-1"
DIGEST_BYTES = 64 * 2**20
REMOTE_READS = 16  # at once, of a process

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """A file of a listing: name within the folder, bytes, and time of last change in ns (0: unknown)."""

    name: str
    size: int
    changed: int


@dataclass(frozen=True)
class Location:
    """A file or folder: a local path, or "gs://bucket/key", or "s3://bucket/key".

    S3 takes credentials and region from where the AWS tools do, and honours AWS_ENDPOINT_URL.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return SCHEME.match(self.uri) is None

    @property
    def name(self) -> str:
        return posixpath.basename(self.uri.rstrip("/"))

    @property
    def parent(self) -> Location:
        return Location(posixpath.dirname(self.uri.rstrip("/")))

    def join(self, *parts: str) -> Location:
        return Location(posixpath.join(self.uri, *parts))

    def is_file(self) -> bool:
        return self._info().type == fs.FileType.File

    def is_folder(self) -> bool:
        return self._info().type == fs.FileType.Directory

    def entry(self) -> Entry:
        """Size and time of change of a file that exists."""
        info = self._info()
        return Entry(self.name, info.size or 0, info.mtime_ns or 0)

    def files(self, pattern: str = "*", *, recursive: bool = False) -> list[Entry]:
        """The files of a folder whose base name matches, by name; none where there is no folder."""
        system, path = self._resolved()
        selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
        prefix = path.rstrip("/") + "/"
        try:
            found = system.get_file_info(selector)
        except NotADirectoryError:
            return []
        except OSError as error:
            raise UserError(f"{self.uri} cannot be listed: {error}") from error
        entries = [
            Entry(info.path.removeprefix(prefix), info.size or 0, info.mtime_ns or 0)
            for info in found
            if info.type == fs.FileType.File and fnmatch(info.base_name, pattern)
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def open(self) -> pa.NativeFile:
        """For random access: `read_at` may be called from several threads."""
        system, path = self._resolved()
        return system.open_input_file(path)

    def read_bytes(self) -> bytes:
        if self.is_local:
            return Path(self.uri).read_bytes()
        with self.open() as file:
            return file.read()

    def _info(self) -> fs.FileInfo:
        system, path = self._resolved()
        try:
            return system.get_file_info(path)
        except OSError as error:  # no network, no permission; a missing file is none
            raise UserError(f"{self.uri} cannot be read: {error}") from error

    def _resolved(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return _local(), self.uri
        scheme, rest = self.uri.split("://", 1)
        try:
            return (_gcs() if scheme == "gs" else _s3(rest.split("/", 1)[0])), rest
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{self.uri} cannot be reached: {error}") from error


def locate(root: str, path: str) -> Location:
    """`path`, which may start from `root`; both local or with a scheme."""
    if (scheme := ANY_SCHEME.match(path)) and not SCHEME.match(path):
        raise UserError(f"{path}: {scheme[0]} is not supported; use a local path, gs:// or s3://.")
    if SCHEME.match(path):
        return Location(path.rstrip("/"))
    if SCHEME.match(root) and not os.path.isabs(path):
        return Location(root).join(path.rstrip("/"))
    return Location(str(Path(root, path)))


def require_file(location: Location, what: str) -> None:
    if not location.is_file():
        where = f" (working folder: {Path.cwd()})" if location.is_local else ""
        raise UserError(f"{what} {location} does not exist{where}.")


def local_path(location: Location, reader: str) -> str:
    """The path, for a library that reads nothing else."""
    if not location.is_local:
        raise UserError(f"{location}: {reader} reads local folders only; copy or mount it.")
    return location.uri


def fingerprint(entries: Sequence[Entry]) -> str:
    """Changes when a file is added, removed, resized or written again."""
    return ";".join(f"{entry.name}:{entry.size}:{entry.changed}" for entry in entries)


@functools.cache
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@functools.cache
def _gcs() -> fs.FileSystem:
    return fs.GcsFileSystem()


@functools.cache
def _s3(bucket: str) -> fs.FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        return fs.S3FileSystem(
            endpoint_override=host, scheme=scheme or "https", region=region or DEFAULT_S3_REGION
        )
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket))


def digest(location: Location) -> str:
    """Of a file's content where that is quick, else of its size and time of change."""
    entry = location.entry()
    if entry.size > DIGEST_BYTES:
        return fingerprint([entry])
    return hashlib.blake2b(location.read_bytes(), digest_size=12).hexdigest()


def map_reads(
    read: Callable[[Item], Result], items: Iterable[Item], *, local: bool
) -> list[Result]:
    """`read` of every item in order; over a network many at once, because each waits for an answer."""
    return [read(item) for item in items] if local else list(_remote_pool().map(read, items))


def of_split(entries: Sequence[Entry], split: str | None) -> list[Entry]:
    """The files named for a split: "train-00000-of-00010.parquet", "train.tar", "train/0.parquet"."""
    if split is None:
        return list(entries)
    named = re.compile(rf"(^|/){re.escape(split)}[-_./]")
    return [entry for entry in entries if named.search(entry.name)]


@functools.cache
def _remote_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REMOTE_READS, thread_name_prefix="remote-read")
