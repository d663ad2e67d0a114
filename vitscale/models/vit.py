"""The Vision Transformer (Dosovitskiy et al., 2021, arXiv 2010.11929), pre-norm, with its later variants."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitscale.config import ModelConfig
from vitscale.models.attention import Attention, announce, choose_attention, padded_tokens
from vitscale.models.features import Features
from vitscale.models.layers import (
    LayerNorm,
    Mlp,
    bias_of,
    drop_path,
    dropout,
    linear,
    split_by_example,
    split_key,
)
from vitscale.models.platform import target_platform
from vitscale.models.pooling import MapHead
from vitscale.models.positions import rope2d, sincos2d
from vitscale.models.precision import add_parameter, dense
from vitscale.models.resize import resize_patch_kernel, resize_position_embedding
from vitscale.models.vit_shape import ViTShape, resolve_shape


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); tokens flattened to `[B·N, D]` outside attention.

    Flat tokens let XLA fuse norms, biases and residuals with the matrix products on both sides: 40 % fewer bytes
    outside matrix products for B/16 than `[B, N, D]` (FINDINGS 9).
    """

    def __init__(self, config: ModelConfig, shape: ViTShape, rngs: nnx.Rngs) -> None:
        width, dtype = shape.size.width, jnp.dtype(config.compute_dtype)
        self.attention_norm = LayerNorm(width, shape.norm_eps, dtype)
        self.attention = Attention(
            width,
            shape.size.num_heads,
            dtype,
            rngs,
            qk_norm_eps=shape.norm_eps if config.qk_norm else None,
            dropout_rate=config.dropout,
            recompute=config.remat == "attention",
        )
        self.mlp_norm = LayerNorm(width, shape.norm_eps, dtype)
        self.mlp = Mlp(config.mlp, width, shape.size.mlp_dim, config.dropout, dtype, rngs)
        self.has_layer_scale = config.layer_scale is not None
        if config.layer_scale is not None:
            factors = jnp.full(width, config.layer_scale, jnp.float32)
            self.attention_scale = nnx.Param(factors, axes=("embed",))
            self.mlp_scale = nnx.Param(factors, axes=("embed",))

    def __call__(
        self,
        x: Float[Array, "BN D"],
        key: Array | None,
        drop_rate: Float[Array, ""] | None,
        *,
        batch: int,
        valid: int,
        implementation: str,
        rotations: Float[Array, "2 *B N e"] | None,
    ) -> Float[Array, "BN D"]:
        keys = split_key(key, 4)
        branch = self.attention(
            self.attention_norm(x), batch, valid, implementation, rotations, keys[0]
        )
        if self.has_layer_scale:
            branch = branch * self.attention_scale[...].astype(branch.dtype)
        x = x + drop_path(branch, batch, drop_rate, keys[1])
        branch = self.mlp(self.mlp_norm(x), keys[2])
        if self.has_layer_scale:
            branch = branch * self.mlp_scale[...].astype(branch.dtype)
        return x + drop_path(branch, batch, drop_rate, keys[3])


