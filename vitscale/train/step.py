"""One training step: a pure function of (state, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from vitscale.config import TaskConfig, TrainConfig
from vitscale.data.augment import augment_batch
from vitscale.models.multitask import ModelDefinition, Params
from vitscale.models.precision import weight_gradients_in
from vitscale.parallel.mesh import BATCH_AXES
from vitscale.train.optim import Optimizer
from vitscale.train.state import TrainState
from vitscale.train.tasks import Sum, evaluate_task, label_targets

Metrics = dict[str, Array]
Batch = dict[str, Any]
# (state, batch, patch size and image size of this step, None: the config's) -> (state, metrics)
Step = Callable[[TrainState, Batch, int | None, int | None], tuple[TrainState, Metrics]]
# Draws of the model (dropout) and of the augmentation must not share keys.
MODEL_STREAM = 1
IMAGE_SIZE_STREAM = 1  # of the host's draws; those of patch sizes have none


def loss_and_sums(
    definition: ModelDefinition,
    trainable: Params,
    frozen: Params,
    statistics: Params,
    batch: Batch,
    examples: Mapping[str, Float[Array, ""]],
    *,
    key: Array,
    patch_size: int | None = None,
) -> tuple[Array, tuple[dict[str, Sum], Params]]:
    """The share of the loss that these examples have; (sum, weight) pairs by name; and new statistics.

    The loss is the weighted sum over tasks of (summed loss here / `examples[task]`), so that parts of a batch add up
    to the loss of the whole when `examples` counts the whole. The batch comes from `augment_batch`.
    """
    model = definition.merge({**trainable, **frozen, **statistics})
    pooled = model.pooled(batch["image"], train=True, key=key, patch_size=patch_size)
    loss = jnp.zeros((), jnp.float32)
    sums: dict[str, Sum] = {}
    for number, task in enumerate(definition.tasks):
        result = evaluate_task(
            task,
            model.heads[task.name],
            pooled,
            batch["labels"][task.label_field],
            batch_targets(task, batch),
            num_classes=definition.num_classes[task.label_field],
            key=jax.random.fold_in(key, number),
        )
        loss = loss + task.weight * result.loss.total / examples[task.name]
        sums[f"{task.name}/loss"] = result.loss
        sums[f"{task.name}/accuracy"] = result.correct
    return loss, (sums, definition.statistics(model))


def make_step(definition: ModelDefinition, optimizer: Optimizer, config: TrainConfig) -> Step:
    """The step of a config; jit it with the shardings of `vitscale.train.state.state_shardings`.

    A step whose loss or gradient is not finite, or whose gradient norm is above `survival.max_grad_norm`, changes
    nothing but the counters. Patch size and image size are static: one compilation for each pair of
    `model.patch_sizes` and `data.image_sizes` that comes up.
    """

    def step(
        state: TrainState,
        batch: Batch,
        patch_size: int | None = None,
        image_size: int | None = None,
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), MODEL_STREAM)
        grads, metrics, statistics = _gradient(
            definition,
            optimizer.trainable,
            config,
            state,
            _augmented(config, batch, image_size),
            key=jax.random.fold_in(key, state.step),
            patch_size=patch_size,
        )
        grad_norm = optax.tree.norm(grads)
        usable = _usable(metrics["loss"], grad_norm, config.survival.max_grad_norm)
        trainable = {name: state.params[name] for name in optimizer.trainable}
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable, state.step)
        # Selected in place, within the update's own pass over memory.
        params = {n: jnp.where(usable, p + updates[n], p) for n, p in trainable.items()}
        metrics["lr"] = optimizer.schedule(state.step)
        metrics["grad_norm"] = grad_norm
        metrics["update_norm"] = jnp.where(usable, optax.tree.norm(updates), 0.0)
        # Behind the barrier this reduction does not join the update's, which is in place: together they would make
        # XLA copy every parameter first.
        metrics["param_norm"] = optax.tree.norm(jax.lax.optimization_barrier(state.params))
        skipped = state.skipped + jnp.where(usable, 0, 1)
        metrics["skipped_steps"] = skipped
        new = TrainState(
            step=state.step + 1,
            skipped=skipped,
            params={**state.params, **params},
            statistics=_select(usable, statistics, state.statistics),
            opt_state=_select(usable, opt_state, state.opt_state),
            ema=_averaged(state, params, config.optim.ema_decay, usable),
        )
        return new, metrics

    return step


def _augmented(config: TrainConfig, batch: Batch, image_size: int | None) -> Batch:
    return augment_batch(
        batch,
        config.data.augment,
        seed=config.seed,
        size=config.model.image_hw if image_size is None else (image_size, image_size),
        compute_dtype=config.model.compute_dtype,
        mean=config.model.mean,
        std=config.model.std,
    )


def batch_targets(task: TaskConfig, batch: Mapping[str, Any]) -> Float[Array, "B K"]:
    """What each label of a batch counts in a task's loss."""
    return label_targets(
        task,
        batch["weights"][task.label_field],
        batch["task_mask"][task.name],
        batch.get("shares"),
    )


