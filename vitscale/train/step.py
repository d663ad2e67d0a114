"""One training step: a pure function of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vitscale.config import TrainConfig
from vitscale.data.augment import augment
from vitscale.models.multitask import ModelDefinition, Params
from vitscale.train.state import TrainState
from vitscale.train.tasks import task_accuracy, task_loss

Metrics = dict[str, Array]
Step = Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]]


def loss_and_metrics(
    definition: ModelDefinition, params: Params, images: Array, batch: dict[str, Any]
) -> tuple[Array, Metrics]:
    """The weighted sum of every task's mean loss over its labelled examples, and scalars by task."""
    model = definition.merge(params)
    logits = model.logits(model(images))
    loss = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for task in definition.tasks:
        labels, weights = batch["labels"][task.label_field], batch["weights"][task.label_field]
        task_sum = task_loss(task, logits[task.name], labels, weights)
        loss = loss + task.weight * task_sum.mean()
        metrics[f"{task.name}/loss"] = task_sum.mean()
        metrics[f"{task.name}/accuracy"] = task_accuracy(logits[task.name], labels, weights).mean()
        metrics[f"{task.name}/examples"] = task_sum.weight
    return loss, {"loss": loss, **metrics}


def make_step(
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
) -> Step:
    """The step of a config; jit it with the shardings of `vitscale.train.state.state_shardings`."""

    def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Metrics]:
        images = augment(
            batch["image"],
            batch["position"],
            seed=config.seed,
            flip=config.data.flip,
            compute_dtype=config.model.compute_dtype,
        )
        gradient = jax.value_and_grad(loss_and_metrics, argnums=1, has_aux=True)
        (_, metrics), grads = gradient(definition, state.params, images, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["lr"] = schedule(state.step)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["update_norm"] = optax.tree.norm(updates)
        metrics["param_norm"] = optax.tree.norm(state.params)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
