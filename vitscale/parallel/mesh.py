"""The device mesh. Axes: `replica` (across slices), `data`, `fsdp` (all three split the batch), `tensor`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitscale.config import MeshConfig
from vitscale.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")


def resolve_sizes(config: MeshConfig, num_devices: int, num_slices: int = 1) -> tuple[int, ...]:
    """Axis sizes with every open one filled in.

    `num_slices` groups of devices have a fast interconnect within and a slow one between them; `replica` runs across
    them. What is left goes to the axis that is -1, else to `fsdp` (to `data` with layout dp), else to `data`.

    Raises:
        UserError: for sizes that cannot cover the devices, or that no rule of the layout uses.
    """
    sizes: dict[str, int | None] = {axis: getattr(config, axis) for axis in AXES}
    text = ", ".join([f"layout={config.layout}", *(f"{a}={s}" for a, s in sizes.items() if s)])
    given = [size for size in sizes.values() if size is not None]
    if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
        raise UserError(
            f"mesh ({text}): sizes are at least 1, and at most one may be -1 (the rest)."
        )
    _check_layout(config, text)
    sizes["replica"] = num_slices if sizes["replica"] is None else sizes["replica"]
    sizes["tensor"] = 1 if sizes["tensor"] is None else sizes["tensor"]
    if -1 not in sizes.values():
        if sizes["fsdp"] is None and config.layout != "dp":
            sizes["fsdp"] = -1
        elif sizes["data"] is None:
            sizes["data"] = -1
    filled = [1 if size is None else size for size in sizes.values()]
    known = math.prod(size for size in filled if size != -1)
    if -1 in filled:
        if num_devices % known:
            raise UserError(f"mesh ({text}): {num_devices} devices do not divide by {known}.")
        filled[filled.index(-1)] = num_devices // known
    if math.prod(filled) != num_devices:
        raise UserError(
            f"mesh ({text}) needs {math.prod(filled)} devices, but there are {num_devices}; set one axis to -1."
        )
    if filled[0] % num_slices:
        raise UserError(
            f"mesh ({text}): {num_slices} slices need replica={num_slices} or a multiple of it; "
            "another axis would run over the slow network between slices."
        )
    return tuple(filled)


def _check_layout(config: MeshConfig, text: str) -> None:
    if config.layout == "dp" and (config.fsdp or 1) != 1:
        raise UserError(f"mesh ({text}): layout dp splits no parameter; use layout=fsdp.")
    if config.layout in ("dp", "fsdp") and (config.tensor or 1) != 1:
        raise UserError(
            f"mesh ({text}): layout {config.layout} does not use `tensor`; use layout=fsdp_tp."
        )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices (of all processes), laid out so that the last axes have the fastest links."""
    devices = list(jax.devices() if devices is None else devices)
    slices = slice_of(devices, config.layout)
    sizes = resolve_sizes(config, len(devices), len(set(slices)))
    return Mesh(_arrange(devices, slices, sizes), AXES)


def slice_of(devices: Sequence[Any], layout: str) -> list[int]:
    """The fast-interconnect group of every device: its TPU slice; for layout hybrid on GPUs its host; else one."""
    if layout == "hybrid" and devices[0].platform in ("gpu", "cuda"):
        groups = [device.process_index for device in devices]
    else:
        groups = [getattr(device, "slice_index", 0) or 0 for device in devices]
    if len(set(Counter(groups).values())) > 1:
        raise UserError(f"slices of unequal size cannot form a mesh: {dict(Counter(groups))}.")
    return groups


def _arrange(devices: list[Any], slices: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    """Devices in the shape of the mesh; each slice is a block along `replica`."""
    groups = sorted(set(slices))
    inner = (sizes[0] // len(groups), *sizes[1:])
    blocks = []
    for group in groups:
        members = [d for d, g in zip(devices, slices, strict=True) if g == group]
        if members[0].platform == "tpu":  # follows the physical torus
            block = mesh_utils.create_device_mesh(inner, members, allow_split_physical_axes=True)
        else:
            block = np.asarray(members, dtype=object).reshape(inner)
        blocks.append(block)
    return np.concatenate(blocks, axis=0)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split by example over every axis but `tensor`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """How many ways the batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(global_batch_size: int, mesh: Mesh, accumulate_steps: int = 1) -> None:
    """Raises `UserError` unless the batch divides over the mesh, its parts in time, and the processes."""
    pieces = math.lcm(batch_shards(mesh) * accumulate_steps, jax.process_count())
    if global_batch_size % pieces:
        up = math.ceil(global_batch_size / pieces) * pieces
        parts = f" in {accumulate_steps} parts" if accumulate_steps > 1 else ""
        raise UserError(
            f"data.global_batch_size={global_batch_size} does not divide over {pieces} batch shards{parts}; "
            f"the next one that does is {up}."
        )
