"""Losses over classes that are too many for one device: on the shards of the classes, a chunk of them at a time.

The classes are split over the mesh axes `fsdp` and `tensor`. A device sees the features of all rows of its replica and
data group, and the logits of `chunk` of its own classes at a time; the backward pass computes them again. What crosses
devices is a few numbers a row: the log-sum-exp (of a softmax), the logits of the labels, the best class. So memory and
time follow classes / devices, and no device ever holds a row's logits of all classes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vitscale.models.heads import ClassScores, l2_normalise
from vitscale.parallel.mesh import BATCH_AXES
from vitscale.train.class_sampling import sample_classes

CLASS_AXES = ("fsdp", "tensor")
# The logit of what must not win: finite, as -inf - -inf in a chunk of padding alone would make the gradient NaN.
MASKED = -1e30

Loss = Literal["softmax", "sigmoid"]


def sharded_class_loss(
    scores: ClassScores,
    labels: Int[Array, "B K"],
    targets: Float[Array, "B K"],
    *,
    num_classes: int,
    loss: Loss,
    label_smoothing: float = 0.0,
    chunk: int,
    sampled: float = 1.0,
    key: Array | None = None,
    mesh: Mesh | AbstractMesh | None,
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """`softmax_loss` or `sigmoid_loss` of `vitscale.train.tasks`, and whether the top class is one of the labels.

    Classes from `num_classes` on are padding and take no part. Rows without a label get 0 and False. Classes that the
    mesh does not divide are split over fewer axes, at worst over none.

    sampled: below 1, every shard keeps this share of its classes (Partial FC, An et al., 2022, arXiv 2203.15565): those
    that are labels in the batch, then others by chance, drawn from `key`; without a key it keeps all. The loss is that
    of the kept classes alone: below the full one, and without a factor that would make up for it. The top class is
    among them too. A label that finds no place in its shard's sample is none in this step.
    """
    settings = _Settings(
        loss=loss,
        num_classes=num_classes,
        label_smoothing=label_smoothing,
        chunk=chunk,
        sampled=sampled,
        scale=scores.scale,
        normalise=scores.normalise,
        class_axis=scores.class_axis,
        dtype=scores.features.dtype.name,
    )
    stored = scores.weights.shape[scores.class_axis]
    layout = _Layout((), (), stored) if mesh is None else _Layout.on(mesh, stored)
    local = functools.partial(_local_loss, settings, layout)
    if layout.batch_axes or layout.class_axes:
        rows, classes = PartitionSpec(layout.batch_axes), PartitionSpec(layout.class_axes)
        columns = PartitionSpec(*[None] * scores.class_axis, layout.class_axes)
        everywhere = PartitionSpec()
        local = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(rows, columns, classes, rows, rows, everywhere, everywhere),
            out_specs=(rows, rows),
        )
    return local(scores.features, scores.weights, scores.bias, labels, targets, labels, key)


@dataclass(frozen=True)
class _Settings:
    """What is known while tracing."""

    loss: Loss
    num_classes: int  # without the padding
    label_smoothing: float
    chunk: int
    sampled: float
    scale: float
    normalise: bool
    class_axis: int
    dtype: str  # of the product


@dataclass(frozen=True)
class _Layout:
    """Which mesh axes split the rows and the classes; both are empty on one device."""

    batch_axes: tuple[str, ...]
    class_axes: tuple[str, ...]
    local_classes: int

    @classmethod
    def on(cls, mesh: Mesh | AbstractMesh, stored: int) -> _Layout:
        # An axis of one device splits nothing, and a sum over it would be a copy.
        sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
        batch = tuple(axis for axis in BATCH_AXES if axis in sizes)
        for axes in (CLASS_AXES, CLASS_AXES[:1], CLASS_AXES[1:]):
            present = tuple(axis for axis in axes if axis in sizes)
            parts = math.prod(sizes[axis] for axis in present)
            if stored % parts == 0:
                return cls(batch, present, stored // parts)
        return cls(batch, (), stored)

    @property
    def gathered(self) -> tuple[str, ...]:
        """Axes whose devices have other rows and other classes: each needs the rows of all."""
        return tuple(axis for axis in self.class_axes if axis in self.batch_axes)

    def shard(self) -> Array | int:
        """The number of this device's class shard."""
        return lax.axis_index(self.class_axes) if self.class_axes else 0

    def gather_rows(self, rows: Array) -> Array:
        return lax.all_gather(rows, self.gathered, tiled=True) if self.gathered else rows

    def own_rows(self, rows: Array, like: Array) -> Array:
        """This device's part of what `gather_rows` made."""
        if not self.gathered:
            return rows
        size = like.shape[0]
        return lax.dynamic_slice_in_dim(rows, lax.axis_index(self.gathered) * size, size)

    def sum(self, x: Array) -> Array:
        """Over the shards of the classes."""
        return lax.psum(x, self.class_axes) if self.class_axes else x

    def max(self, x: Array) -> Array:
        return lax.pmax(x, self.class_axes) if self.class_axes else x

    def vary_rows(self, x: Array) -> Array:
        """The same value, seen as one that differs between class shards: its gradients there are to be summed."""
        missing = tuple(axis for axis in self.class_axes if axis not in self.batch_axes)
        return lax.pcast(x, missing, to="varying") if missing else x

    def vary_classes(self, x: Array) -> Array:
        """The same for what all row groups share: its gradients there are to be summed."""
        missing = tuple(axis for axis in self.batch_axes if axis not in self.class_axes)
        return lax.pcast(x, missing, to="varying") if missing else x


