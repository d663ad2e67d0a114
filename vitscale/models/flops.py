"""Model FLOPs by formula, and what the hardware could do at best: the two halves of MFU.

A multiply-add counts as 2. Only matrix products are counted (norms, softmax and GELU are below 1 %), without
recomputation: Chowdhery et al., 2022 (PaLM, arXiv 2204.02311), appendix B.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from vitscale.models.multitask import ModelDefinition
from vitscale.models.vit import resolve_shape

# Dense bf16 peak per device in FLOP/s, from the makers' data sheets.
PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def forward_flops(definition: ModelDefinition) -> float:
    """FLOPs of one image's forward pass, heads included."""
    shape = resolve_shape(definition.config)
    width, depth, mlp_dim, _ = shape.size
    tokens = shape.grid**2 + (definition.config.pooling == "cls")
    projections = 2 * tokens * (4 * width * width + 2 * width * mlp_dim)
    attention = 2 * 2 * tokens * tokens * width
    heads = sum(
        2 * s.size
        for n, s in definition.shapes().items()
        if n.startswith("heads/") and len(s.shape) == 2
    )
    return depth * (projections + attention) + _patch_flops(definition) + heads


def train_flops(definition: ModelDefinition) -> float:
    """FLOPs of one image's forward and backward pass: backward is twice forward, but images need no gradient."""
    return 3 * forward_flops(definition) - _patch_flops(definition)


def _patch_flops(definition: ModelDefinition) -> float:
    shape = resolve_shape(definition.config)
    return 2 * shape.grid**2 * 3 * shape.patch**2 * shape.size.width


def device_peak_flops() -> float:
    """Peak FLOP/s of one device: the data sheet's for accelerators; for a CPU, the best of a few matrix products.

    The CPU's peak is split over the fake devices that share it.
    """
    device = jax.devices()[0]
    # The longest name first: "TPU v5 lite" is not a "TPU v5".
    for name in sorted(PEAK_BF16, key=len, reverse=True):
        if device.device_kind.startswith(name):
            return PEAK_BF16[name]
    return _measured_matmul_flops() / (jax.local_device_count() if device.platform == "cpu" else 1)


def _measured_matmul_flops(size: int = 1536, repeats: int = 4) -> float:
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
