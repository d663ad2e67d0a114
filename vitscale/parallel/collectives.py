"""What a compiled program sends between devices: kind, mesh axes, dtype and bytes of every collective in its HLO.

The bytes are a payload, the same for every algorithm and number of devices: the array that the devices of one group
have between them. That is the result of an all-gather, the operand of a reduce-scatter (what one device adds in), the
array of an all-reduce, and what one device sends in an all-to-all or a permute. On a ring of n devices each link
carries (n - 1) / n of an all-gather's or reduce-scatter's payload, and twice that of an all-reduce's.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from vitscale.parallel.hlo_text import (
    Computation,
    Instruction,
    Module,
    arrays,
    trip_count,
    type_bytes,
)
from vitscale.parallel.mesh import BATCH_AXES
from vitscale.parallel.rules import LayoutRow, axes_of

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Totals = dict[tuple[Kind, tuple[str, ...], str], int]  # bytes by kind, axes and dtype
_HLO_DTYPES = {"float32": ("f32", 4), "bfloat16": ("bf16", 2)}
# Logical axes of the inputs of the network: nobody needs their gradient, so the backward pass gathers no weight.
_FIRST_LAYER = ("patch", "tokens")


@dataclass(frozen=True)
class Collective:
    """One array of one collective; `bytes` is the payload of all its runs in a step."""

    kind: Kind
    axes: tuple[str, ...]  # mesh axes that its groups run over, in the mesh's order
    dtype: str  # as HLO names it: "bf16", "f32"
    bytes: int
    runs: int  # the product of the trip counts around it
    shape: tuple[int, ...]  # of the payload
    op_name: str  # the jax operation it came from


def collectives(hlo_text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """The collectives of one run of a program, of optimised HLO (`compiled.as_text()`).

    Loop bodies count times their trip counts. Asynchronous ones appear several times in a TPU program (start, done,
    and fusions that carry one along); they share a channel and count once.

    Args:
        mesh_shape: axis sizes in the order of the mesh, whose devices are numbered in row-major order. That is how
            `jax.jit` numbers partitions, so `dict(mesh.shape)` of the mesh that the program was lowered for.
    """
    reader = _Reader(Module(hlo_text), dict(mesh_shape))
    reader.read(reader.module.entry, runs=1)
    return [found for group in reader.by_channel.values() for found in group]


def total_bytes(found: Iterable[Collective]) -> Totals:
    """Bytes by (kind, axes, dtype), greatest first."""
    total: Totals = defaultdict(int)
    for one in found:
        total[one.kind, one.axes, one.dtype] += one.bytes
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def theory(
    layout: Sequence[LayoutRow],
    mesh_shape: Mapping[str, int],
    *,
    compute_dtype: str = "bfloat16",
    gradient_dtype: str = "float32",
    tokens: int = 0,
    platform: str = "tpu",
) -> Totals:
    """What a training step has to send, from where its parameters lie: the bytes that `collectives` should find.

    - A parameter split over a batch axis (fsdp) is gathered in the compute dtype for the forward and again for the
      backward pass; its gradient is reduce-scattered once, and the shard all-reduced over the other batch axes.
    - The gradient of one that no batch axis splits is all-reduced over all of them; of vectors always in float32.
    - Where `tensor` splits the rows of a matrix, its output is a sum of parts: an all-reduce of activations. Where it
      splits the columns, the gradient of its input is one; those of matrices with a common input are added first.

    Left out, since they are small or another algorithm's: scalars, heads of a sharded loss (which are not gathered),
    ZeRO-1, accumulation, `remat=full`, which gathers some weights a third time, and unrolled layers in one dtype,
    where XLA may keep what it gathered for the backward pass.

    Args:
        tokens: of the global batch; needed where `tensor` splits something.
        platform: XLA's CPU backend ("cpu") all-reduces and slices instead of reduce-scattering, and all-reduces the
            three input gradients of query, key and value before it adds them.
    """
    total: Totals = defaultdict(int)
    shards = [axis for axis in BATCH_AXES if mesh_shape[axis] > 1]
    compute, compute_bytes = _HLO_DTYPES[compute_dtype]
    scatter: Kind = "all-reduce" if platform == "cpu" else "reduce-scatter"
    rows = tokens // math.prod(mesh_shape[axis] for axis in BATCH_AXES)
    for row in layout:
        dimensions = [axes_of(entry) for entry in row.spec]
        split = [a for names in dimensions for a in names if mesh_shape[a] > 1]
        gathered = tuple(a for a in shards if a in split)
        others = tuple(a for a in shards if a not in split)
        parts = math.prod(mesh_shape[a] for a in gathered)
        # Of one group along the batch axes: what `tensor` leaves it.
        size = math.prod(row.shape) // math.prod(mesh_shape[a] for a in split if a not in shards)
        is_matrix = len([name for name in row.axes if name != "layers"]) > 1
        gradient, gradient_bytes = _HLO_DTYPES[gradient_dtype if is_matrix else "float32"]
        if gathered:
            passes = 1 if row.axes[0] in _FIRST_LAYER else 2
            total["all-gather", gathered, compute] += passes * size * compute_bytes
            total[scatter, gathered, gradient] += size * gradient_bytes
            if others:
                total["all-reduce", others, gradient] += size // parts * gradient_bytes
        elif shards:
            total["all-reduce", others, gradient] += size * gradient_bytes
        if is_matrix and "tensor" in split:
            width = _summed_width(row, dimensions, merged=platform != "cpu")
            layers = row.shape[0] if row.axes[0] == "layers" else 1
            if width:
                total["all-reduce", ("tensor",), compute] += layers * rows * width * compute_bytes
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _summed_width(row: LayoutRow, dimensions: Sequence[tuple[str, ...]], merged: bool) -> int:
    """Width of the activations that are all-reduced over `tensor` because of one matrix; 0: none."""
    if "tensor" in dimensions[-2]:
        return row.shape[-1]
    if "tensor" not in dimensions[-1] or row.axes[-1] == "classes":
        return 0
    # Siblings share the sum: the first of them stands for all.
    is_sibling = row.name.split("/")[-2] in ("key", "value", "gate")
    return 0 if merged and is_sibling else row.shape[-2]


class _Reader:
    """Walks a program from its entry and keeps the collectives of every channel."""

    def __init__(self, module: Module, mesh_shape: dict[str, int]) -> None:
        self.module, self.mesh_shape = module, mesh_shape
        self.by_channel: dict[tuple[Any, ...], list[Collective]] = {}

    def read(self, name: str, runs: int) -> None:
        computation = self.module.computations[name]
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                self._add(kind, computation, instruction, runs)
            elif _is_fused_reduce_scatter(instruction):
                inner = self.module.computations[instruction.called[0]]
                for candidate in inner.instructions.values():
                    if candidate.opcode == "all-reduce":
                        self._add("reduce-scatter", inner, candidate, runs)
            elif instruction.opcode == "while":
                trips = trip_count(self.module, instruction)
                for called in instruction.called:
                    self.read(called, runs * trips)
            elif instruction.opcode not in KINDS:
                for called in instruction.called:
                    self.read(called, runs)

    def _add(
        self, kind: Kind, computation: Computation, instruction: Instruction, runs: int
    ) -> None:
        groups = _groups(instruction, math.prod(self.mesh_shape.values()))
        size = len(groups[0])
        if kind != "collective-permute" and size == 1:
            return
        payload = _payload(computation, instruction, kind, size)
        # A channel alone does not tell: combined collectives of different kinds or arrays may have one in common.
        number = instruction.attribute(r"\bchannel_id=(\d+)") or f"%{instruction.name}"
        channel = kind, number, tuple(payload)
        known = self.by_channel.get(channel)
        # What started outside a loop may be carried along by fusions inside it.
        if known and known[0].runs <= runs:
            return
        op_name, _ = self.module.named(instruction)
        self.by_channel[channel] = [
            Collective(
                kind=kind,
                axes=mesh_axes(groups, self.mesh_shape),
                dtype=dtype,
                bytes=type_bytes(f"{dtype}[{','.join(map(str, shape))}]") * runs,
                runs=runs,
                shape=shape,
                op_name=op_name,
            )
            for dtype, shape in payload
        ]


def _is_fused_reduce_scatter(instruction: Instruction) -> bool:
    """TPUs hide a reduce-scatter in a fusion of an all-reduce and a slice."""
    return instruction.opcode == "fusion" and any(
        name.startswith("all-reduce-scatter") for name in instruction.called
    )


def _payload(
    computation: Computation, instruction: Instruction, kind: Kind, group_size: int
) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of each array; scalars of several axes in one call are several."""
    operands = [
        array
        for name in instruction.operands
        for array in arrays(computation.instructions[name].type)
    ]
    if kind != "all-gather":
        return operands
    dimension = int(instruction.attribute(r"\bdimensions=\{(\d+)") or 0)
    return [
        (dtype, tuple(d * group_size if i == dimension else d for i, d in enumerate(shape)))
        for dtype, shape in operands
    ]