class ViT(nnx.Module):
    """`backbone(images) -> Features`; images `[B, H, W, 3]`, already normalised.

    Tokens are in the order cls, registers, patches by row. See `ModelConfig` for the options.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        shape = resolve_shape(config)
        width, dtype = shape.size.width, jnp.dtype(config.compute_dtype)
        self.config, self.shape, self.dtype = config, shape, dtype
        self.features = config.representation_size or width
        # The patch convolution as a matrix product: rows are the patch's (y, x, channel).
        self.patch_embedding = linear(shape.patch**2 * 3, width, ("patch", "embed"), dtype, rngs)
        if config.position_embedding == "learned":
            patches = shape.grid[0] * shape.grid[1]
            self.position_embedding = _normal(rngs, patches, width)
        if shape.class_token:
            self.cls = nnx.Param(jnp.zeros((1, width)), axes=("tokens", "embed"))
        if config.register_tokens:
            self.registers = _normal(rngs, config.register_tokens, width)
        if config.prefix_position:
            self.prefix_position = _normal(rngs, shape.prefix, width)
        self.blocks = _create_blocks(config, shape, rngs)
        self.norm = LayerNorm(width, shape.norm_eps, dtype)
        if config.pooling == "map":
            self.map = MapHead(shape.size, config.mlp, shape.norm_eps, dtype, rngs)
        if config.representation_size:
            self.representation = linear(
                width, config.representation_size, ("embed", "representation"), dtype, rngs
            )

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool = False,
        key: Array | None = None,
        patch_size: int | None = None,
    ) -> Features:
        """patch_size: of this call (FlexiViT); default: the one the parameters are stored at."""
        if not train:
            key = None
        embed_key, kept_key, blocks_key = split_key(key, 3)
        batch, patch = images.shape[0], patch_size or self.shape.patch
        grid = (images.shape[1] // patch, images.shape[2] // patch)
        x = self._embed_patches(images.astype(self.dtype), patch, grid)
        rotations = None
        if self.config.position_embedding == "rope2d":
            head_dim = x.shape[-1] // self.shape.size.num_heads
            rotations = jnp.asarray(rope2d(grid, self.shape.prefix, head_dim))
        x = dropout(x, self.config.dropout, embed_key)
        if kept_key is not None and self.config.patch_dropout:
            x, rotations = self._drop_patches(x, rotations, kept_key)
        x = self._add_prefix(x)
        tokens = self._run_blocks(x, rotations, blocks_key)
        return self._pool(tokens.reshape(batch, -1, tokens.shape[-1])[:, : x.shape[1]])

    def _embed_patches(self, images: Array, patch: int, grid: tuple[int, int]) -> Array:
        kernel = resize_patch_kernel(self.patch_embedding.kernel[...], self.shape.patch, patch)
        x = add_parameter(dense(patchify(images, patch), kernel), bias_of(self.patch_embedding))
        if self.config.position_embedding == "learned":
            table = self.position_embedding[...]
            x = add_parameter(x, resize_position_embedding(table, self.shape.grid, grid))
        elif self.config.position_embedding == "sincos2d":
            x = x + jnp.asarray(sincos2d(grid, x.shape[-1])).astype(self.dtype)
        return x

    def _drop_patches(
        self, x: Array, rotations: Array | None, key: Array
    ) -> tuple[Array, Array | None]:
        """A random subset of each example's patches, in row order; how many is static (`kept_patches`)."""
        batch, count, _ = x.shape
        kept = self.shape.kept_patches(count, self.config.patch_dropout)
        scores = jax.random.uniform(key, (batch, count))
        rows = jnp.sort(jnp.argsort(scores, axis=1)[:, :kept], axis=1)
        x = jnp.take_along_axis(x, rows[:, :, None], axis=1)
        if rotations is not None:
            prefix = self.shape.prefix
            fixed = jnp.broadcast_to(jnp.arange(prefix), (batch, prefix))
            rotations = rotations[:, jnp.concatenate([fixed, rows + prefix], axis=1)]
        return x, rotations

    def _add_prefix(self, x: Array) -> Array:
        prefix = []
        if self.shape.class_token:
            prefix.append(self.cls[...])
        if self.config.register_tokens:
            prefix.append(self.registers[...])
        if not prefix:
            return x
        tokens = jnp.concatenate(prefix)
        if self.config.prefix_position:
            tokens = tokens + self.prefix_position[...]
        # Cast last, so that the backward pass sums over examples in float32.
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)).astype(self.dtype)
        return jnp.concatenate([tokens, x], axis=1)

    def _run_blocks(self, x: Array, rotations: Array | None, key: Array | None) -> Array:
        """`[B, N, D]` through every block, to `[B·M, D]`; M ≥ N where the attention kernel wants padding."""
        batch, tokens, width = x.shape
        implementation, reason = choose_attention(
            self.config.attention,
            tokens=tokens,
            head_dim=width // self.shape.size.num_heads,
            dtype=self.dtype,
            platform=target_platform(),
        )
        announce(implementation, reason)
        padding = padded_tokens(tokens, implementation) - tokens
        if padding:
            x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
            if rotations is not None:
                rotations = jnp.pad(
                    rotations, [(0, 0)] * (rotations.ndim - 2) + [(0, padding), (0, 0)]
                )
        depth = self.shape.size.depth
        rates = None
        if self.config.stochastic_depth:
            rates = jnp.linspace(0, self.config.stochastic_depth, depth)
        keys = None if key is None else jax.random.split(key, depth)
        options = {
            "batch": batch,
            "valid": tokens,
            "implementation": implementation,
            "rotations": rotations,
        }
        run = _scan_blocks if self.config.scan_layers else _unroll_blocks
        return run(self.blocks, x.reshape(-1, width), keys, rates, options, self.config.remat)

    def _pool(self, tokens: Float[Array, "B N D"]) -> Features:
        norm_last = self.config.pooling == "gap" and self.config.gap_norm == "after"
        if not norm_last:
            flat = self.norm(tokens.reshape(-1, tokens.shape[-1]))
            tokens = flat.reshape(tokens.shape)
        patches = tokens[:, self.shape.prefix :]
        if self.config.pooling == "none":
            return Features(None, patches)
        if self.config.pooling == "cls":
            pooled = tokens[:, 0]
        elif self.config.pooling == "map":
            pooled = self.map(patches)
        else:
            pooled = patches.mean(axis=1, dtype=jnp.float32).astype(self.dtype)
        if norm_last:
            pooled = self.norm(pooled)
        if self.config.representation_size:
            pooled = jnp.tanh(self.representation(pooled))
        return Features(pooled, patches)


