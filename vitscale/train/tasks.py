"""Losses and metrics of the tasks, each a masked sum and its weight, so that any mixture is one compiled step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def label_targets(
    task: TaskConfig,
    weights: Float[Array, "B K"],
    trains: Bool[Array, " B"],
    shares: Float[Array, "B 2"] | None = None,
) -> Float[Array, "B K"]:
    """What each label counts in a task's loss; a row of zeros is not labelled.

    A sigmoid task's targets are 1 for each label, whatever its weight. Other tasks take them in proportion to the
    weights, and the loss makes their sum 1.

    Args:
        weights: of the labels, 0 where padded.
        trains: whether an example trains this task (`Batch.task_mask`).
        shares: of mixed images: what the labels of the first half of the slots count, and those of the second half,
            which are the partner's; each half then has the targets that it would have alone, times its share.
    """
    weights = jnp.where(trains[:, None], weights, 0.0)
    if uses_sigmoid(task):
        weights = (weights > 0).astype(jnp.float32)
    if shares is None:
        return weights
    halves = weights.reshape(weights.shape[0], 2, -1)
    if not uses_sigmoid(task):
        halves = halves / jnp.maximum(halves.sum(axis=2, keepdims=True), 1e-12)
    return (shares[:, :, None] * halves).reshape(weights.shape)


def evaluate_task(
    task: TaskConfig,
    head: ClassificationHead | OrdinalHead | EmbeddingHead,
    pooled: Float[Array, "B D"],
    labels: Int[Array, "B K"],
    targets: Float[Array, "B K"],
    *,
    num_classes: int,
    key: Array | None = None,
) -> TaskResult:
    """Loss and accuracy from the backbone's pooled features, in the compute dtype; targets: of `label_targets`.

    Few classes: from all logits. Many (`uses_sharded_loss`): on the shards of the mesh that the caller traces with
    (`jax.sharding.use_abstract_mesh`). key: for the classes that `task.sampled_classes` leaves out; None (validation):
    none is left out.
    """
    if not uses_sharded_loss(task, num_classes) or isinstance(head, OrdinalHead):
        logits = head.logits(head(pooled))
        return TaskResult(
            task_loss(task, logits, labels, targets), task_accuracy(logits, labels, targets)
        )
    losses, correct = sharded_class_loss(
        head.scores(pooled),
        labels,
        targets,
        num_classes=num_classes,
        loss="sigmoid" if uses_sigmoid(task) else "softmax",
        label_smoothing=task.label_smoothing,
        chunk=task.class_chunk,
        sampled=task.sampled_classes,
        key=key,
        mesh=jax.sharding.get_abstract_mesh(),
    )
    labelled = targets.sum(axis=1) > 0
    count = jnp.sum(labelled, dtype=jnp.float32)
    return TaskResult(
        Sum(jnp.sum(losses * labelled), count),
        Sum(jnp.sum(correct & labelled, dtype=jnp.float32), count),
    )


def task_loss(
    task: TaskConfig,
    logits: Float[Array, "B C"],
    labels: Int[Array, "B K"],
    targets: Float[Array, "B K"],
) -> Sum:
    """Loss over the examples that have a label for this task, in float32.

    Labels are padded with -1, their targets with 0; a row of zero targets is not labelled and adds nothing.
    """
    logits = logits.astype(jnp.float32)
    labelled = targets.sum(axis=1) > 0
    if uses_sigmoid(task):
        losses = sigmoid_loss(logits, labels, targets)
    else:
        losses = softmax_loss(logits, labels, targets, task.label_smoothing)
    return Sum(jnp.sum(losses * labelled), jnp.sum(labelled, dtype=jnp.float32))


def softmax_loss(
    logits: Float[Array, "B C"],
    labels: Int[Array, "B K"],
    targets: Float[Array, "B K"],
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Cross-entropy against `targets`, scaled to a sum of 1.

    With k equal weights it is SWAG's target 1/k on each label (Singh et al., 2022, arXiv 2201.08371); with one label,
    the usual cross-entropy. Labels are gathered, so that no [B, C] target is ever built.
    """
    target = targets / jnp.maximum(targets.sum(axis=1, keepdims=True), 1e-12)
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)
    expected = jnp.sum(target * picked, axis=1)
    smooth = label_smoothing * (logits.mean(axis=1) - expected)
    return jax.nn.logsumexp(logits, axis=1) - expected - smooth


def sigmoid_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B K"], targets: Float[Array, "B K"]
) -> Float[Array, " B"]:
    """One binary cross-entropy a class, summed over classes (CatLIP's `batch_mean`, arXiv 2404.15653).

    A class's target is the sum of those of the slots that name it, 0 .. 1.
    """
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)
    return jnp.sum(jax.nn.softplus(logits), axis=1) - jnp.sum(targets * picked, axis=1)


def task_accuracy(
    logits: Float[Array, "B C"], labels: Int[Array, "B K"], targets: Float[Array, "B K"]
) -> Sum:
    """How often the top class is one of the labels (of a mixed image: of either), over labelled examples."""
    labelled = targets.sum(axis=1) > 0
    top = jnp.argmax(logits, axis=1)
    hit = jnp.any((labels == top[:, None]) & (targets > 0), axis=1)
    return Sum(jnp.sum(hit & labelled, dtype=jnp.float32), jnp.sum(labelled, dtype=jnp.float32))
