"""Where parameters live: from logical axis names to mesh axes, by ordered rules. Models never name a mesh axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Rules are tried in order: an axis takes the first mesh axis that is free and divides it.
Rules = tuple[tuple[str, str], ...]
LAYOUTS: dict[str, Rules] = {
    "dp": (),
    "fsdp": (("embed", "fsdp"), ("mlp", "fsdp"), ("heads", "fsdp"), ("classes", "fsdp")),
    "fsdp_tp": (("mlp", "tensor"), ("heads", "tensor"), ("classes", "tensor"), ("embed", "fsdp")),
}


def resolve_spec(
    axes: Sequence[str], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """The partition of one array. A dimension that does not divide stays whole."""
    taken: dict[int, str] = {}
    for logical, mesh_axis in rules:
        for dimension, name in enumerate(axes):
            free = dimension not in taken and mesh_axis not in taken.values()
            if (
                name == logical
                and free
                and sizes[mesh_axis] > 1
                and shape[dimension] % sizes[mesh_axis] == 0
            ):
                taken[dimension] = mesh_axis
    return PartitionSpec(*(taken.get(d) for d in range(len(axes))))


@dataclass(frozen=True)
class LayoutRow:
    """One parameter's place, for the table that `vitscale plan` prints."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    spec: PartitionSpec
    bytes_per_device: int


def resolve_layout(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    layout: str,
) -> list[LayoutRow]:
    rows = []
    for name, struct in shapes.items():
        spec = resolve_spec(axes[name], struct.shape, sizes, LAYOUTS[layout])
        parts = int(np.prod([sizes[axis] for axis in spec if axis is not None]))
        size = int(np.prod(struct.shape)) * struct.dtype.itemsize // parts
        rows.append(LayoutRow(name, struct.shape, axes[name], spec, size))
    return rows


def parameter_shardings(
    mesh: Mesh,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str, ...]],
    layout: str,
) -> dict[str, NamedSharding]:
    rows = resolve_layout(shapes, axes, dict(mesh.shape), layout)
    return {row.name: NamedSharding(mesh, row.spec) for row in rows}