def _local_loss(
    settings: _Settings,
    layout: _Layout,
    features: Float[Array, "b D"],
    weights: Float[Array, "..."],
    bias: Float[Array, " c"] | None,
    labels: Int[Array, "b K"],
    targets: Float[Array, "b K"],
    all_labels: Int[Array, "B K"],
    key: Array | None,
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """The work of one device: b of the B rows and c of the stored classes are its own."""
    # float32 before it is gathered, so that the gradient is summed over the shards in float32.
    rows = layout.vary_rows(layout.gather_rows(features.astype(jnp.float32)))
    row_labels = layout.gather_rows(labels)
    row_targets = layout.gather_rows(targets)
    offset = layout.shard() * layout.local_classes
    ids = offset + jnp.arange(layout.local_classes)
    slots = _own(row_labels - offset, layout.local_classes)
    if settings.sampled < 1 and key is not None:
        sample = sample_classes(
            jax.random.fold_in(key, layout.shard()),
            _own(all_labels - offset, layout.local_classes),
            is_class=ids < settings.num_classes,
            share=settings.sampled,
        )
        ids = ids[sample.kept]
        slots = jnp.where(slots >= 0, sample.slots[slots], -1)
        weights = jnp.take(weights, sample.kept, axis=settings.class_axis)
        bias = None if bias is None else bias[sample.kept]
        # Where there are more labels than the sample holds.
        row_targets = row_targets * layout.sum((slots >= 0).astype(jnp.float32))
    weights = layout.vary_classes(weights)
    bias = None if bias is None else layout.vary_classes(bias)
    target = row_targets if settings.loss == "sigmoid" else _scaled(row_targets)
    parts, best = _over_chunks(settings, rows, weights, bias, ids, slots, target)
    losses = _combine(settings, layout, parts, jnp.sum(ids < settings.num_classes))
    losses = jnp.where(row_targets.sum(axis=1) > 0, losses, 0.0)
    top = _top_class(layout, best)
    hits = jnp.any((row_labels == top[:, None]) & (row_targets > 0), axis=1)
    return layout.own_rows(losses, features), layout.own_rows(hits, features)


def _own(local: Int[Array, "B K"], size: int) -> Int[Array, "B K"]:
    """Labels counted from the shard's first class; -1 for those of other shards and for padding."""
    return jnp.where((local >= 0) & (local < size), local, -1)


def _scaled(targets: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """To a sum of 1 a row, as a softmax has it."""
    return targets / jnp.maximum(targets.sum(axis=1, keepdims=True), 1e-12)


class _Parts(NamedTuple):
    """What a chunk of classes adds to each row's loss; with a leading axis, what each of n chunks does."""

    base: Float[Array, "*n B"]  # log-sum-exp of the logits (softmax), or sum of softplus (sigmoid)
    expected: Float[Array, "*n B"]  # target · logits
    total: Float[Array, "*n B"]  # sum of the logits


class _Best(NamedTuple):
    """Each row's highest logit and its class."""

    value: Float[Array, "*n B"]
    label: Int[Array, "*n B"]


def _combine(
    settings: _Settings, layout: _Layout, parts: _Parts, kept: Int[Array, ""]
) -> Float[Array, " B"]:
    """The loss from the parts of all chunks and shards. kept: true classes of this shard that took part."""
    expected = layout.sum(parts.expected.sum(axis=0))
    if settings.loss == "sigmoid":
        return layout.sum(parts.base.sum(axis=0)) - expected
    highest = layout.max(lax.stop_gradient(parts.base.max(axis=0)))
    exponentials = layout.sum(jnp.exp(parts.base - highest).sum(axis=0))
    losses = highest + jnp.log(exponentials) - expected
    if settings.label_smoothing:
        mean = layout.sum(parts.total.sum(axis=0)) / layout.sum(kept)
        losses = losses - settings.label_smoothing * (mean - expected)
    return losses


def _top_class(layout: _Layout, best: _Best) -> Int[Array, " B"]:
    """The class of the highest logit over chunks and shards; the lowest of equals, as argmax does."""
    value = lax.stop_gradient(best.value)
    is_highest = value == layout.max(value.max(axis=0))
    lowest = jnp.where(is_highest, best.label, jnp.iinfo(jnp.int32).max).min(axis=0)
    return -layout.max(-lowest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_chunks(
    settings: _Settings,
    rows: Float[Array, "B D"],
    weights: Float[Array, "..."],
    bias: Float[Array, " c"] | None,
    ids: Int[Array, " c"],
    slots: Int[Array, "B K"],
    target: Float[Array, "B K"],
) -> tuple[_Parts, _Best]:
    """Parts and best class of each of n chunks, `[n, B]`, one chunk after the other.

    ids: the classes that the weights belong to. slots: where in `ids` each label is, -1 for none.

    The backward pass is written out so that it holds one chunk's logits too, reads the weights where they lie and
    writes their gradient in place; JAX's own would sum one array of all weights a chunk.
    """

    def one_chunk(_: None, number: Array) -> tuple[None, tuple[_Parts, _Best]]:
        piece = _Piece.of(settings, number, ids.shape[0])
        return None, _chunk_parts(
            settings, piece, rows, piece.weights(weights), piece.bias(bias), ids, slots, target
        )

    _, outputs = lax.scan(one_chunk, None, jnp.arange(_num_chunks(settings, ids.shape[0])))
    return outputs


def _over_chunks_forward(settings: _Settings, *inputs: Any) -> tuple[Any, Any]:
    return _over_chunks(settings, *inputs), inputs


def _over_chunks_backward(settings: _Settings, inputs: Any, cotangents: Any) -> tuple[Any, ...]:
    rows, weights, bias, ids, slots, target = inputs

    def one_chunk(gradients: Any, step: Any) -> tuple[Any, None]:
        number, of_parts = step
        piece = _Piece.of(settings, number, ids.shape[0])

        def parts(rows: Array, weights: Array, bias: Array | None) -> tuple[_Parts, _Best]:
            return _chunk_parts(settings, piece, rows, weights, bias, ids, slots, target)

        arguments = (rows, piece.weights(weights), piece.bias(bias))
        _, pull, _ = jax.vjp(parts, *arguments, has_aux=True)
        of_rows, of_weights, of_bias = pull(of_parts)
        all_rows, all_weights, all_bias = gradients
        return (
            all_rows + of_rows,
            piece.add(all_weights, of_weights, settings.class_axis),
            None if bias is None else piece.add(all_bias, of_bias, 0),
        ), None

    zeros = jax.tree.map(jnp.zeros_like, (rows, weights, bias))
    numbers = jnp.arange(_num_chunks(settings, ids.shape[0]))
    gradients, _ = lax.scan(one_chunk, zeros, (numbers, cotangents[0]))
    return (*gradients, None, None, None)


_over_chunks.defvjp(_over_chunks_forward, _over_chunks_backward)


def _num_chunks(settings: _Settings, classes: int) -> int:
    return math.ceil(classes / settings.chunk)


class _Piece(NamedTuple):
    """A chunk of a shard's classes. The last one may begin before the end of the one before it, to be of full size;
    only classes from `first` on are its own."""

    class_axis: int
    size: int
    first: Array
    start: Array

    @classmethod
    def of(cls, settings: _Settings, number: Array, classes: int) -> _Piece:
        # Chunks of one size, not full ones and a rest: the overlap is less than a class a chunk.
        size = math.ceil(classes / _num_chunks(settings, classes))
        first = number * size
        return cls(settings.class_axis, size, first, jnp.minimum(first, classes - size))

    def slice(self, x: Array, axis: int = 0) -> Array:
        return lax.dynamic_slice_in_dim(x, self.start, self.size, axis)

    def weights(self, weights: Array) -> Array:
        return self.slice(weights, self.class_axis)

    def bias(self, bias: Array | None) -> Array | None:
        return None if bias is None else self.slice(bias)

    def add(self, whole: Array, part: Array, axis: int) -> Array:
        """The gradient of `slice`, added to that of the chunks before."""
        return lax.dynamic_update_slice_in_dim(
            whole, self.slice(whole, axis) + part, self.start, axis
        )


def _chunk_parts(
    settings: _Settings,
    piece: _Piece,
    rows: Float[Array, "B D"],
    weights: Float[Array, "..."],
    bias: Float[Array, " s"] | None,
    ids: Int[Array, " c"],
    slots: Int[Array, "B K"],
    target: Float[Array, "B K"],
) -> tuple[_Parts, _Best]:
    """The logits of one chunk of s classes, `[B, s]`, and what the loss needs of them."""
    logits = _logits(settings, rows, weights, bias)
    chunk_ids = piece.slice(ids)
    own = piece.start + jnp.arange(piece.size) >= piece.first
    counts = own & (chunk_ids < settings.num_classes)
    masked = jnp.where(counts, logits, MASKED)
    here = (slots >= piece.first) & (slots < piece.first + piece.size)
    picked = jnp.take_along_axis(logits, jnp.where(here, slots - piece.start, 0), axis=1)
    softmax = settings.loss == "softmax"
    top = jnp.argmax(masked, axis=1)
    return _Parts(
        base=jax.nn.logsumexp(masked, 1) if softmax else jax.nn.softplus(masked).sum(1),
        expected=jnp.sum(jnp.where(here, target * picked, 0.0), axis=1),
        total=jnp.sum(jnp.where(counts, logits, 0.0), axis=1),
    ), _Best(masked.max(axis=1), chunk_ids[top])


def _logits(
    settings: _Settings,
    rows: Float[Array, "B D"],
    weights: Float[Array, "..."],
    bias: Float[Array, " s"] | None,
) -> Float[Array, "B s"]:
    by_class = jnp.moveaxis(weights, settings.class_axis, 0)
    if settings.normalise:
        by_class = l2_normalise(by_class)
    product = rows.astype(settings.dtype) @ by_class.astype(settings.dtype).T
    logits = product.astype(jnp.float32) * settings.scale
    return logits if bias is None else logits + bias
