"""A format as a list: each tensor of a foreign file, the parameters it holds, and the layout change both ways.

Layout changes are reshapes, transposes, concatenations and stacks, so a round trip is exact. Arrays are float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vitscale.errors import UserError
from vitscale.models.adapt import compare_shapes

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]
Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """One array of a foreign file; `split` gives the arrays of `parameters`, `join` is its inverse."""

    name: str
    shape: Shape
    parameters: tuple[str, ...]
    split: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    join: Callable[..., np.ndarray]


def reshaped(name: str, shape: Shape, parameter: str, our_shape: Shape) -> Tensor:
    """The same numbers in the same order."""
    return Tensor(
        name,
        shape,
        (parameter,),
        lambda theirs: (theirs.reshape(our_shape),),
        lambda ours: ours.reshape(shape),
    )


def same(name: str, shape: Shape, parameter: str) -> Tensor:
    return reshaped(name, shape, parameter, shape)


def transposed(name: str, parameter: str, inputs: int, outputs: int) -> Tensor:
    """torch's linear weight `[out, in]` for our kernel `[in, out]`."""
    return Tensor(
        name,
        (outputs, inputs),
        (parameter,),
        lambda theirs: (np.ascontiguousarray(theirs.T),),
        lambda ours: np.ascontiguousarray(ours.T),
    )


def norm(theirs: str, ours: str, width: int) -> list[Tensor]:
    """Scale and bias of a normalisation."""
    return [
        same(f"{theirs}.weight", (width,), f"{ours}/scale"),
        same(f"{theirs}.bias", (width,), f"{ours}/bias"),
    ]


def linear(theirs: str, ours: str, inputs: int, outputs: int) -> list[Tensor]:
    """Kernel and bias of torch's linear layer."""
    return [
        transposed(f"{theirs}.weight", f"{ours}/kernel", inputs, outputs),
        same(f"{theirs}.bias", (outputs,), f"{ours}/bias"),
    ]


def patch_conv(name: str, parameter: str, patch: int, width: int) -> Tensor:
    """torch's convolution kernel `[D, 3, p, p]` (OIHW) for our `[p * p * 3, D]`, rows (y, x, channel)."""
    return Tensor(
        name,
        (width, 3, patch, patch),
        (parameter,),
        lambda theirs: (np.ascontiguousarray(theirs.transpose(2, 3, 1, 0)).reshape(-1, width),),
        lambda ours: np.ascontiguousarray(
            ours.reshape(patch, patch, 3, width).transpose(3, 2, 0, 1)
        ),
    )


def fused(name: str, parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Several tensors concatenated along an axis, such as Q, K and V in one matrix. Part names are not used."""
    sizes = [part.shape[axis] for part in parts]
    shape = list(parts[0].shape)
    shape[axis] = sum(sizes)

    def split(theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        pieces = np.split(theirs, list(itertools.accumulate(sizes))[:-1], axis)
        return _split_parts(parts, pieces)

    return Tensor(
        name,
        tuple(shape),
        _parameters(parts),
        split,
        lambda *ours: np.concatenate(_join_parts(parts, ours), axis),
    )


def stacked(name: str, layers: Sequence[Tensor]) -> Tensor:
    """The tensor of every layer along a new first axis."""
    return Tensor(
        name,
        (len(layers), *layers[0].shape),
        _parameters(layers),
        lambda theirs: _split_parts(layers, list(theirs)),
        lambda *ours: np.stack(_join_parts(layers, ours)),
    )


def _parameters(parts: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(name for part in parts for name in part.parameters)


def _split_parts(parts: Sequence[Tensor], pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    split = [part.split(piece) for part, piece in zip(parts, pieces, strict=True)]
    return tuple(np.ascontiguousarray(array) for arrays in split for array in arrays)


def _join_parts(parts: Sequence[Tensor], ours: Sequence[np.ndarray]) -> list[np.ndarray]:
    arrays = iter(ours)
    return [part.join(*itertools.islice(arrays, len(part.parameters))) for part in parts]


class WeightMap(Protocol):
    """Both directions between a foreign file's tensors and our parameters, for one model."""

    def shapes(self) -> dict[str, Shape]: ...
    def to_params(self, read: Read) -> Arrays: ...
    def to_tensors(self, params: Mapping[str, np.ndarray]) -> Arrays: ...


@dataclass(frozen=True)
class TensorMap:
    """A `WeightMap` from a list."""

    tensors: tuple[Tensor, ...]

    def shapes(self) -> dict[str, Shape]:
        return {tensor.name: tensor.shape for tensor in self.tensors}

    def to_params(self, read: Read) -> Arrays:
        params: Arrays = {}
        for tensor in self.tensors:
            params |= zip(tensor.parameters, tensor.split(read(tensor.name)), strict=True)
        return params

    def to_tensors(self, params: Mapping[str, np.ndarray]) -> Arrays:
        return {
            tensor.name: tensor.join(*(params[name] for name in tensor.parameters))
            for tensor in self.tensors
        }


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raises `UserError` naming missing keys, extra keys and other shapes."""
    problems = compare_shapes(expected, found, exact=True)
    if problems:
        raise UserError(f"{where} does not fit: {problems}.")
