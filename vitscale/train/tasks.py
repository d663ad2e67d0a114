"""Losses and metrics of the tasks, each a masked sum and its weight, so that any mixture is one compiled step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitscale.config import TaskConfig
from vitscale.models.heads import (
    ClassificationHead,
    EmbeddingHead,
    OrdinalHead,
    uses_sharded_loss,
    uses_sigmoid,
)
from vitscale.train.class_losses import sharded_class_loss


class Sum(NamedTuple):
    """A sum and the weight it stands for; value = total / weight. Sums of shards and hosts add up."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        return self.total / jnp.maximum(self.weight, 1.0)


class TaskResult(NamedTuple):
    """What a batch says about one task, over the examples that have a label for it."""

    loss: Sum
    correct: Sum  # how often the top class is one of the labels


def evaluate_task(
    task: TaskConfig,
    head: ClassificationHead | OrdinalHead | EmbeddingHead,
    pooled: Float[Array, "B D"],
    labels: Int[Array, "B K"],
    weights: Float[Array, "B K"],
    *,
    num_classes: int,
    key: Array | None = None,
) -> TaskResult:
    """Loss and accuracy from the backbone's pooled features, in the compute dtype.

    Few classes: from all logits. Many (`uses_sharded_loss`): on the shards of the mesh that the caller traces with
    (`jax.sharding.use_abstract_mesh`). key: for the classes that `task.sampled_classes` leaves out; None (validation):
    none is left out.
    """
    if not uses_sharded_loss(task, num_classes) or isinstance(head, OrdinalHead):
        logits = head.logits(head(pooled))
        return TaskResult(
            task_loss(task, logits, labels, weights), task_accuracy(logits, labels, weights)
        )
    losses, correct = sharded_class_loss(
        head.scores(pooled),
        labels,
        weights,
        num_classes=num_classes,
        loss="sigmoid" if uses_sigmoid(task) else "softmax",
        label_smoothing=task.label_smoothing,
        chunk=task.class_chunk,
        sampled=task.sampled_classes,
        key=key,
        mesh=jax.sharding.get_abstract_mesh(),
    )
    labelled = weights.sum(axis=1) > 0
    count = jnp.sum(labelled, dtype=jnp.float32)
    return TaskResult(
        Sum(jnp.sum(losses * labelled), count),
        Sum(jnp.sum(correct & labelled, dtype=jnp.float32), count),
    )


def task_loss(
    task: TaskConfig,
    logits: Float[Array, "B C"],
    labels: Int[Array, "B K"],
    weights: Float[Array, "B K"],
) -> Sum:
    """Loss over the examples that have a label for this task, in float32.

    Labels are padded with -1, their weights with 0; a row of zero weights is not labelled and adds nothing.
    """
    logits = logits.astype(jnp.float32)
    labelled = weights.sum(axis=1) > 0
    if uses_sigmoid(task):
        losses = sigmoid_loss(logits, labels, weights)
    else:
        losses = softmax_loss(logits, labels, weights, task.label_smoothing)
    return Sum(jnp.sum(losses * labelled), jnp.sum(labelled, dtype=jnp.float32))


def softmax_loss(
    logits: Float[Array, "B C"],
    labels: Int[Array, "B K"],
    weights: Float[Array, "B K"],
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Cross-entropy against targets in proportion to the weights.

    With k equal weights it is SWAG's target 1/k on each label (Singh et al., 2022, arXiv 2201.08371); with one label,
    the usual cross-entropy. Labels are gathered, so that no [B, C] target is ever built.
    """
    target = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)
    expected = jnp.sum(target * picked, axis=1)
    smooth = label_smoothing * (logits.mean(axis=1) - expected)
    return jax.nn.logsumexp(logits, axis=1) - expected - smooth


def sigmoid_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B K"], weights: Float[Array, "B K"]
) -> Float[Array, " B"]:
    """One binary cross-entropy a class, summed over classes (CatLIP's `batch_mean`, arXiv 2404.15653)."""
    present = (weights > 0).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)
    return jnp.sum(jax.nn.softplus(logits), axis=1) - jnp.sum(present * picked, axis=1)


def task_accuracy(
    logits: Float[Array, "B C"], labels: Int[Array, "B K"], weights: Float[Array, "B K"]
) -> Sum:
    """How often the top class is one of the labels, over labelled examples."""
    labelled = weights.sum(axis=1) > 0
    top = jnp.argmax(logits, axis=1)
    hit = jnp.any((labels == top[:, None]) & (weights > 0), axis=1)
    return Sum(jnp.sum(hit & labelled, dtype=jnp.float32), jnp.sum(labelled, dtype=jnp.float32))
