"""What the CNN baselines are made of: convolution (plain or weight-standardised), BatchNorm and GroupNorm.

Maps are `[B, H, W, C]` in the compute dtype; parameters and statistics are float32 and name their axes in the metadata
key `axes`. Only output channels are called "embed": the one dimension of a kernel that a layout may split.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitscale.config import ModelConfig

KERNEL_AXES = ("kernel_height", "kernel_width", "channels_in", "embed")
NORM_AXES = ("embed",)
DEFAULT_EPS = 1e-5
MOMENTUM = 0.9  # of the running statistics: new = 0.9 old + 0.1 batch (torch calls this 0.1)
GROUPS = 32  # of GroupNorm, as in BiT

# He et al., 2015 (arXiv 1502.01852), over the outgoing connections as timm does: std² = 2 / (kh kw C_out).
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nnx.Module):
    """`[B, H, W, C] -> [B, ceil(H/stride), ceil(W/stride), C_out]` without bias, zero-padded by k//2 on every side.

    `standardise` replaces the kernel by `standardise_weights(kernel)` on every call.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        standardise: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride, self.groups, self.standardise, self.dtype = stride, groups, standardise, dtype
        # Symmetric, unlike "SAME": with stride 2 that would pad on the right only, and differ from torch.
        self.padding = ((size // 2, size // 2),) * 2
        shape = (size, size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(he_normal(rngs.params(), shape, jnp.float32), axes=KERNEL_AXES)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        kernel = self.kernel[...]
        if self.standardise:
            kernel = standardise_weights(kernel)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


def standardise_weights(kernel: Float[Array, "h w I O"]) -> Float[Array, "h w I O"]:
    """Kernel with mean 0 and variance 1 over each output channel's weights (Qiao et al., 2019, arXiv 1903.10520).

    Biased variance and epsilon 1e-10, as `StdConv2d` of BiT (Kolesnikov et al., 2020, arXiv 1912.11370).
    """
    mean = kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = kernel.var(axis=(0, 1, 2), keepdims=True)
    return (kernel - mean) * jax.lax.rsqrt(variance + 1e-10)


class BatchNorm(nnx.Module):
    """Ioffe & Szegedy, 2015 (arXiv 1502.03167): statistics of each channel over B, H, W, computed in float32.

    Under jit with a batch split over devices B is the global batch. A training call updates the running `mean` and
    `var` `[C]`; as in torch, `var` takes the unbiased variance whereas the call itself normalises by the biased one.
    """

    def __init__(self, channels: int, *, eps: float, dtype: Any, zero_scale: bool = False) -> None:
        self.eps, self.dtype = eps, dtype
        self.scale, self.bias = _affine(channels, zero_scale)
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32), axes=NORM_AXES)
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32), axes=NORM_AXES)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W C"]:
        if train:
            mean, variance = self._batch_statistics(x)
        else:
            mean, variance = self.mean[...], self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
        return ((x.astype(jnp.float32) - mean) * factor + self.bias[...]).astype(self.dtype)

    def _batch_statistics(self, x: Array) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        # Both moments in one pass over the map and one reduction across devices. E[x²] - E[x]² would cancel for a
        # channel whose mean is large against its deviation; taken around the running mean it does not.
        shift = jax.lax.stop_gradient(self.mean[...])
        centred = x.astype(jnp.float32) - shift
        offset = centred.mean(axis=(0, 1, 2))
        variance = jnp.maximum(jnp.square(centred).mean(axis=(0, 1, 2)) - jnp.square(offset), 0.0)
        mean = shift + offset
        count = x.size // x.shape[-1]
        self._track(self.mean, mean)
        self._track(self.var, variance * (count / max(count - 1, 1)))
        return mean, variance

    def _track(self, running: nnx.BatchStat, batch: Array) -> None:
        running[...] = MOMENTUM * running[...] + (1 - MOMENTUM) * jax.lax.stop_gradient(batch)


class GroupNorm(nnx.Module):
    """Wu & He, 2018 (arXiv 1803.08494): statistics of each image over H, W and a group of channels, in float32."""

    def __init__(self, channels: int, *, eps: float, dtype: Any, zero_scale: bool = False) -> None:
        self.eps, self.dtype = eps, dtype
        self.scale, self.bias = _affine(channels, zero_scale)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W C"]:
        grouped = x.astype(jnp.float32).reshape(*x.shape[:3], GROUPS, -1)
        mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
        variance = grouped.var(axis=(1, 2, 4), keepdims=True)
        normed = ((grouped - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        return (normed * self.scale[...] + self.bias[...]).astype(self.dtype)


def _affine(channels: int, zero_scale: bool) -> tuple[nnx.Param, nnx.Param]:
    scale = jnp.full(channels, 0.0 if zero_scale else 1.0, jnp.float32)
    bias = jnp.zeros(channels, jnp.float32)
    return nnx.Param(scale, axes=NORM_AXES), nnx.Param(bias, axes=NORM_AXES)


def create_norm(
    config: ModelConfig, channels: int, *, zero_scale: bool = False
) -> BatchNorm | GroupNorm:
    """The norm that `config.cnn_norm` names, with `config.norm_eps` (default 1e-5)."""
    kind = BatchNorm if config.cnn_norm == "batch" else GroupNorm
    eps = DEFAULT_EPS if config.norm_eps is None else config.norm_eps
    dtype = jnp.dtype(config.compute_dtype)
    return kind(channels, eps=eps, dtype=dtype, zero_scale=zero_scale)
