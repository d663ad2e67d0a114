"""Compiling for chips that are not here: XLA's compilers need a description of the devices, not the devices.

TPUs need libtpu (extra `[aot-tpu]`, `make .venv-aot-tpu/.ready`), GPUs jax's CUDA plugin and NVIDIA's ptxas
(`make .venv-aot/.ready`), both on any Linux machine. Nothing compiled so can run there. Without a GPU XLA takes its
kernels' default tilings instead of timing them, so kernels, bytes and memory are right and the speed is unknown.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import jax
from jax.experimental import topologies

from vitscale.errors import UserError

GIB = 2**30
# What large matrix products and copies reach in practice, as shares of the data sheet's rates.
ACHIEVED_FLOPS = 0.8
ACHIEVED_BANDWIDTH = 0.895


@dataclass(frozen=True)
class Chip:
    """One kind of chip: what plans and rooflines ask about it. Rates are a data sheet's, per second."""

    name: str  # as topologies call it
    device_name: str  # as its driver reports it
    memory_bytes: int
    flops: float  # bf16, dense
    memory_bandwidth: float
    # Both directions of all its links to other chips: ICI of a TPU, NVLink of a GPU. A chip sends half of it.
    link_bandwidth: float
    network_bandwidth: (
        float  # its share of the host's network between slices or hosts, one direction
    )
    chips_per_host: int
    torus: int = (
        0  # dimensions of the TPU's network; 0: all chips of a host reach each other at full rate
    )
    devices_per_chip: int = 1  # as jax counts devices

    @property
    def device_memory(self) -> int:
        """Bytes of one jax device."""
        return self.memory_bytes // self.devices_per_chip

    @property
    def achieved_flops(self) -> float:
        return ACHIEVED_FLOPS * self.flops

    @property
    def achieved_bandwidth(self) -> float:
        return ACHIEVED_BANDWIDTH * self.memory_bandwidth


# TPUs: memory, FLOP/s, HBM and ICI rates of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} ("interchip
# interconnect bandwidth", bidirectional, all links); v4's ICI and all shares of the network from
# jax-ml.github.io/scaling-book/tpus ("ICI" and "DCN" by generation; for tpu7x its v6e figure stands in).
# GPUs: openxla/xla, xla/backends/gpu/target_config/specs/{a100_sxm_40,a100_sxm_80,h100_sxm,h200}.txtpb, NVIDIA's data
# sheets (NVLink: 600 and 900 GB/s), and the InfiniBand port that each GPU has in NVIDIA's own machines: 200 Gbit/s in
# a DGX A100, 400 Gbit/s in a DGX H100 (their user guides).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 32 * GIB, 275e12, 1.2288e12, 600e9, 6.25e9, 4, 3),
        Chip("v5e", "TPU v5 lite", 16 * GIB, 197e12, 0.819e12, 400e9, 3.125e9, 8, 2),
        Chip("v5p", "TPU v5", 95 * GIB, 459e12, 2.765e12, 1200e9, 6.25e9, 4, 3),
        Chip("v6e", "TPU v6 lite", 32 * GIB, 918e12, 1.638e12, 800e9, 12.5e9, 8, 2),
        Chip("tpu7x", "TPU7x", 192 * GIB, 2307e12, 7.38e12, 1200e9, 12.5e9, 4, 3, 2),
        Chip(
            "a100-40gb", "NVIDIA A100-SXM4-40GB", 42_331_013_120, 312e12, 1.5552e12, 600e9, 25e9, 8
        ),
        Chip(
            "a100-80gb", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 312e12, 2.03904e12, 600e9, 25e9, 8
        ),
        Chip("h100", "NVIDIA H100 80GB HBM3", 84_942_979_072, 989e12, 3.35232e12, 900e9, 50e9, 8),
        Chip("h200", "NVIDIA H200 141GB HBM3e", 151_397_597_184, 989e12, 4.8e12, 900e9, 50e9, 8),
    )
}
EXAMPLES = "v5e:4x4, v5p:8x8x8, 4*v5e:16x16 (four slices), h100:32, h100:3x4 (hosts x GPUs)"
_TOPOLOGY = re.compile(r"(?:(\d+)\*)?([a-z0-9-]+):(\d+(?:x\d+)*)")
# Without them libtpu asks the cloud's metadata server who it is, and two processes refuse to use it at once.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Topology:
    """`4*v5e:16x16` in parts: slices (of a TPU), chip, and the shape of one slice; of GPUs hosts and GPUs of a host."""

    slices: int
    chip: Chip
    shape: tuple[int, ...]


