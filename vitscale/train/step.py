"""One training step: a pure function of (state, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from vitscale.config import TrainConfig
from vitscale.data.augment import augment
from vitscale.models.multitask import ModelDefinition, Params
from vitscale.train.state import TrainState
from vitscale.train.tasks import task_accuracy, task_loss

Metrics = dict[str, Array]
# (state, batch, patch size of this step or None) -> (state, metrics)
Step = Callable[[TrainState, dict[str, Any], int | None], tuple[TrainState, Metrics]]
# Draws of the model (dropout) and of the augmentation must not share keys.
MODEL_STREAM = 1


def loss_and_metrics(
    definition: ModelDefinition,
    params: Params,
    statistics: Params,
    images: Array,
    batch: dict[str, Any],
    *,
    key: Array,
    patch_size: int | None = None,
) -> tuple[Array, tuple[Metrics, Params]]:
    """The weighted sum of every task's mean loss over its labelled examples; scalars by task, and new statistics."""
    model = definition.merge({**params, **statistics})
    logits = model.logits(model(images, train=True, key=key, patch_size=patch_size))
    loss = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for task in definition.tasks:
        labels, weights = batch["labels"][task.label_field], batch["weights"][task.label_field]
        task_sum = task_loss(task, logits[task.name], labels, weights)
        loss = loss + task.weight * task_sum.mean()
        metrics[f"{task.name}/loss"] = task_sum.mean()
        metrics[f"{task.name}/accuracy"] = task_accuracy(logits[task.name], labels, weights).mean()
        metrics[f"{task.name}/examples"] = task_sum.weight
    return loss, ({"loss": loss, **metrics}, definition.statistics(model))


def make_step(
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
) -> Step:
    """The step of a config; jit it with the shardings of `vitscale.train.state.state_shardings`.

    The patch size is static: one compilation for each of `model.patch_sizes`.
    """

    model = config.model

    def step(
        state: TrainState, batch: dict[str, Any], patch_size: int | None = None
    ) -> tuple[TrainState, Metrics]:
        images = augment(
            batch["image"],
            batch["position"],
            seed=config.seed,
            flip=config.data.flip,
            compute_dtype=model.compute_dtype,
            mean=model.mean,
            std=model.std,
        )
        key = jax.random.fold_in(jax.random.key(config.seed), MODEL_STREAM)
        loss = functools.partial(
            loss_and_metrics, key=jax.random.fold_in(key, state.step), patch_size=patch_size
        )
        gradient = jax.value_and_grad(loss, argnums=1, has_aux=True)
        (_, (metrics, statistics)), grads = gradient(
            definition, state.params, state.statistics, images, batch
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["lr"] = schedule(state.step)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["update_norm"] = optax.tree.norm(updates)
        # Behind the barrier this reduction does not join the update's, which is in place: together they would make
        # XLA copy every parameter first.
        metrics["param_norm"] = optax.tree.norm(jax.lax.optimization_barrier(state.params))
        return TrainState(state.step + 1, params, statistics, opt_state), metrics

    return step


def sample_patch_size(config: TrainConfig, step: int) -> int | None:
    """The patch size of one step (FlexiViT), drawn from (seed, step): the same after any restart and on any host."""
    sizes = config.model.patch_sizes
    return int(np.random.default_rng((config.seed, step)).choice(sizes)) if sizes else None
