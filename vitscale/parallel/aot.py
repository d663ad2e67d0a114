"""Compiling for GPUs that are not here: XLA's CUDA compiler needs a description of the device, not the device.

It runs on any Linux machine with jax's CUDA plugin and NVIDIA's ptxas installed (`make .venv-aot/.ready`); nothing
compiled so can run there. Without the device XLA takes its kernels' default tilings instead of timing them, so the
kernels, their bytes and their memory are right and their speed is unknown.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import jax
from jax.experimental import topologies

from vitscale.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class GpuTarget:
    """What XLA's compiler asks about one kind of GPU, and the rates that a roofline divides by."""

    name: str  # as the driver reports it
    memory_bytes: int
    bytes_per_second: float  # data sheet
    # What large copies and matrix products reach in practice: about 0.9 and 0.8 of the data sheet's.
    achieved_bytes_per_second: float
    achieved_flops_per_second: float


# Facts of openxla/xla, xla/backends/gpu/target_config/specs/{h100_sxm,h200}.txtpb, and NVIDIA's data sheets.
TARGETS = {
    "h100": GpuTarget("NVIDIA H100 80GB HBM3", 84_942_979_072, 3.35232e12, 3.0e12, 790e12),
    "h200": GpuTarget("NVIDIA H200 141GB HBM3e", 151_397_597_184, 4.8e12, 4.3e12, 790e12),
}

# Both are the same chip (GH100, compute capability 9.0) with other memory. The text form of XLA's GpuTargetConfigProto.
_TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bytes_per_second:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory_bytes}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
runtime_version {{ major: 12 minor: 8 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
_CUDNN_VERSION = 91000  # the same, as jax counts it


def has_gpu_compiler() -> bool:
    """Whether jax's CUDA plugin is installed; without it there is nothing to compile with."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return any(importlib.util.find_spec(name) is not None for name in names)


def gpu_topology(target: str, hosts: int = 1, gpus_per_host: int = 1) -> Sequence[jax.Device]:
    """Devices to make a mesh of: one NVLink domain of `hosts` machines. Lower for them, compile, never run."""
    if target not in TARGETS:
        raise UserError(f"target {target!r} is not one of {', '.join(TARGETS)}.")
    if not has_gpu_compiler():
        raise UserError(
            "jax's CUDA plugin is not installed; run `make .venv-aot/.ready` and use .venv-aot/bin/python."
        )
    gpu = TARGETS[target]
    config = _TARGET_CONFIG.format(
        bytes_per_second=gpu.bytes_per_second, memory_bytes=gpu.memory_bytes, name=gpu.name
    )
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target,
        topology=f"1x{hosts}x{gpus_per_host}",
        target_config=config,
    ).devices


@contextmanager
def assume_cudnn() -> Iterator[None]:
    """Lets `jax.nn.dot_product_attention(implementation="cudnn")` trace where neither cuDNN nor a GPU is.

    jax asks the installed cuDNN for its version and the present GPU for its capability before it emits the call. When
    compiling for another machine both answers are the target's, so they are given here. The compiler itself never
    loads cuDNN: the call stays a custom call in the program.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def reaches(capability: str) -> bool:
        return tuple(map(int, capability.split("."))) <= (9, 0)

    with (
        mock.patch.object(cudnn, "check_cudnn_version", return_value=_CUDNN_VERSION),
        mock.patch.object(cudnn, "check_compute_capability", reaches),
        mock.patch.object(cudnn, "is_cuda_compute_capability_equal", lambda text: text == "9.0"),
    ):
        yield
