"""Losses against the same formula written with dense targets, masks, and properties."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config import TaskConfig
from vitscale.train.tasks import sigmoid_loss, softmax_loss, task_accuracy, task_loss


@st.composite
def label_batches(draw):
    classes = 7  # one shape for all draws, so that jax compiles once
    row = st.lists(st.integers(0, classes - 1), max_size=4, unique=True)
    rows = draw(st.lists(row, min_size=6, max_size=6))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    labels, weights = np.full((len(rows), 4), -1, np.int32), np.zeros((len(rows), 4), np.float32)
    for i, row in enumerate(rows):
        labels[i, : len(row)] = row
        weights[i, : len(row)] = rng.uniform(0.1, 2.0, len(row))
    return rng.normal(0, 3, (len(rows), classes)).astype(np.float32), labels, weights


def dense_target(logits, labels, weights):
    target = np.zeros(logits.shape)
    for i, (row, weight) in enumerate(zip(labels, weights, strict=True)):
        for label, w in zip(row, weight, strict=True):
            if w > 0:
                target[i, label] += w
    return target


@settings(deadline=None, max_examples=40)
@given(label_batches(), st.sampled_from([0.0, 0.1]))
def test_softmax_loss_equals_cross_entropy_with_dense_targets(batch, smoothing):
    logits, labels, weights = batch
    target = dense_target(*batch)
    labelled = target.sum(1) > 0
    target = target / np.maximum(target.sum(1, keepdims=True), 1e-12)
    target = (1 - smoothing) * target + smoothing / logits.shape[1]
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)))
    expected = -(target * log_p).sum(1)
    ours = np.asarray(softmax_loss(jnp.asarray(logits), labels, weights, smoothing))
    np.testing.assert_allclose(ours[labelled], expected[labelled], rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(label_batches())
def test_sigmoid_loss_equals_binary_cross_entropy(batch):
    logits, labels, weights = batch
    target = (dense_target(*batch) > 0).astype(np.float64)
    expected = (np.logaddexp(0, logits.astype(np.float64)) - target * logits).sum(1)
    ours = sigmoid_loss(jnp.asarray(logits), labels, weights)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(label_batches())
def test_unlabelled_rows_change_nothing(batch):
    logits, labels, weights = batch
    task = TaskConfig("t", "multi_label")
    more = (
        jnp.concatenate([logits, 7 * jnp.ones_like(logits)]),
        jnp.concatenate([labels, -jnp.ones_like(labels)]),
        jnp.concatenate([weights, jnp.zeros_like(weights)]),
    )
    for function in (lambda *b: task_loss(task, *b), task_accuracy):
        alone, padded = function(jnp.asarray(logits), labels, weights), function(*more)
        np.testing.assert_allclose(alone.total, padded.total, rtol=1e-5, atol=1e-5)
        assert alone.weight == padded.weight
    gradient = jax.grad(lambda x: task_loss(task, x, *more[1:]).mean())(more[0])
    assert not np.asarray(gradient)[len(logits) :].any()


def test_a_batch_without_any_label_has_zero_loss():
    loss = task_loss(
        TaskConfig("t", "single_label"), jnp.ones((2, 3)), -jnp.ones((2, 1), int), jnp.zeros((2, 1))
    )
    assert loss.mean() == 0
