"""Where arrays live: from logical axis names to mesh axes, by ordered rules. Models never name a mesh axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# One rule: a mesh axis, and the logical axes that it may split, best first.
Rules = tuple[tuple[str, tuple[str, ...]], ...]
_FSDP = ("fsdp", ("classes", "embed", "mlp", "heads"))
# Class tables are split over both axes: they are the largest arrays, and the loss is computed on their shards.
_FSDP_TP: Rules = (("tensor", ("mlp", "heads")), _FSDP, ("tensor", ("classes",)))
LAYOUTS: dict[str, Rules] = {"dp": (), "fsdp": (_FSDP,), "fsdp_tp": _FSDP_TP, "hybrid": _FSDP_TP}
# With ZeRO-1 optimiser state is also split over `data`, whatever the axis means.
ZERO1_AXIS = "data"
# TPUs keep arrays in tiles of 8 rows: XLA emulates an all-gather of smaller shards by updates and an all-reduce.
TILE_ROWS = 8


def resolve_spec(
    axes: Sequence[str], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """The partition of one array.

    Each mesh axis splits one dimension: the first named by its rule whose shards have a multiple of 8 rows, else the
    first that divides at all; none when none divides. Vectors stay whole over `fsdp` (their all-gather would cost
    latency and save nothing), except along `classes`.
    """
    taken: dict[int, tuple[str, ...]] = {}
    vector = len([name for name in axes if name != "layers"]) < 2
    for mesh_axis, logical in rules:
        used = mesh_axis in [name for names in taken.values() for name in names]
        if sizes[mesh_axis] == 1 or used:
            continue
        allowed = ("classes",) if vector and mesh_axis == "fsdp" else logical
        candidates = [axes.index(name) for name in logical if name in allowed and name in axes]
        best = _best_dimension(candidates, shape, sizes, taken, mesh_axis)
        if best is not None:
            taken[best] = (*taken.get(best, ()), mesh_axis)
    return _partition(taken, len(axes))


def add_zero1(spec: PartitionSpec, shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """The spec of an array of optimiser state, split over `data` as well where a dimension of a matrix allows it."""
    if sizes[ZERO1_AXIS] == 1 or len(shape) < 2:
        return spec
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    taken = {d: axes_of(entry) for d, entry in enumerate(entries) if entry is not None}
    best = _best_dimension(range(len(shape)), shape, sizes, taken, ZERO1_AXIS)
    if best is None:
        return spec
    return _partition({**taken, best: (*taken.get(best, ()), ZERO1_AXIS)}, len(shape))


def _best_dimension(
    candidates: Sequence[int],
    shape: Sequence[int],
    sizes: Mapping[str, int],
    taken: Mapping[int, tuple[str, ...]],
    mesh_axis: str,
) -> int | None:
    def parts(dimension: int) -> int:
        return math.prod(sizes[name] for name in (*taken.get(dimension, ()), mesh_axis))

    dividing = [d for d in candidates if shape[d] % parts(d) == 0]
    tiled = [d for d in dividing if shape[d] // parts(d) % TILE_ROWS == 0]
    return next(iter([*tiled, *dividing]), None)


def _partition(taken: Mapping[int, tuple[str, ...]], rank: int) -> PartitionSpec:
    entries = [taken.get(d, ()) for d in range(rank)]
    return PartitionSpec(
        *(names if len(names) > 1 else next(iter(names), None) for names in entries)
    )


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one dimension of a `PartitionSpec`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


@dataclass(frozen=True)
class LayoutRow:
    """One parameter's place, for the table that is logged and that `vitscale plan` prints."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    spec: PartitionSpec
    bytes_per_device: int
    shard_rows: int | None  # smallest shard along a split dimension; None: nothing is split

    @property
    def is_padded(self) -> bool:
        """Whether a TPU stores or gathers its shards badly: not in whole tiles of 8 rows."""
        return self.shard_rows is not None and self.shard_rows % TILE_ROWS != 0


def resolve_layout(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    layout: str,
) -> list[LayoutRow]:
    """One row a parameter, in the order of `shapes`."""
    rows = []
    for name, struct in shapes.items():
        spec = resolve_spec(axes[name], struct.shape, sizes, LAYOUTS[layout])
        parts = [math.prod(sizes[a] for a in axes_of(entry)) for entry in spec]
        split = [d // p for d, p in zip(struct.shape, parts, strict=True) if p > 1]
        # Shards along a dimension that is not a multiple of 8 come first: they are what a warning is about.
        worst = min(split, key=lambda rows: (rows % TILE_ROWS == 0, rows), default=None)
        size = math.prod(struct.shape) * struct.dtype.itemsize // math.prod(parts)
        rows.append(LayoutRow(name, struct.shape, axes[name], spec, size, worst))
    return rows


def layout_table(rows: Sequence[LayoutRow]) -> list[tuple[str, ...]]:
    """(parameter, shape, logical axes, spec, bytes per device) as texts; equal blocks share a row.

    Blocks of a network differ in one number of their names; a row stands for all whose columns agree.
    """
    groups: dict[tuple[str, ...], list[LayoutRow]] = {}
    for row in rows:
        pattern = "/".join("*" if part.isdigit() else part for part in row.name.split("/"))
        key = (pattern, str(row.shape), ", ".join(row.axes), spec_text(row.spec))
        groups.setdefault(key, []).append(row)
    return [
        (
            group[0].name if len(group) == 1 else f"{key[0]} (x {len(group)})",
            *key[1:],
            f"{sum(row.bytes_per_device for row in group):,}",
        )
        for key, group in groups.items()
    ]


LAYOUT_COLUMNS = ("parameter", "shape", "logical axes", "split over", "bytes per device")


def spec_text(spec: PartitionSpec) -> str:
    """`fsdp, tensor` by dimension; `-` where a dimension is whole."""
    return ", ".join("+".join(axes_of(entry)) or "-" for entry in spec) or "-"


def layout_warnings(rows: Sequence[LayoutRow]) -> list[str]:
    """One sentence a parameter whose shards are not whole tiles on a TPU."""
    return [
        f"{row.name} {row.shape} is split into shards of {row.shard_rows} rows ({spec_text(row.spec)}); TPUs want a "
        f"multiple of {TILE_ROWS}: use a smaller mesh.fsdp, with the rest in mesh.data."
        for row in rows
        if row.is_padded
    ]


def parameter_shardings(
    mesh: Mesh,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str, ...]],
    layout: str,
) -> dict[str, NamedSharding]:
    rows = resolve_layout(shapes, axes, dict(mesh.shape), layout)
    return {row.name: NamedSharding(mesh, row.spec) for row in rows}


def array_sharding(
    mesh: Mesh, axes: Sequence[str], shape: Sequence[int], layout: str, *, zero1: bool = False
) -> NamedSharding:
    """The place of an array of optimiser state, whose axes are (some of) its parameter's."""
    sizes = dict(mesh.shape)
    spec = resolve_spec(axes, shape, sizes, LAYOUTS[layout])
    return NamedSharding(mesh, add_zero1(spec, shape, sizes) if zero1 else spec)
