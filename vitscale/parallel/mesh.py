"""The device mesh. Axes: `replica` (across slices), `data`, `fsdp` (both split the batch), `tensor`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitscale.config import MeshConfig
from vitscale.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")


def resolve_sizes(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """Axis sizes with the one `-1` filled in. Raises `UserError` when they cannot cover the devices."""
    sizes = [getattr(config, axis) for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"mesh ({text}): sizes are at least 1, and at most one may be -1 (the rest)."
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if num_devices % known:
            raise UserError(f"mesh ({text}): {num_devices} devices do not divide by {known}.")
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh ({text}) needs {math.prod(sizes)} devices, but there are {num_devices}; set one axis to -1."
        )
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (of all processes), neighbours on the last axis."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = resolve_sizes(config, len(devices))
    return Mesh(np.asarray(devices, dtype=object).reshape(sizes), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split by example over every axis but `tensor`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(global_batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` unless the batch divides over the mesh and the processes."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    pieces = math.lcm(shards, jax.process_count())
    if global_batch_size % pieces:
        up = math.ceil(global_batch_size / pieces) * pieces
        raise UserError(
            f"data.global_batch_size={global_batch_size} does not divide over {pieces} batch shards; "
            f"the next one that does is {up}."
        )
