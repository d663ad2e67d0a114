"""Reading and writing files of named arrays: `safetensors` and `.npz`. Shapes come from headers; nothing is unpickled.

A file is untrusted: whatever is wrong with it ends as a `UserError`, and memory is taken only for arrays whose shape
the caller has already accepted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy_format
from safetensors import safe_open
from safetensors.numpy import save_file

from vitscale.errors import UserError
from vitscale.models.convert.tensors import Shape

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
# The names that safetensors' headers use.
_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# ViT-e in float32 with two Adam moments is 47 GB; a header that claims more is not a checkpoint.
MAX_UNPACKED_BYTES = 128 << 30
DEFLATE_RATIO = 1100  # zip's compression reaches 1032
MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class TensorFile:
    """The named arrays of a file (or of several shards), none of them read yet."""

    path: Path
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    read_raw: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """One array as float32, contiguous and writeable."""
        dtype = self.dtypes[name]
        if dtype not in FLOAT_DTYPES:
            raise UserError(
                f"{self.path}: {name} has the dtype {dtype}, not one of {', '.join(FLOAT_DTYPES)}."
            )
        with reading(self.path):
            array = self.read_raw(name)
            if array.shape != self.shapes[name]:
                raise ValueError(f"{name} holds {array.shape}, its header says {self.shapes[name]}")
            return np.array(array, dtype=np.float32, order="C")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes its parser raise into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (
        Exception
    ) as error:  # parsers of damaged bytes raise anything, from EOFError to SyntaxError
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it is damaged or another kind of file."
        ) from error


def open_safetensors(*paths: Path) -> TensorFile:
    """One file, or the shards of one model."""
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    home: dict[str, Path] = {}
    for path in paths:
        with reading(path), safe_open(_existing(path), framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(name)
                if name in shapes:
                    raise UserError(f"{path}: {name} is in two shards of the model.")
                shapes[name] = tuple(part.get_shape())
                dtypes[name] = _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype())
                home[name] = path

    def read_raw(name: str) -> np.ndarray:
        with safe_open(home[name], framework="np") as file:
            return file.get_tensor(name)

    return TensorFile(paths[0], shapes, dtypes, read_raw)


def open_npz(path: Path) -> TensorFile:
    """An `.npz`, from the headers of its members. Void arrays of 2 bytes are bfloat16 that numpy has no name for."""
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    with reading(path), zipfile.ZipFile(_existing(path)) as archive:
        members = archive.infolist()
        _check_sizes(path, members)
        for member in members:
            with archive.open(member) as stream:
                shape, _, dtype = _npy_header(stream)
                if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise ValueError(f"{member.filename} is not as long as its shape {shape}")
            name = member.filename.removesuffix(".npy")
            shapes[name] = shape
            dtypes[name] = "bfloat16" if dtype.str == "|V2" else dtype.name

    def read_raw(name: str) -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            shape, fortran, dtype = _npy_header(stream)
            count = math.prod(shape) * dtype.itemsize
            data = stream.read(count)
            if len(data) != count or stream.read(1):
                raise ValueError(f"{name} does not hold the {count} bytes that its header says")
        stored = np.dtype(ml_dtypes.bfloat16) if dtype.str == "|V2" else dtype
        array = np.frombuffer(data, stored)
        return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)

    return TensorFile(path, shapes, dtypes, read_raw)


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Against archives that claim, or unpack to, more than a checkpoint has."""
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED_BYTES:
        raise UserError(f"{path} would unpack to {total >> 30} GiB; no model is that large.")
    if total > DEFLATE_RATIO * path.stat().st_size:
        raise ValueError("its arrays claim more bytes than compression could hide")


def _npy_header(stream: Any) -> tuple[Shape, bool, np.dtype]:
    version = npy_format.read_magic(stream)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"an .npy header of version {version}")
    shape, fortran, dtype = read[version](stream)
    if dtype.hasobject:
        raise ValueError("Python objects inside; they could run code")
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, fortran, dtype


def read_json(path: Path) -> dict[str, Any]:
    with reading(path):
        if _existing(path).stat().st_size > MAX_JSON_BYTES:
            raise ValueError("too large")
        tree = json.loads(path.read_text())
        if not isinstance(tree, dict):
            raise ValueError("not a JSON object")
        return tree


def find_safetensors(path: Path) -> TensorFile:
    """A `.safetensors` file, or a folder with `model.safetensors` or its shards."""
    if not path.is_dir():
        return open_safetensors(path)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in shards.values()
        ):
            raise UserError(
                f"{index} must map tensors to file names in the same folder ('weight_map')."
            )
        return open_safetensors(*(path / name for name in sorted(set(shards.values()))))
    files = [path / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        pickled = (
            " A .bin or .pt file is a pickle, which could run code: convert it first."
            if any(path.glob("*.bin")) or any(path.glob("*.pt*"))
            else ""
        )
        raise UserError(
            f"{path} has {len(files)} .safetensors files; name one by --input.{pickled}"
        )
    return open_safetensors(files[0])


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the weights by --input.")
    return path


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """torch's loaders want the metadata entry `format`."""
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with _replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt"})


def write_npz(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Uncompressed, as big_vision writes them: weights hardly compress."""
    with _replacing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                npy_format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its place only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors leaves 0600: a server's user could not read it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
