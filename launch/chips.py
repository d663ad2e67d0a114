"""What Google Cloud calls our topologies: accelerator types, machine types, labels of GKE's nodes, zones.

`vitscale plan` takes any shape that a compiler knows; only some can be rented. The tables are those of `AS_OF`: what
is newer passes with `--any-zone`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from vitscale.errors import UserError
from vitscale.parallel.aot import Topology, parse_topology

AS_OF = "2026-02"
CHECK_ZONES = {
    True: "gcloud compute tpus accelerator-types list --zone=ZONE",
    False: "gcloud compute accelerator-types list --filter=zone:ZONE",
}


@dataclass(frozen=True)
class TpuOffer:
    """How a TPU is rented."""

    prefix: str  # of its accelerator types: `v5litepod-16`
    cores: int  # what the number of an accelerator type counts, per chip
    gke_accelerator: str
    machine: str  # of Compute Engine, before `-4t`
    runtime: str | None  # image of a TPU VM; None: not offered as queued resources
    largest: tuple[int, ...]  # its shape with most chips


@dataclass(frozen=True)
class GpuOffer:
    """How GPUs are rented."""

    gke_accelerator: str
    machines: Mapping[int, str]  # by GPUs
    local_ssds: Mapping[int, int]  # NVMe disks of 375 GB that come with a machine, by GPUs


# Names and shapes: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, AI-Hypercomputer/xpk
# (src/xpk/core/system_characteristics.py). Runtimes: docs.cloud.google.com/tpu/docs/runtimes, which says that the
# Cloud TPU API does not have TPU7x or newer.
TPUS: Mapping[str, TpuOffer] = {
    "v4": TpuOffer("v4", 2, "tpu-v4-podslice", "ct4p-hightpu", "tpu-ubuntu2204-base", (12, 16, 16)),
    "v5e": TpuOffer(
        "v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu", "v2-alpha-tpuv5-lite", (16, 16)
    ),
    "v5p": TpuOffer("v5p", 2, "tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5", (16, 16, 24)),
    "v6e": TpuOffer("v6e", 1, "tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e", (16, 16)),
    "tpu7x": TpuOffer("tpu7x", 2, "tpu7x", "tpu7x-standard", None, (16, 24, 24)),
}
# cloud.google.com/compute/docs/gpus. Local SSDs come with the machine and are nodes' ephemeral storage on GKE.
GPUS: Mapping[str, GpuOffer] = {
    "a100-40gb": GpuOffer(
        "nvidia-tesla-a100",
        {n: f"a2-highgpu-{n}g" for n in (1, 2, 4, 8)},
        {1: 0, 2: 0, 4: 0, 8: 0},
    ),
    "a100-80gb": GpuOffer(
        "nvidia-a100-80gb",
        {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)},
        {1: 1, 2: 2, 4: 4, 8: 8},
    ),
    "h100": GpuOffer(
        "nvidia-h100-80gb",
        {n: f"a3-highgpu-{n}g" for n in (1, 2, 4, 8)},
        {1: 2, 2: 4, 4: 8, 8: 16},
    ),
    "h200": GpuOffer("nvidia-h200-141gb", {8: "a3-ultragpu-8g"}, {8: 32}),
}
# TPUs: docs.cloud.google.com/tpu/docs/regions-zones. That and GPUs: skypilot-org/skypilot-catalog,
# catalogs/v8/gcp/vms.csv, rows with a price. Some zones are for single tenants or need a reservation.
ZONES: Mapping[str, tuple[str, ...]] = {
    chip: tuple(zones.split())
    for chip, zones in {
        "v4": "us-central2-b",
        "v5e": "us-central1-a us-east5-a us-east5-b us-east5-c us-south1-a us-west1-c us-west4-a europe-west4-b",
        "v5p": "us-central1-a us-east1-d us-east5-a us-east5-b us-east5-c us-south1-a us-south1-b us-south1-c "
        "europe-west1-b europe-west1-d europe-west4-b",
        "v6e": "us-central1-a us-central1-b us-central1-c us-east1-d us-east4-a us-east5-a us-east5-b us-east5-c "
        "us-south1-a us-south1-ai1b us-south1-c us-west1-c europe-west4-a asia-northeast1-b asia-south1-b "
        "asia-south1-c asia-southeast1-b southamerica-west1-a",
        "tpu7x": "us-central1-c us-central1-ai1a",
        "a100-40gb": "us-central1-a us-central1-b us-central1-c us-central1-f us-east1-b us-west1-b us-west3-b "
        "us-west4-b europe-west4-a europe-west4-b me-west1-a me-west1-c asia-northeast1-a asia-northeast1-c "
        "asia-northeast3-a asia-northeast3-b asia-southeast1-a asia-southeast1-b asia-southeast1-c",
        "a100-80gb": "us-central1-a us-central1-c us-east4-c us-east5-a us-east5-b europe-west4-a asia-southeast1-c",
        "h100": "us-central1-a us-central1-b us-central1-c us-east4-a us-east4-b us-east4-c us-east5-a us-west1-a "
        "us-west1-b us-west4-a europe-north1-c europe-west1-b europe-west1-c europe-west3-c europe-west4-b "
        "europe-west4-c europe-west9-c asia-east1-c asia-northeast1-b asia-south1-c asia-south2-b "
        "asia-southeast1-b asia-southeast1-c australia-southeast1-c",
        "h200": "us-central1-b us-east4-b us-east5-a us-south1-b us-west1-c europe-west1-b europe-west4-a "
        "asia-south1-b asia-south2-c",
    }.items()
}
# All shapes in two dimensions; in three the small ones, then every AxBxC of multiples of 4 with A <= B <= C.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_LONGEST_SIDE = 256
_EIGHT = (2, 4)  # the one shape whose machine has 8 chips and not 4


@dataclass(frozen=True)
class Rented:
    """A topology of `vitscale plan`, as the cloud rents it."""

    topology: str  # as the user wrote it: `4*v5e:16x16`
    chip: str
    slices: int  # TPU slices; 1 for GPUs
    shape: str  # of one slice as the cloud writes it: `16x16`; of GPUs their number
    hosts: int  # machines of one slice; of GPUs all of them
    chips_per_host: int
    machine: str  # of Compute Engine, for GKE's node pools
    gke_accelerator: (
        str  # node label cloud.google.com/gke-tpu-accelerator or cloud.google.com/gke-accelerator
    )
    is_tpu: bool
    accelerator_type: str | None = (
        None  # gcloud's `--accelerator-type`; None: GPUs, or it stands for another shape
    )
    runtime: str | None = None  # gcloud's `--runtime-version`; None: not rented as TPU VMs
    local_ssds: int = 0

    @property
    def processes(self) -> int:
        """Hosts of all slices: one process each."""
        return self.slices * self.hosts


def rent(topology: str) -> Rented:
    """What to ask the cloud for. Raises `UserError`, with what there is, for a topology that nobody rents out."""
    parsed = parse_topology(topology)
    return _rent_tpu(topology, parsed) if parsed.chip.torus else _rent_gpus(topology, parsed)


def gcloud_flags(rented: Rented) -> list[str]:
    """How `gcloud compute tpus queued-resources create` is told chip and shape.

    Raises:
        UserError: GPUs, or what the Cloud TPU API does not have.
    """
    if not rented.is_tpu:
        raise UserError(
            f"topology {rented.topology!r} has GPUs, which are no TPU VMs; launch it on gke or slurm."
        )
    if rented.runtime is None:
        raise UserError(
            f"topology {rented.topology!r}: Google offers {rented.chip} on GKE but not as queued resources; "
            "use `vitscale launch gke`."
        )
    if rented.accelerator_type is not None:
        return [f"--accelerator-type={rented.accelerator_type}"]
    # An accelerator type stands for one shape. gcloud's `--type` knows v2, v3 and v4 (SDK 528, flags.yaml).
    if rented.chip == "v4":
        return ["--type=v4", f"--topology={rented.shape}"]
    chips = rented.hosts * rented.chips_per_host
    raise UserError(
        f"topology {rented.topology!r}: as queued resources {chips} chips of {rented.chip} are "
        f"{_write(rented.chip, _default_shape(rented.chip, chips))}; take that, or `vitscale launch gke`."
    )


def check_zone(chip: str, zone: str, *, any_zone: bool = False) -> None:
    """Raises `UserError`, with the zones that have it, for a zone that is not known to have a chip."""
    if any_zone or zone in ZONES[chip]:
        return
    raise UserError(
        f"zone {zone!r} has no {chip} in the table of {AS_OF}; zones that have it: {', '.join(ZONES[chip])}. Look with "
        f"`{CHECK_ZONES[chip in TPUS].replace('ZONE', zone)}`; if it is there, add --any-zone."
    )


@functools.cache
def shapes(chip: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of one slice of a TPU that can be rented, fewest chips first."""
    offer = TPUS[chip]
    found: list[tuple[int, ...]]
    if len(offer.largest) == 2:
        found = list(_FLAT)
    else:
        limit = math.prod(offer.largest)
        # A side can be longer than the largest shape's where the others are short: 4x4x244, 12x20x20.
        found = [*_SMALL]
        found += [
            (x, y, z)
            for x in range(4, offer.largest[0] + 1, 4)
            for y in range(x, math.isqrt(limit // x) + 1, 4)
            for z in range(y, min(limit // (x * y), _LONGEST_SIDE) + 1, 4)
        ]
    return tuple(sorted(found, key=lambda s: (math.prod(s), s[::-1])))


def _rent_tpu(topology: str, parsed: Topology) -> Rented:
    chip, offer = parsed.chip.name, TPUS[parsed.chip.name]
    if parsed.shape not in shapes(chip):
        raise UserError(f"topology {topology!r} cannot be rented: {_nearest(chip, parsed.shape)}.")
    count = math.prod(parsed.shape)
    per_host = min(count, 8 if parsed.shape == _EIGHT else 4)
    return Rented(
        topology,
        chip,
        parsed.slices,
        "x".join(map(str, parsed.shape)),
        count // per_host,
        per_host,
        f"{offer.machine}-{per_host}t",
        offer.gke_accelerator,
        is_tpu=True,
        accelerator_type=(
            f"{offer.prefix}-{count * offer.cores}"
            if parsed.shape == _default_shape(chip, count)
            else None
        ),
        runtime=offer.runtime,
    )


def _default_shape(chip: str, chips: int) -> tuple[int, ...]:
    """Of several shapes with so many chips, the one that an accelerator type stands for: the most like a cube
    (cloud.google.com/tpu/docs/types-topologies)."""
    return min((s for s in shapes(chip) if math.prod(s) == chips), key=sum)


def _nearest(chip: str, shape: tuple[int, ...]) -> str:
    """The list where it is short, else the rule and the shapes around this one's size."""
    every = shapes(chip)
    if len(every) <= 10:
        return f"{chip} has {', '.join(_write(chip, s) for s in every)}"
    by_distance = sorted(every, key=lambda s: abs(math.log(math.prod(s) / math.prod(shape))))
    near = sorted(by_distance[:4], key=math.prod)
    largest = "x".join(map(str, TPUS[chip].largest))
    return (
        f"{chip} has {', '.join(_write(chip, s) for s in _SMALL)}, and AxBxC of multiples of 4 with A <= B <= C up to "
        f"{largest}; near yours: {', '.join(_write(chip, s) for s in near)}"
    )


def _write(chip: str, shape: tuple[int, ...]) -> str:
    return f"{chip}:{'x'.join(map(str, shape))}"


def _rent_gpus(topology: str, parsed: Topology) -> Rented:
    chip, offer = parsed.chip.name, GPUS[parsed.chip.name]
    hosts, per_host = parsed.shape
    count, largest = hosts * per_host, max(offer.machines)
    if per_host not in offer.machines or (hosts > 1 and per_host != largest):
        single = ", ".join(f"{chip}:{n}" for n in sorted(offer.machines))
        raise UserError(
            f"topology {topology!r} cannot be rented: {chip} has {single} and multiples of {largest} "
            f"({chip}:{2 * largest}, {chip}:{4 * largest}, ...)."
        )
    return Rented(
        topology,
        chip,
        1,
        str(count),
        hosts,
        per_host,
        offer.machines[per_host],
        offer.gke_accelerator,
        is_tpu=False,
        local_ssds=offer.local_ssds[per_host],
    )