def _gradient(
    definition: ModelDefinition,
    trainable: Sequence[str],
    config: TrainConfig,
    state: TrainState,
    batch: Batch,
    *,
    key: Array,
    patch_size: int | None,
) -> tuple[Params, Metrics, Params]:
    """Gradient of the mean loss, scalar metrics and new statistics, the batch computed in `accumulate_steps` parts."""
    chosen = {name: state.params[name] for name in trainable}
    frozen = {name: value for name, value in state.params.items() if name not in chosen}
    examples = {
        task.name: jnp.maximum(_labelled(batch_targets(task, batch)), 1.0)
        for task in definition.tasks
    }

    def part(statistics: Params, batch: Batch, key: Array) -> tuple[Params, Any, Params]:
        loss = functools.partial(loss_and_sums, key=key, patch_size=patch_size)
        with weight_gradients_in(config.model.gradient_dtype):
            grads, (sums, statistics) = jax.grad(loss, argnums=1, has_aux=True)(
                definition, chosen, frozen, statistics, batch, examples
            )
        return grads, sums, statistics

    parts = config.optim.accumulate_steps
    if parts == 1:
        grads, sums, statistics = part(state.statistics, batch, key)
    else:
        grads, sums, statistics = _accumulated(part, state.statistics, batch, key, parts)
    return grads, _metrics(definition.tasks, sums), statistics


def _labelled(targets: Float[Array, "B K"]) -> Float[Array, ""]:
    """How many examples have a label."""
    return jnp.sum(targets.sum(axis=1) > 0, dtype=jnp.float32)


def _accumulated(
    part: Callable[[Params, Batch, Array], tuple[Params, Any, Params]],
    statistics: Params,
    batch: Batch,
    key: Array,
    parts: int,
) -> tuple[Params, Any, Params]:
    """Sums over parts of the batch, one after another; BatchNorm sees one part at a time."""
    split = jax.tree.map(lambda x: _split_batch(x, parts), batch)
    shapes = jax.eval_shape(part, statistics, jax.tree.map(lambda x: x[0], split), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

    def body(carry: Any, inputs: Any) -> tuple[Any, None]:
        total, statistics = carry
        number, piece = inputs
        grads, sums, statistics = part(statistics, piece, jax.random.fold_in(key, number))
        return (jax.tree.map(jnp.add, total, (grads, sums)), statistics), None

    start = (zeros, statistics)
    ((grads, sums), statistics), _ = jax.lax.scan(body, start, (jnp.arange(parts), split))
    return grads, sums, statistics


def _split_batch(x: Array, parts: int) -> Array:
    """`[B, ...]` → `[parts, B / parts, ...]` with every device keeping rows that it has already."""
    pieces = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return pieces
    return jax.lax.with_sharding_constraint(pieces, PartitionSpec(None, BATCH_AXES))


def _metrics(tasks: Sequence[TaskConfig], sums: Mapping[str, Sum]) -> Metrics:
    metrics = {name: total.mean() for name, total in sums.items()}
    for task in tasks:
        metrics[f"{task.name}/examples"] = sums[f"{task.name}/loss"].weight
    losses = [task.weight * metrics[f"{task.name}/loss"] for task in tasks]
    return {"loss": functools.reduce(jnp.add, losses), **metrics}


def _usable(loss: Array, grad_norm: Array, max_grad_norm: float) -> Bool[Array, ""]:
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    return finite & (grad_norm <= max_grad_norm) if max_grad_norm > 0 else finite


def _select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _averaged(state: TrainState, params: Params, decay: float, usable: Bool[Array, ""]) -> Params:
    """The moving average after this step. Early steps forget faster: min(decay, (1 + t) / (10 + t)), as TensorFlow's
    `ExponentialMovingAverage` has it, or the random start would stay in it for 1 / (1 - decay) steps."""
    if not state.ema:
        return {}
    t = state.step.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return {
        name: jnp.where(usable, average + rate * (params[name] - average), average)
        for name, average in state.ema.items()
    }


def sample_patch_size(config: TrainConfig, step: int) -> int | None:
    """The patch size of one step (FlexiViT), drawn from (seed, step): the same after any restart and on any host."""
    sizes = config.model.patch_sizes
    return int(np.random.default_rng((config.seed, step)).choice(sizes)) if sizes else None


def sample_image_size(config: TrainConfig, step: int) -> int | None:
    """The side that one step trains at, of `data.image_sizes`, drawn from (seed, step); None: `model.image_size`."""
    sizes = config.data.image_sizes
    rng = np.random.default_rng((config.seed, step, IMAGE_SIZE_STREAM))
    return int(rng.choice(sizes)) if sizes else None
