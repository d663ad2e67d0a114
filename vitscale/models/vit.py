"""The Vision Transformer (Dosovitskiy et al., 2021, arXiv 2010.11929), pre-norm, as an `nnx` module.

Parameters are float32 and carry what their axes mean in the metadata key `axes` (names that
`vitscale.parallel.rules` maps to mesh axes); activations are computed in `compute_dtype`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitscale.config import ModelConfig
from vitscale.errors import UserError


class ViTSize(NamedTuple):
    width: int
    depth: int
    mlp_dim: int
    num_heads: int


# Zhai et al., 2022 (arXiv 2106.04560), table 2; mu is big_vision's test size.
PRESETS = {
    "mu": ViTSize(32, 1, 128, 2),
    "Ti": ViTSize(192, 12, 768, 3),
    "S": ViTSize(384, 12, 1536, 6),
    "B": ViTSize(768, 12, 3072, 12),
    "L": ViTSize(1024, 24, 4096, 16),
}


class Features(NamedTuple):
    """What every backbone returns."""

    pooled: Float[Array, "B D"]
    tokens: Float[Array, "B N D"]


@dataclass(frozen=True)
class ViTShape:
    """A model config with its preset resolved."""

    size: ViTSize
    patch: int
    image_size: int

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


def resolve_shape(config: ModelConfig) -> ViTShape:
    """Sizes of `config.variant` ("B/16") with the overrides applied. Raises `UserError` for impossible ones."""
    preset, _, patch_text = config.variant.partition("/")
    if preset not in PRESETS or not patch_text.isdigit() or int(patch_text) < 1:
        raise UserError(
            f"model.variant={config.variant!r} must be a preset and a patch size such as 'S/16'; "
            f"presets: {', '.join(PRESETS)}."
        )
    patch, base = int(patch_text), PRESETS[preset]
    size = ViTSize(
        config.width or base.width,
        config.depth or base.depth,
        config.mlp_dim or (4 * config.width if config.width else base.mlp_dim),
        config.num_heads or base.num_heads,
    )
    if size.width % size.num_heads:
        raise UserError(f"model.width={size.width} does not divide by num_heads={size.num_heads}.")
    if config.image_size < patch or config.image_size % patch:
        below = max(config.image_size // patch, 1) * patch
        raise UserError(
            f"model.image_size={config.image_size} does not divide by the patch size {patch}; "
            f"the nearest sizes that do are {below} and {below + patch}."
        )
    return ViTShape(size, patch, config.image_size)


def _linear(
    in_features: int,
    out_features: int,
    axes: tuple[str, str],
    dtype: Any,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.Linear:
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
    )


def _layer_norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # nnx computes mean and variance in float32 whatever `dtype` is.
    return nnx.LayerNorm(
        width,
        epsilon=1e-6,
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
        scale_metadata={"axes": ("embed",)},
        bias_metadata={"axes": ("embed",)},
    )


class Attention(nnx.Module):
    """Multi-head self-attention over `[B, N, D]`; Q, K, V as three projections (FINDINGS 9: less memory traffic)."""

    def __init__(self, size: ViTSize, dtype: Any, rngs: nnx.Rngs) -> None:
        width = size.width
        self.num_heads = size.num_heads
        self.query = _linear(width, width, ("embed", "heads"), dtype, rngs)
        self.key = _linear(width, width, ("embed", "heads"), dtype, rngs)
        self.value = _linear(width, width, ("embed", "heads"), dtype, rngs)
        self.out = _linear(width, width, ("heads", "embed"), dtype, rngs)

    def __call__(self, x: Float[Array, "BN D"], batch: int) -> Float[Array, "BN D"]:
        heads = (batch, x.shape[0] // batch, self.num_heads, x.shape[1] // self.num_heads)
        attended = jax.nn.dot_product_attention(
            self.query(x).reshape(heads), self.key(x).reshape(heads), self.value(x).reshape(heads)
        )
        return self.out(attended.reshape(x.shape))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); tokens flattened to `[B·N, D]` outside attention."""

    def __init__(self, size: ViTSize, dtype: Any, rngs: nnx.Rngs) -> None:
        self.attention_norm = _layer_norm(size.width, dtype, rngs)
        self.attention = Attention(size, dtype, rngs)
        self.mlp_norm = _layer_norm(size.width, dtype, rngs)
        self.mlp_in = _linear(size.width, size.mlp_dim, ("embed", "mlp"), dtype, rngs)
        self.mlp_out = _linear(size.mlp_dim, size.width, ("mlp", "embed"), dtype, rngs)

    def __call__(self, x: Float[Array, "BN D"], batch: int) -> Float[Array, "BN D"]:
        x = x + self.attention(self.attention_norm(x), batch)
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=True))


class ViT(nnx.Module):
    """`backbone(images) -> Features`; images `[B, H, W, 3]`, already normalised."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        shape = resolve_shape(config)
        dtype = jnp.dtype(config.compute_dtype)
        width, tokens = shape.size.width, shape.grid**2
        self.patch, self.grid, self.dtype = shape.patch, shape.grid, dtype
        self.pooling = config.pooling
        self.learned_position = config.position_embedding == "learned"
        # The patch convolution as a matrix product: rows are the patch's (y, x, channel).
        self.patch_embedding = _linear(shape.patch**2 * 3, width, ("patch", "embed"), dtype, rngs)
        if self.learned_position:
            value = jax.random.normal(rngs.params(), (tokens, width)) / np.sqrt(width)
            self.position_embedding = nnx.Param(value, axes=("tokens", "embed"))
        if self.pooling == "cls":
            self.cls = nnx.Param(jnp.zeros((1, width)), axes=("tokens", "embed"))
        self.blocks = nnx.List([Block(shape.size, dtype, rngs) for _ in range(shape.size.depth)])
        self.norm = _layer_norm(width, dtype, rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Features:
        batch = images.shape[0]
        x = self.patch_embedding(patchify(images.astype(self.dtype), self.patch))
        if self.learned_position:
            position = self.position_embedding[...]
        else:
            position = jnp.asarray(sincos2d(self.grid, x.shape[-1]))
        x = x + position.astype(self.dtype)
        if self.pooling == "cls":
            cls = jnp.broadcast_to(self.cls[...].astype(self.dtype), (batch, 1, x.shape[-1]))
            x = jnp.concatenate([cls, x], axis=1)
        flat = x.reshape(-1, x.shape[-1])
        for block in self.blocks:
            flat = block(flat, batch)
        tokens = self.norm(flat).reshape(batch, -1, flat.shape[-1])
        pooled = tokens[:, 0] if self.pooling == "cls" else tokens.mean(axis=1, dtype=jnp.float32)
        return Features(pooled.astype(self.dtype), tokens)


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N P"]:
    """Non-overlapping patches in row order, each flattened as (y, x, channel)."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def sincos2d(grid: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-D sine-cosine position embedding `[grid², width] float32` (MoCo v3, Chen et al., 2021)."""
    if width % 4:
        raise UserError(f"sincos2d needs a width that divides by 4, not {width}.")
    y, x = np.mgrid[:grid, :grid].astype(np.float64)
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1 or 1))
    y, x = np.outer(y.ravel(), omega), np.outer(x.ravel(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
