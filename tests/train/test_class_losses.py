"""Sharded class losses: value and gradient of the plain loss on every mesh, memory that follows classes / devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitscale.models.heads import ClassScores, l2_normalise
from vitscale.parallel.mesh import AXES, BATCH_AXES
from vitscale.train.class_losses import CLASS_AXES, sharded_class_loss
from vitscale.train.class_sampling import sample_classes
from vitscale.train.tasks import sigmoid_loss, softmax_loss, task_accuracy

# 40 stored classes a device; the last ones are padding. A chunk does not divide them.
CLASSES, STORED, CHUNK = 309, 320, 17
BATCH, LABELS, WIDTH = 16, 4, 8
MESHES = {
    "data2 fsdp2 tensor2": (1, 2, 2, 2),
    "fsdp8": (1, 1, 8, 1),
    "tensor8": (1, 1, 1, 8),
    "replica2 fsdp4": (2, 1, 4, 1),
    "one device": (1, 1, 1, 1),
    "no mesh": None,
}
CASES = {
    "softmax": {"loss": "softmax"},
    "smoothed": {"loss": "softmax", "label_smoothing": 0.1},
    "sigmoid": {"loss": "sigmoid"},
    "proxies": {"loss": "softmax", "normalise": True},
}


def make_mesh(sizes):
    if sizes is None:
        return None
    return Mesh(np.asarray(jax.devices()[: math.prod(sizes)]).reshape(sizes), AXES)


def make_scores(features, weights, bias, normalise=False):
    """weights: [C, D]. Linear heads give theirs as [D, C]."""
    if normalise:
        return ClassScores(features, weights, None, 20.0, 0, normalise=True)
    return ClassScores(features, weights.T, bias, 1.0, 1, normalise=False)


def plain_logits(features, weights, bias, normalise=False):
    if normalise:
        return 20 * features @ l2_normalise(weights).T
    return features @ weights.T + bias


def make_arrays(seed=0):
    rng = np.random.default_rng(seed)
    # Few different biases: rows without features tie.
    features, bias = rng.normal(size=(BATCH, WIDTH)), rng.integers(0, 3, STORED)
    features[3] = 0
    weights = rng.normal(size=(STORED, WIDTH))
    return tuple(np.asarray(x, np.float32) for x in (features, weights, bias))


def make_labels(bias, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (BATCH, LABELS)).astype(np.int32)
    labels[:, 3] = rng.choice([-1, 5], BATCH)
    labels[0] = [CLASSES - 1, 0, -1, -1]  # the first class, and the last before the padding
    labels[1] = -1  # no label
    labels[2] = [41, 42, 43, 44]  # all in one shard
    labels[3] = [
        np.argmax(bias),
        0,
        -1,
        -1,
    ]  # the first of the classes that tie, with and without a bias
    weights = np.where(labels >= 0, rng.uniform(0.1, 2.0, labels.shape), 0)
    return labels, weights.astype(np.float32)


def weighted(losses, weights):
    """A sum in which every row counts differently, so that no two gradients can be exchanged."""
    return jnp.sum(losses * (weights.sum(1) > 0) * (1 + jnp.arange(len(losses))))


@functools.cache
def ours(mesh_name, case, sampled=1.0, stored=STORED):
    """(features, weights, bias, labels, label weights, key) -> ((sum, (losses, correct)), gradients)."""
    options = dict(CASES[case])
    normalise, mesh = options.pop("normalise", False), make_mesh(MESHES.get(mesh_name, mesh_name))

    def loss(features, weights, bias, labels, label_weights, key):
        losses, correct = sharded_class_loss(
            make_scores(features, weights[:stored], bias[:stored], normalise),
            labels,
            label_weights,
            num_classes=min(CLASSES, stored),
            chunk=CHUNK,
            sampled=sampled,
            key=key,
            mesh=mesh,
            **options,
        )
        return weighted(losses, label_weights), (losses, correct)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@functools.cache
def plain(case):
    """The same from all logits on one device."""
    options = dict(CASES[case])
    normalise = options.pop("normalise", False)

    def loss(features, weights, bias, labels, label_weights):
        logits = plain_logits(features, weights[:CLASSES], bias[:CLASSES], normalise)
        if options["loss"] == "sigmoid":
            losses = sigmoid_loss(logits, labels, label_weights)
        else:
            smoothing = options.get("label_smoothing", 0.0)
            losses = softmax_loss(logits, labels, label_weights, smoothing)
        return weighted(losses, label_weights), (losses, logits)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def assert_close(ours, theirs):
    """Equal within float32's rounding of sums, relative to the largest element."""
    scale = max(float(np.abs(theirs).max()), 1e-3)
    np.testing.assert_allclose(np.asarray(ours) / scale, np.asarray(theirs) / scale, atol=5e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mesh", MESHES)
def test_value_gradients_and_accuracy_are_those_of_the_plain_loss(mesh, case):
    arrays = make_arrays()
    labels, weights = make_labels(arrays[2])
    (_, (losses, correct)), gradients = ours(mesh, case)(*arrays, labels, weights, None)
    (_, (expected, logits)), expected_gradients = plain(case)(*arrays, labels, weights)
    labelled = weights.sum(1) > 0
    assert losses.dtype == jnp.float32
    assert not np.asarray(losses)[~labelled].any()
    assert_close(losses[labelled], expected[labelled])
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(mine, theirs)
    assert correct[3]
    assert not correct[1]
    accuracy = task_accuracy(logits, labels, weights)
    assert np.sum(np.asarray(correct) & labelled) == accuracy.total


@st.composite
def label_batches(draw):
    """Any labels: none, all in one shard, the same in all rows."""
    row = st.lists(st.integers(0, CLASSES - 1), max_size=LABELS, unique=True)
    labels = np.full((BATCH, LABELS), -1, np.int32)
    for i, values in enumerate(draw(st.lists(row, min_size=BATCH, max_size=BATCH))):
        labels[i, : len(values)] = values
    return labels, np.where(labels >= 0, 1.0, 0.0).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(label_batches(), st.integers(0, 3))
def test_any_labels_give_the_plain_loss(batch, seed):
    arrays = make_arrays(seed)
    (value, _), gradients = ours("data2 fsdp2 tensor2", "smoothed")(*arrays, *batch, None)
    (expected, _), expected_gradients = plain("smoothed")(*arrays, *batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(mine, theirs)


# 309 = 3 * 103 classes divide over neither axis, 310 over fsdp alone, 316 over tensor alone or fsdp alone.
@pytest.mark.parametrize("stored", [309, 310, 316])
def test_classes_that_do_not_divide_are_split_less(stored):
    arrays = make_arrays()
    labels, weights = make_labels(arrays[2])
    run = ours((1, 1, 2, 4), "softmax", stored=stored)
    (value, _), gradients = run(*arrays, labels, weights, None)
    (expected, _), expected_gradients = plain("softmax")(*arrays, labels, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(mine, theirs)


def test_bfloat16_products_keep_float32_losses_and_weight_gradients():
    features, weights, bias = make_arrays()
    labels, label_weights = make_labels(bias)
    half = jnp.asarray(features, jnp.bfloat16)
    (_, (losses, _)), gradients = ours("data2 fsdp2 tensor2", "softmax")(
        half, weights, bias, labels, label_weights, None
    )
    (_, (expected, _)), _ = plain("softmax")(features, weights, bias, labels, label_weights)
    labelled = label_weights.sum(1) > 0
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(losses[labelled], expected[labelled], rtol=0.02, atol=0.02)


def test_logits_of_any_size_stay_finite():
    features, weights, bias = make_arrays()
    labels, label_weights = make_labels(bias)
    (value, _), gradients = ours("fsdp8", "smoothed")(
        1e4 * features, 1e3 * weights, bias, labels, label_weights, None
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_a_sample_of_all_classes_changes_nothing():
    arrays = make_arrays()
    batch = make_labels(arrays[2])
    run = ours("fsdp8", "proxies")
    (exact, (_, expected_correct)), expected_gradients = run(*arrays, *batch, None)
    everything = ours(
        "fsdp8", "proxies", sampled=0.999
    )  # all 40 classes of a shard, by way of the sample
    (value, (_, correct)), gradients = everything(*arrays, *batch, jax.random.key(1))
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_array_equal(correct, expected_correct)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(mine, theirs)
    (without_key, _), _ = everything(*arrays, *batch, None)
    assert without_key == exact


@pytest.mark.parametrize("mesh", ["data2 fsdp2 tensor2", "replica2 fsdp4", "no mesh"])
def test_a_sampled_loss_is_the_plain_loss_of_the_kept_classes(mesh):
    """Every group of rows must have drawn the same sample: one set of classes explains all losses and gradients."""
    share, shards = 0.5, {"no mesh": 1}.get(mesh, 4)
    arrays = make_arrays()
    labels, weights = make_labels(arrays[2])
    run = ours(mesh, "smoothed", sampled=share)
    (value, (losses, _)), gradients = run(*arrays, labels, weights, jax.random.key(3))
    # A softmax pushes every class that it sees.
    kept = np.flatnonzero(np.abs(gradients[1]).max(axis=1))
    assert set(labels[labels >= 0]) <= set(kept.tolist())
    assert kept.max() < CLASSES
    assert np.bincount(kept // (STORED // shards)).max() <= math.ceil(share * STORED / shards)
    position = {int(c): i for i, c in enumerate(kept)}
    among_kept = np.vectorize(lambda c: position.get(int(c), -1))(labels)
    logits = plain_logits(arrays[0], arrays[1][kept], arrays[2][kept])
    expected = softmax_loss(logits, among_kept, weights, 0.1)
    labelled = weights.sum(1) > 0
    assert_close(losses[labelled], expected[labelled])
    of_kept = jax.grad(
        lambda w: weighted(
            softmax_loss(arrays[0] @ w.T + arrays[2][kept], among_kept, weights, 0.1), weights
        )
    )(arrays[1][kept])
    assert_close(gradients[1][kept], of_kept)
    # The same key draws the same classes, another key others.
    again, other = (run(*arrays, labels, weights, jax.random.key(k))[0][0] for k in (3, 4))
    assert again == value
    assert other != value


def test_more_labels_than_the_sample_are_left_out_of_the_step():
    arrays = make_arrays()
    labels, weights = make_labels(arrays[2])
    run = ours("fsdp8", "softmax", sampled=0.03)  # 2 of 40 classes a shard
    (_, (losses, correct)), gradients = run(*arrays, labels, weights, jax.random.key(0))
    assert np.isfinite(losses).all()
    assert all(np.isfinite(g).all() for g in gradients)
    kept = np.flatnonzero(np.abs(gradients[1]).max(axis=1))
    assert len(kept) <= 2 * 8
    has_label = np.isin(labels, kept).any(axis=1)
    assert 0 < has_label.sum() < np.sum(weights.sum(1) > 0)
    assert (np.asarray(losses)[~has_label] == 0).all()
    assert not np.asarray(correct)[~has_label].any()


draw_half = jax.jit(functools.partial(sample_classes, share=0.5))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 29), min_size=12, max_size=12), st.integers(0, 100))
def test_a_sample_has_all_labels_then_others_then_padding(labels, seed):
    is_class = np.arange(40) < 30
    sample = draw_half(jax.random.key(seed), np.asarray(labels).reshape(6, 2), is_class=is_class)
    kept = np.asarray(sample.kept)
    assert len(set(kept.tolist())) == 20
    assert kept.max() < 30
    assert (np.diff(kept) > 0).all()
    assert {label for label in labels if label >= 0} <= set(kept.tolist())
    slots = np.asarray(sample.slots)
    np.testing.assert_array_equal(kept[slots[slots >= 0]], np.flatnonzero(slots >= 0))


def compile_gradient(fsdp, classes, width, batch, chunk, loss="softmax", sampled=1.0):
    """Value and gradient of a linear head, compiled for `fsdp` devices; nothing is allocated."""
    mesh = make_mesh((1, 1, fsdp, 1))

    def place(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    arguments = (
        place((batch, width), jnp.float32, BATCH_AXES),
        place((width, classes), jnp.float32, None, CLASS_AXES),
        place((classes,), jnp.float32, CLASS_AXES),
        place((batch, 4), jnp.int32, BATCH_AXES),
        place((batch, 4), jnp.float32, BATCH_AXES),
    )

    def value(features, kernel, bias, labels, weights):
        losses, _ = sharded_class_loss(
            ClassScores(features, kernel, bias, 1.0, 1, normalise=False),
            labels,
            weights,
            num_classes=classes - 5,
            loss=loss,
            chunk=chunk,
            sampled=sampled,
            key=jax.random.key(0),
            mesh=mesh,
        )
        return losses.sum()

    places = tuple(a.sharding for a in arguments[:3])
    gradient = jax.jit(
        jax.value_and_grad(value, argnums=(0, 1, 2)),
        out_shardings=(NamedSharding(mesh, PartitionSpec()), places),
    )
    return gradient.lower(*arguments).compile()


def bytes_per_device(compiled):
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def array_sizes(compiled):
    """Elements of every array of the program."""
    shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", compiled.as_text())
    return {shape: math.prod(map(int, shape.split(","))) for shape in shapes}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_memory_follows_classes_over_devices(loss):
    classes, width, batch, chunk = 65_536, 96, 64, 512
    programs = {n: compile_gradient(n, classes, width, batch, chunk, loss) for n in (1, 2, 4, 8)}
    used = {n: bytes_per_device(program) for n, program in programs.items()}
    for n in (2, 4, 8):
        assert used[n] < 1.35 * used[1] / n, used
        # Besides parameters and gradients: a few times one chunk's logits, and never those of all classes.
        temporary = programs[n].memory_analysis().temp_size_in_bytes
        assert temporary < batch * classes * 4 / 16, used
    sizes = array_sizes(programs[8])
    parameters = classes // 8 * width
    assert max(sizes.values()) == parameters
    assert f"{batch},{classes // 8}" not in sizes
    assert f"{classes // 8},{batch}" not in sizes


def test_two_million_classes_fit_eight_devices():
    classes, width, batch, chunk = 2_000_896, 128, 256, 8192
    compiled = compile_gradient(8, classes, width, batch, chunk)
    parameters = classes // 8 * (width + 1) * 4
    memory = compiled.memory_analysis()
    logits = batch * chunk * 4
    assert memory.argument_size_in_bytes < 1.01 * parameters
    assert memory.output_size_in_bytes < 1.01 * parameters
    assert memory.temp_size_in_bytes < 10 * logits < batch * classes * 4 / 20
    assert max(array_sizes(compiled).values()) == classes // 8 * width


def test_sampled_negatives_cost_the_sample():
    full = compile_gradient(8, 65_536, 64, 64, 8192)
    sampled = compile_gradient(8, 65_536, 64, 64, 8192, sampled=0.1)
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (full, sampled)]
    assert temporary[1] < temporary[0] / 2
