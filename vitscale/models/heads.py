"""Heads: from the backbone's pooled features to one task's output, and from that to training logits.

A head of many classes (`uses_sharded_loss`) is trained by `vitscale.train.class_losses`, which never holds the logits
of all classes: it asks for `scores`, what the logits are made of. Such a head stores a few classes more than there
are, so that every mesh divides them and a checkpoint fits every mesh; its outputs do not show them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitscale.config import ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.layers import Linear
from vitscale.models.precision import dense

# From here on the logits of a batch cost more memory than computing them twice costs time.
SHARDED_LOSS_CLASSES = 8192
# Stored classes of a sharded loss: what any number of devices that is a power of two up to this one divides.
CLASS_MULTIPLE = 1024


class ClassScores(NamedTuple):
    """What the logits of C stored classes are made of: `features · weights * scale + bias`.

    The product is in the features' dtype, everything after it in float32.
    """

    features: Float[Array, "B D"]  # compute dtype
    weights: Float[Array, "..."]  # float32; [C, D], or [D, C] with class_axis 1
    bias: Float[Array, " C"] | None
    scale: float
    class_axis: int  # of the weights: a kernel is not transposed first, which would copy it
    normalise: bool  # each class's weights are L2-normalised first


class Head(Protocol):
    """`head(pooled)` is what a user of the model gets; `logits(output)` is what the loss reads, in float32."""

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B X"]: ...
    def logits(self, output: Float[Array, "B X"]) -> Float[Array, "B C"]: ...


def uses_sharded_loss(task: TaskConfig, num_classes: int) -> bool:
    """Whether a task's loss is computed on the shards of its classes. An ordinal head has one score, and no shards."""
    if task.kind == "ordinal":
        return False
    if task.sharded_loss is not None:
        return task.sharded_loss
    return num_classes >= SHARDED_LOSS_CLASSES


def stored_classes(task: TaskConfig, num_classes: int) -> int:
    """How many classes the head's parameters have: the true ones, padded where the loss is sharded."""
    if not uses_sharded_loss(task, num_classes):
        return num_classes
    return math.ceil(num_classes / CLASS_MULTIPLE) * CLASS_MULTIPLE


def uses_sigmoid(task: TaskConfig) -> bool:
    """Whether a task has one binary decision a class."""
    return task.kind == "multi_label" and task.loss == "sigmoid"


def check_loss(task: TaskConfig, num_classes: int) -> None:
    """Raises `UserError` for options of the sharded loss on a task that has none."""
    if task.kind == "ordinal" and task.sharded_loss:
        raise UserError(f"tasks.{task.name}: an ordinal task has no sharded_loss.")
    if task.sampled_classes == 1:
        return
    if uses_sigmoid(task):
        raise UserError(
            f"tasks.{task.name}.sampled_classes={task.sampled_classes} needs a softmax: a sum of sigmoids over some "
            "of the classes is another loss."
        )
    if not uses_sharded_loss(task, num_classes):
        raise UserError(
            f"tasks.{task.name}.sampled_classes={task.sampled_classes} samples classes of a sharded loss; set "
            "sharded_loss=True."
        )


class ClassificationHead(nnx.Module):
    """Linear logits `[B, C] float32`. Zero-initialised (big_vision): the first loss is log C whatever the features."""

    def __init__(
        self,
        width: int,
        num_classes: int,
        dtype: Any,
        rngs: nnx.Rngs,
        initial_bias: float | None = 0.0,
        stored: int | None = None,
    ) -> None:
        """initial_bias: of every class; None leaves the bias out. stored: classes with the padding."""
        self.num_classes, self.dtype = num_classes, dtype
        self.linear = Linear(
            width,
            stored or num_classes,
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
        return self.linear(pooled)[:, : self.num_classes].astype(jnp.float32)

    def logits(self, output: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return output

    def scores(self, pooled: Float[Array, "B D"]) -> ClassScores:
        bias = None if self.linear.bias is None else self.linear.bias[...]
        features = pooled.astype(self.dtype)
        return ClassScores(features, self.linear.kernel[...], bias, 1.0, 1, normalise=False)


class OrdinalHead(nnx.Module):
    """Log-probabilities `[B, C] float32` of C ordered classes by a cumulative link (McCullagh, 1980).

    One score s and C - 1 increasing thresholds t: P(class <= k) = sigmoid(t_k - s). The thresholds are kept
    increasing by learning the logarithm of their distances.
    """

    def __init__(self, width: int, num_classes: int, dtype: Any, rngs: nnx.Rngs) -> None:
        if num_classes < 2:
            raise UserError(f"an ordinal head needs at least 2 classes, not {num_classes}.")
        self.linear = Linear(
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
        self.num_classes = num_classes
        self.temperature = task.temperature
        self.dtype = dtype
        self.norm = nnx.LayerNorm(
            width, use_bias=False, use_scale=False, epsilon=1e-6, dtype=dtype, rngs=rngs
        )
        self.projection = Linear(
            width,
            task.embedding_dim,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.xavier_uniform(),
            rngs=rngs,
            kernel_metadata={"axes": ("embed", "projection")},
        )
        stored = stored_classes(task, num_classes)
        proxies = jax.random.normal(rngs.params(), (stored, task.embedding_dim))
        self.proxies = nnx.Param(proxies, axes=("classes", "projection"))

    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return l2_normalise(self.projection(self.norm(pooled)).astype(jnp.float32))

    def logits(self, output: Float[Array, "B E"]) -> Float[Array, "B C"]:
        proxies = l2_normalise(self.proxies[: self.num_classes])
        cosine = dense(output.astype(self.dtype), proxies.T)
        return cosine.astype(jnp.float32) / self.temperature

    def scores(self, pooled: Float[Array, "B D"]) -> ClassScores:
        features, scale = self(pooled).astype(self.dtype), 1 / self.temperature
        return ClassScores(features, self.proxies[...], None, scale, 0, normalise=True)


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
    stored = stored_classes(task, num_classes)
    return ClassificationHead(width, num_classes, dtype, rngs, model.head_bias, stored)