def parse_topology(name: str) -> Topology:
    """Raises `UserError` for a name that no topology has."""
    match = _TOPOLOGY.fullmatch(name)
    if not match or match[2] not in CHIPS:
        raise UserError(
            f"topology {name!r} is not known; write a chip ({', '.join(CHIPS)}) and its shape, as in {EXAMPLES}."
        )
    chip = CHIPS[match[2]]
    shape = tuple(map(int, match[3].split("x")))
    slices = int(match[1] or 1)
    if min(shape) < 1 or slices < 1:
        raise UserError(f"topology {name!r}: every number in it is at least 1.")
    if not chip.torus:
        return Topology(1, chip, _hosts_of_gpus(name, chip, slices, shape))
    if len(shape) != chip.torus:
        form = "x".join(["N"] * chip.torus)
        raise UserError(
            f"topology {name!r}: {chip.name} has topologies of the form {chip.name}:{form}, or S*{chip.name}:{form} "
            "for S slices."
        )
    return Topology(slices, chip, shape)


def _hosts_of_gpus(name: str, chip: Chip, slices: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """`h100:32` in hosts of 8, and `h100:3x4` as it is written."""
    per_host = min(shape[-1], chip.chips_per_host)
    if slices > 1 or len(shape) > 2 or (len(shape) == 1 and shape[0] % per_host):
        raise UserError(
            f"topology {name!r}: write all GPUs of hosts of {chip.chips_per_host} ({chip.name}:32), or hosts x "
            f"GPUs of a host ({chip.name}:3x4)."
        )
    if len(shape) == 2 and shape[1] > chip.chips_per_host:
        raise UserError(f"topology {name!r}: a host has {chip.chips_per_host} GPUs at most.")
    return (shape[0], shape[1]) if len(shape) == 2 else (shape[0] // per_host, per_host)


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Devices to make a mesh of, by name: TPU slices (`v5e:4x4`, `4*v5e:16x16`) or GPUs (`h100:32`).

    Lower for them, compile, never run. jax itself must run on the CPU: `JAX_PLATFORMS=cpu` before it is imported.

    Raises:
        UserError: for an unknown name, a missing compiler, or jax on another backend.
    """
    topology = parse_topology(name)
    _check_backend()
    if topology.chip.torus:
        return _tpu_devices(name, topology)
    hosts, per_host = topology.shape
    return gpu_topology(topology.chip.name, hosts, per_host)


def _check_backend() -> None:
    # Plugins of chips that are not here would be asked for devices, and libtpu waits minutes for an answer.
    platforms: str | None = jax.config.jax_platforms  # type: ignore[attr-defined]
    if (platforms or "").split(",")[0] != "cpu":
        raise UserError(
            "compiling ahead of time runs on the CPU; set JAX_PLATFORMS=cpu in the environment of the command."
        )


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def _tpu_devices(name: str, topology: Topology) -> Sequence[jax.Device]:
    if not has_tpu_compiler():
        raise UserError(
            "libtpu is not installed: install vitscale[aot-tpu], or run `make .venv-aot-tpu/.ready` and use "
            ".venv-aot-tpu/bin/python."
        )
    for variable, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # v4 fuses the two cores of a chip into one device, as its runtime does.
    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu",
            topology_name=name.rpartition("*")[2],
            num_slices=topology.slices,
            **options,
        ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"libtpu knows no topology {name!r}: {reason}") from error


@dataclass(frozen=True)
class _Die:
    """What XLA's compiler asks of a GPU beside its memory, which several products with one die differ in."""

    capability: tuple[int, int]
    extension: str  # of the capability: what only this die has
    cores: int
    units_per_core: int  # for float32
    shared_memory: int  # bytes of a core; a block of threads has 1 KiB less of it
    l2_cache: int  # bytes
    clock_ghz: float


_GA100 = _Die((8, 0), "NONE", 108, 64, 167_936, 41_943_040, 1.41)
_GH100 = _Die((9, 0), "ACCELERATED_FEATURES", 132, 128, 233_472, 52_428_800, 1.98)
_DIES = {"a100-40gb": _GA100, "a100-80gb": _GA100, "h100": _GH100, "h200": _GH100}
# The text form of XLA's GpuTargetConfigProto.
_TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {die.shared_memory}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048
  core_count: {die.cores}
  fpus_per_core: {die.units_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth:.0f}
  l2_cache_size: {die.l2_cache}
  clock_rate_ghz: {die.clock_ghz}
  device_memory_size: {memory_bytes}
  cuda_compute_capability {{
    major: {die.capability[0]}
    minor: {die.capability[1]}
    feature_extension: {die.extension}
  }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
runtime_version {{ major: 12 minor: 8 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{device_name}"
"""
_CUDNN_VERSION = 91000  # the same, as jax counts it


def has_gpu_compiler() -> bool:
    """Whether jax's CUDA plugin is installed; without it there is nothing to compile with."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return any(importlib.util.find_spec(name) is not None for name in names)


def gpu_topology(chip: str, hosts: int = 1, gpus_per_host: int = 1) -> Sequence[jax.Device]:
    """`hosts` machines with `gpus_per_host` GPUs each, for `topology_devices` and for single GPUs."""
    if not has_gpu_compiler():
        raise UserError(
            "jax's CUDA plugin is not installed; run `make .venv-aot/.ready` and use .venv-aot/bin/python."
        )
    gpu = CHIPS[chip]
    die = _DIES[chip]
    config = _TARGET_CONFIG.format(
        die=die,
        optin=die.shared_memory - 1024,
        memory_bandwidth=gpu.memory_bandwidth,
        memory_bytes=gpu.memory_bytes,
        device_name=gpu.device_name,
    )
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip,
        topology=f"1x{hosts}x{gpus_per_host}",
        target_config=config,
    ).devices


@contextmanager
def assume_cudnn(chip: str = "h100") -> Iterator[None]:
    """Lets `jax.nn.dot_product_attention(implementation="cudnn")` trace where neither cuDNN nor a GPU is.

    jax asks the installed cuDNN for its version and the present GPU for its capability before it emits the call. When
    compiling for another machine both answers are the target's, so they are given here. The compiler itself never
    loads cuDNN: the call stays a custom call in the program.
    """
    present = _DIES[chip].capability
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def reaches(capability: str) -> bool:
        return tuple(map(int, capability.split("."))) <= present

    def equals(capability: str) -> bool:
        return tuple(map(int, capability.split("."))) == present

    with (
        mock.patch.object(cudnn, "check_cudnn_version", return_value=_CUDNN_VERSION),
        mock.patch.object(cudnn, "check_compute_capability", reaches),
        mock.patch.object(cudnn, "is_cuda_compute_capability_equal", equals),
    ):
        yield


def assume_kernels(chip: Chip) -> AbstractContextManager[None]:
    """What tracing for a chip that is not here needs; nothing for TPUs."""
    return nullcontext() if chip.torus else assume_cudnn(chip.name)


def peak_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that one device needs while the program runs, its arguments included."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError("the compiler does not say how much memory the program needs.")
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def fits(compiled: jax.stages.Compiled, chip: Chip) -> bool:
    """Whether the program is inside the memory of one device.

    The TPU compiler refuses what does not fit (`RESOURCE_EXHAUSTED`), the GPU compiler never does.
    """
    return peak_memory(compiled) <= chip.device_memory