# --- Groups of devices --------------------------------------------------------------------------


def _groups(instruction: Instruction, num_devices: int) -> list[list[int]]:
    """The groups of devices that exchange data, by number."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        return _listed(pairs[1])
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", text):
        return _listed(listed[1])
    if iota := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[1]).tolist()
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}", text):
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    return [list(range(num_devices))]


def _listed(text: str) -> list[list[int]]:
    return [list(_integers(group)) for group in re.findall(r"\{([\d,]+)\}", text)]


def _iota(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: the numbers 0 … 7 as [2, 4], transposed, then as [4, 2]."""
    match = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not match:
        raise ValueError(f"the device list {text!r} of the HLO is of an unknown form.")
    shape, source = _integers(match[1]), _integers(match[2])
    numbers: np.ndarray = np.arange(math.prod(source)).reshape(source)
    if match[3]:
        numbers = numbers.transpose(_integers(match[3]))
    return numbers.reshape(shape)


def _mesh_groups(mesh: str, options: str, axes: str) -> list[list[int]]:
    """`mesh['a'=2,'b'=4] {'b'}`: groups along axis b. `'b':(2)2` is a part of b: of 4 as 2 x 2, the second 2.

    The devices are numbered in row-major order, unless `device_ids=([4,2]T(1,0))` says how they are arranged.
    """
    names = re.findall(r"'(\w+)'=(\d+)", mesh)
    sizes = {name: int(size) for name, size in names}
    numbers: np.ndarray = np.arange(math.prod(sizes.values()))
    if order := re.search(r"device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)", options):
        numbers = numbers.reshape(_integers(order[1])).transpose(_integers(order[2]))
    elif listed := re.search(r"device_ids=\(\[?([\d,]+)\]?\)", options):
        numbers = np.array(_integers(listed[1]))
    dimensions: list[int] = []
    chosen: list[int] = []
    picked = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    for name, size in sizes.items():
        parts = [(int(p), int(s)) for n, p, s in picked if n == name and p]
        if any(n == name and not p for n, p, _ in picked):
            parts = [(1, size)]
        done = 1
        for before, length in sorted(parts):
            dimensions += [before // done, length]
            chosen.append(len(dimensions) - 1)
            done = before * length
        dimensions.append(size // done)
    grid = np.moveaxis(numbers.reshape(dimensions), chosen, range(-len(chosen), 0))
    return grid.reshape(-1, math.prod(dimensions[i] for i in chosen)).tolist()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def mesh_axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes whose coordinate differs inside some group."""
    sizes = tuple(mesh_shape.values())
    differing: set[int] = set()
    for coordinates in _coordinates(groups, sizes):
        differing |= {i for i, column in enumerate(coordinates) if len(set(column.tolist())) > 1}
    return tuple(name for i, name in enumerate(mesh_shape) if i in differing)


def _coordinates(
    groups: Sequence[Sequence[int]], sizes: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, ...]]:
    for group in groups:
        yield np.unravel_index(np.asarray(group), sizes)