def _normal(rngs: nnx.Rngs, rows: int, width: int) -> nnx.Param:
    value = jax.random.normal(rngs.params(), (rows, width)) / np.sqrt(width)
    return nnx.Param(value, axes=("tokens", "embed"))


def _create_blocks(config: ModelConfig, shape: ViTShape, rngs: nnx.Rngs) -> Any:
    """A list of blocks, or one block whose parameters have a leading `layers` axis: the same numbers in both."""
    keys = jax.random.split(rngs.params(), shape.size.depth)
    if not config.scan_layers:
        return nnx.List([Block(config, shape, nnx.Rngs(key)) for key in keys])
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Block(config, shape, nnx.Rngs(0))))

    @jax.vmap
    def values(key: Array) -> dict[tuple, Array]:
        state = nnx.state(Block(config, shape, nnx.Rngs(key)))
        return {path: var.get_value() for path, var in nnx.to_flat_state(state)}

    stacked = values(keys)
    variables = [
        (path, nnx.Param(stacked[path], axes=("layers", *var.get_metadata()["axes"])))
        for path, var in nnx.to_flat_state(abstract)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(variables))


def _block_function(graphdef: nnx.GraphDef, options: dict[str, Any], remat: str, scan: bool) -> Any:
    def run(state: Any, x: Array, key: Array | None, rate: Any) -> Array:
        return split_by_example(
            nnx.merge(graphdef, state)(split_by_example(x), key, rate, **options)
        )

    if remat not in ("dots", "full"):
        return run
    # Tokens are flat, so every projection is a product without batch dimensions, and attention's are not.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # A loop body cannot be merged with its recomputation, so inside scan the barriers would only cost.
    return jax.checkpoint(run, policy=policy, prevent_cse=not scan)


def _unroll_blocks(
    blocks: Any, x: Array, keys: Any, rates: Any, options: dict[str, Any], remat: str
) -> Array:
    for index, block in enumerate(blocks):
        graphdef, state = nnx.split(block)
        run = _block_function(graphdef, options, remat, scan=False)
        key = None if keys is None else keys[index]
        x = run(state, x, key, None if rates is None else rates[index])
    return x


def _scan_blocks(
    blocks: Any, x: Array, keys: Any, rates: Any, options: dict[str, Any], remat: str
) -> Array:
    graphdef, states = nnx.split(blocks)
    run = _block_function(graphdef, options, remat, scan=True)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return run(layer[0], x, layer[1], layer[2]), None

    return jax.lax.scan(body, x, (states, keys, rates))[0]


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N P"]:
    """Non-overlapping patches in row order, each flattened as (y, x, channel)."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)
