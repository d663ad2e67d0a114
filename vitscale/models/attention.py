"""Self-attention over flattened tokens, and the choice of the kernel that computes it."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vitscale.errors import UserError
from vitscale.models.layers import LayerNorm, bias_of, dropout, linear
from vitscale.models.platform import target_platform
from vitscale.models.positions import rotate
from vitscale.models.precision import add_parameter, dense

logger = logging.getLogger(__name__)
# Below this many tokens XLA's fused attention is as fast on TPU, and flash's blocks of 128 would be mostly padding.
TPU_FLASH_MIN_TOKENS = 1024
TPU_FLASH_BLOCK = 128
CUDNN_MULTIPLE = 8
CUDNN_MAX_HEAD_DIM = 128


class Attention(nnx.Module):
    """Multi-head self-attention of `[B·N, D]`; Q, K, V as three projections (FINDINGS 9: less memory traffic)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        dtype: Any,
        rngs: nnx.Rngs,
        *,
        qk_norm_eps: float | None = None,
        dropout_rate: float = 0.0,
        recompute: bool = False,
    ) -> None:
        """qk_norm_eps: LayerNorm over each head's queries and keys, with this eps; None: no norm.

        recompute: the backward pass computes the attention again.
        """
        self.num_heads, self.dropout_rate = num_heads, dropout_rate
        self.recompute = recompute
        self.query = linear(width, width, ("embed", "heads"), dtype, rngs)
        self.key = linear(width, width, ("embed", "heads"), dtype, rngs)
        self.value = linear(width, width, ("embed", "heads"), dtype, rngs)
        self.out = linear(width, width, ("heads", "embed"), dtype, rngs)
        self.has_qk_norm = qk_norm_eps is not None
        if qk_norm_eps is not None:
            head_dim = width // num_heads
            self.query_norm = LayerNorm(head_dim, qk_norm_eps, dtype, "head_dim")
            self.key_norm = LayerNorm(head_dim, qk_norm_eps, dtype, "head_dim")

    def __call__(
        self,
        x: Float[Array, "BN D"],
        batch: int,
        valid: int,
        implementation: str = "xla",
        rotations: Float[Array, "2 *B N e"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "BN D"]:
        """valid: tokens of each example; the rest, at the end, is padding that nothing attends to.

        implementation: see `attend`. rotations: of `vitscale.models.positions.rope2d`.
        """
        heads = (batch, x.shape[0] // batch, self.num_heads, x.shape[1] // self.num_heads)
        for_queries, for_keys, for_values = _fan_out(x)
        queries = self.query(for_queries).reshape(heads)
        keys = self._keys(for_keys, has_positions=rotations is not None).reshape(heads)
        values = dense(for_values, self.value.kernel[...]).reshape(heads)
        if self.has_qk_norm:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotations is not None:
            queries, keys = rotate(queries, rotations), rotate(keys, rotations)
        core = functools.partial(attend, valid=valid, implementation=implementation)
        attended = (jax.checkpoint(core) if self.recompute else core)(queries, keys, values)
        return dropout(self._project(attended.reshape(x.shape)), self.dropout_rate, key)

    def _keys(self, x: Array, has_positions: bool) -> Array:
        """The key bias adds the same to all scores of a query, and softmax cancels it: its gradient is rounding
        noise, which Adam would scale up to full steps. Rotations and norms end that, and there it is trained."""
        bias = bias_of(self.key)
        if not has_positions and not self.has_qk_norm:
            bias = jax.lax.stop_gradient(bias)
        return add_parameter(dense(x, self.key.kernel[...]), bias)

    def _project(self, attended: Array) -> Array:
        """out(attended + value bias): each row's weights sum to 1, so the bias passes attention unchanged. Added to
        the output's bias its gradient is a small product, not a pass over the values' gradients."""
        kernel = self.out.kernel[...]
        bias = bias_of(self.out) + bias_of(self.value) @ kernel
        return add_parameter(dense(attended, kernel), bias)


@jax.custom_vjp
def _fan_out(x: Array) -> tuple[Array, Array, Array]:
    """x three times. The gradients are added right to left: in this order cuBLASLt adds each to the product before
    it (beta = 1), and no kernel of its own does."""
    return x, x, x


_fan_out.defvjp(lambda x: ((x, x, x), None), lambda _, g: (g[0] + (g[1] + g[2]),))


def attend(
    queries: Float[Array, "B N H d"],
    keys: Float[Array, "B N H d"],
    values: Float[Array, "B N H d"],
    *,
    valid: int,
    implementation: str,
) -> Float[Array, "B N H d"]:
    """softmax(q kᵀ / sqrt(d)) v over the first `valid` tokens; rows beyond them are undefined.

    implementation: xla, cudnn or tpu_flash (what `choose_attention` returns).
    """
    if implementation == "tpu_flash":
        return _tpu_flash(queries, keys, values, valid)
    # Batch and heads as one axis would be gathered, where the mesh splits both.
    whole_heads = jax.sharding.get_abstract_mesh().shape.get("tensor", 1) == 1
    if implementation == "xla" and target_platform() == "cpu" and whole_heads:
        return _head_major(queries, keys, values, valid)
    lengths = None
    if valid < queries.shape[1]:
        lengths = jnp.full(queries.shape[0], valid, jnp.int32)
    return jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        query_seq_lengths=lengths if implementation == "cudnn" else None,
        key_value_seq_lengths=lengths,
        implementation="cudnn" if implementation == "cudnn" else "xla",
    )


def _head_major(queries: Array, keys: Array, values: Array, valid: int) -> Array:
    """The same with all heads of all examples as one batch of matrices.

    XLA's CPU backend runs products that are already in this layout faster than those of
    `jax.nn.dot_product_attention` (`benchmarks/train_step.py --vs dot_product_attention`).
    """
    batch, tokens, heads, head_dim = queries.shape

    def split(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, tokens, head_dim)

    precise = {"preferred_element_type": jnp.float32}  # scores and softmax in float32, as jax does
    scores = jnp.einsum("bqd,bkd->bqk", split(queries), split(keys), **precise)
    scores = scores * np.float32(head_dim**-0.5)
    if valid < tokens:
        scores = jnp.where(jnp.arange(tokens) < valid, scores, -np.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    attended = jnp.einsum("bqk,bkd->bqd", weights, split(values))
    return attended.reshape(batch, heads, tokens, head_dim).transpose(0, 2, 1, 3)


def _tpu_flash(queries: Array, keys: Array, values: Array, valid: int) -> Array:
    """The Pallas kernel on every device's own examples and heads: XLA cannot partition a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_local_tpu_flash, valid=valid)
    if mesh.empty:
        return local(queries, keys, values)
    batch_axes = tuple(a for a in ("replica", "data", "fsdp") if a in mesh.axis_names)
    heads = "tensor" if queries.shape[2] % mesh.shape.get("tensor", 1) == 0 else None
    spec = PartitionSpec(batch_axes, None, heads if "tensor" in mesh.axis_names else None, None)
    # Replication over unused axes cannot be inferred through a kernel.
    return jax.shard_map(local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(
        queries, keys, values
    )


def _local_tpu_flash(queries: Array, keys: Array, values: Array, valid: int) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    tokens, head_dim = queries.shape[1], queries.shape[-1]
    padded = math.ceil(tokens / TPU_FLASH_BLOCK) * TPU_FLASH_BLOCK
    padding = ((0, 0), (0, padded - tokens), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, padding).transpose(0, 2, 1, 3) for x in (queries, keys, values))
    # Tokens see their own segment only: padding sees padding, so that every row has something to attend to.
    segment = jnp.broadcast_to(
        (jnp.arange(padded) >= valid).astype(jnp.int32), (q.shape[0], padded)
    )
    block = next(b for b in (512, 384, 256, 128) if padded % b == 0)
    sizes = flash.BlockSizes(
        block_q=block,
        block_k_major=block,
        block_k=block,
        block_b=1,
        block_q_major_dkv=block,
        block_k_major_dkv=block,
        block_k_dkv=block,
        block_q_dkv=block,
        block_k_major_dq=block,
        block_k_dq=block,
        block_q_dq=block,
    )
    attended = flash.flash_attention(
        q,
        k,
        v,
        segment_ids=flash.SegmentIds(segment, segment),
        sm_scale=head_dim**-0.5,
        block_sizes=sizes,
    )
    return attended.transpose(0, 2, 1, 3)[:, :tokens]


def choose_attention(
    requested: str, *, tokens: int, head_dim: int, dtype: Any, platform: str
) -> tuple[str, str]:
    """(implementation, why) for a config's `attention` on a platform (cpu, gpu or tpu)."""
    if requested != "auto":
        return requested, "the config says so"
    if platform == "gpu":
        if jnp.dtype(dtype) != jnp.bfloat16:
            return "xla", "cuDNN's flash attention takes no float32; compute_dtype=bfloat16 would"
        if head_dim > CUDNN_MAX_HEAD_DIM or head_dim % 8:
            return "xla", f"cuDNN's flash attention takes no heads of {head_dim} channels"
        return "cudnn", "cuDNN's flash attention never writes the [N, N] weights"
    if platform == "tpu" and tokens >= TPU_FLASH_MIN_TOKENS:
        return "tpu_flash", f"{tokens} tokens: the [N, N] weights would be most of the traffic"
    if platform == "tpu":
        return "xla", f"{tokens} tokens: short enough for XLA, without flash's padding to 128s"
    return "xla", f"the only one on {platform}"


def check_attention(requested: str, compute_dtype: str, head_dim: int, platform: str) -> None:
    """Raises `UserError` when the config names a kernel that this machine or model cannot run."""
    if requested == "cudnn" and platform != "gpu":
        raise UserError(
            f"model.attention=cudnn needs an NVIDIA GPU, but jax runs on {platform}; use auto or xla."
        )
    if requested == "cudnn" and (head_dim % 8 or head_dim > CUDNN_MAX_HEAD_DIM):
        raise UserError(
            f"model.attention=cudnn takes heads of 8, 16, ... {CUDNN_MAX_HEAD_DIM} channels, "
            f"not {head_dim}; use auto or xla."
        )
    if requested == "cudnn" and compute_dtype != "bfloat16":
        raise UserError(
            f"model.attention=cudnn needs model.compute_dtype=bfloat16, not {compute_dtype}; use auto or xla."
        )
    if requested == "tpu_flash" and platform != "tpu":
        raise UserError(
            f"model.attention=tpu_flash needs a TPU, but jax runs on {platform}; use auto or xla."
        )


def padded_tokens(tokens: int, implementation: str) -> int:
    """How many tokens the network should carry: cuDNN's training kernels refuse odd counts (197, 257)."""
    if implementation == "cudnn" and tokens % 2:
        return math.ceil(tokens / CUDNN_MULTIPLE) * CUDNN_MULTIPLE
    return tokens


@functools.cache  # once a process and choice
def announce(implementation: str, reason: str) -> None:
    logger.info("attention: %s (%s)", implementation, reason)
