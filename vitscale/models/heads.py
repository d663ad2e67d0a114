"""Heads: from the backbone's pooled features to one task's output, and from that to training logits."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitscale.config import ModelConfig, TaskConfig
from vitscale.errors import UserError


class Head(Protocol):
    """`head(pooled)` is what a user of the model gets; `logits(output)` is what the loss reads, in float32."""

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B X"]: ...
    def logits(self, output: Float[Array, "B X"]) -> Float[Array, "B C"]: ...


class ClassificationHead(nnx.Module):
    """Linear logits `[B, C] float32`. Zero-initialised (big_vision): the first loss is log C whatever the features."""

    def __init__(
        self,
        width: int,
        num_classes: int,
        dtype: Any,
        rngs: nnx.Rngs,
        initial_bias: float | None = 0.0,
    ) -> None:
        """initial_bias: of every class; None leaves the bias out."""
        self.linear = nnx.Linear(
            width,
            num_classes,
            use_bias=initial_bias is not None,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.constant(initial_bias or 0.0),
            rngs=rngs,
            kernel_metadata={"axes": ("embed", "classes")},
            bias_metadata={"axes": ("classes",)},
        )

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B C"]:
        return self.linear(pooled).astype(jnp.float32)

    def logits(self, output: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return output


class OrdinalHead(nnx.Module):
    """Log-probabilities `[B, C] float32` of C ordered classes by a cumulative link (McCullagh, 1980).

    One score s and C - 1 increasing thresholds t: P(class <= k) = sigmoid(t_k - s). The thresholds are kept
    increasing by learning the logarithm of their distances.
    """

    def __init__(self, width: int, num_classes: int, dtype: Any, rngs: nnx.Rngs) -> None:
        if num_classes < 2:
            raise UserError(f"an ordinal head needs at least 2 classes, not {num_classes}.")
        self.linear = nnx.Linear(
            width,
            1,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
            kernel_metadata={"axes": ("embed", "score")},
            bias_metadata={"axes": ("score",)},
        )
        # Equal class probabilities at score 0.
        quantiles = np.arange(1, num_classes) / num_classes
        thresholds = np.log(quantiles / (1 - quantiles))
        self.first_threshold = nnx.Param(jnp.asarray(thresholds[:1], jnp.float32), axes=("score",))
        self.log_gaps = nnx.Param(
            jnp.asarray(np.log(np.diff(thresholds)), jnp.float32), axes=("score",)
        )

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B C"]:
        score = self.linear(pooled).astype(jnp.float32)
        gaps = jnp.cumsum(jnp.exp(self.log_gaps[...]))
        thresholds = self.first_threshold[...] + jnp.concatenate([jnp.zeros(1), gaps])
        return cumulative_log_probabilities(thresholds - score)

    def logits(self, output: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return output


def cumulative_log_probabilities(link: Float[Array, "B K"]) -> Float[Array, "B K+1"]:
    """log P(class k) from the increasing links of P(class <= k) = sigmoid(link_k).

    Uses sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which is finite for every a > b.
    """
    below, above = link[:, :-1], link[:, 1:]
    middle = (
        jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(below - above))
    )
    return jnp.concatenate(
        [jax.nn.log_sigmoid(link[:, :1]), middle, jax.nn.log_sigmoid(-link[:, -1:])], axis=1
    )


class EmbeddingHead(nnx.Module):
    """L2-normalised embedding `[B, E] float32` with one proxy a class (Zhai & Wu, 2019, arXiv 1811.12649).

    LayerNorm without affine, then a projection without bias; logits are cosines to the proxies over the temperature.
    """

    def __init__(
        self, width: int, num_classes: int, task: TaskConfig, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.temperature = task.temperature
        self.dtype = dtype
        self.norm = nnx.LayerNorm(
            width, use_bias=False, use_scale=False, epsilon=1e-6, dtype=dtype, rngs=rngs
        )
        self.projection = nnx.Linear(
            width,
            task.embedding_dim,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.xavier_uniform(),
            rngs=rngs,
            kernel_metadata={"axes": ("embed", "projection")},
        )
        proxies = jax.random.normal(rngs.params(), (num_classes, task.embedding_dim))
        self.proxies = nnx.Param(proxies, axes=("classes", "projection"))

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return l2_normalise(self.projection(self.norm(pooled)).astype(jnp.float32))

    def logits(self, output: Float[Array, "B E"]) -> Float[Array, "B C"]:
        proxies = l2_normalise(self.proxies[...])
        cosine = output.astype(self.dtype) @ proxies.astype(self.dtype).T
        return cosine.astype(jnp.float32) / self.temperature


def l2_normalise(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """x / |x|, finite (and with a finite gradient) at 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def create_head(
    task: TaskConfig, width: int, num_classes: int, model: ModelConfig, rngs: nnx.Rngs
) -> ClassificationHead | OrdinalHead | EmbeddingHead:
    dtype = jnp.dtype(model.compute_dtype)
    if task.kind == "ordinal":
        return OrdinalHead(width, num_classes, dtype, rngs)
    if task.kind == "embedding":
        return EmbeddingHead(width, num_classes, task, dtype, rngs)
    return ClassificationHead(width, num_classes, dtype, rngs, model.head_bias)
