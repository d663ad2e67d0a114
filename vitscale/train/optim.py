"""The optimiser as an optax chain over the flat dict of named parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

import optax

from vitscale.config import OptimConfig
from vitscale.errors import UserError


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to `lr`, then cosine to `final_lr_fraction * lr`, or constant."""
    if config.warmup_steps >= total_steps:
        raise UserError(
            f"optim.warmup_steps={config.warmup_steps} must be below total_steps={total_steps}."
        )
    rest = total_steps - config.warmup_steps
    main = (
        optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr_fraction)
        if config.schedule == "cosine"
        else optax.constant_schedule(config.lr)
    )
    if not config.warmup_steps:
        return main
    # Starts at lr / warmup, so that the first step already learns.
    warmup = optax.linear_schedule(
        config.lr / config.warmup_steps, config.lr, max(config.warmup_steps - 1, 1)
    )
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(
    config: OptimConfig, total_steps: int, axes: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformation:
    """Clip by global norm → AdamW (decay on matrices only) → LR multipliers by parameter name.

    axes: logical axis names of every parameter. A stack of vectors (`layers`, …) is not a matrix.
    """
    decay_mask = {name: len(set(names) - {"layers"}) > 1 for name, names in axes.items()}
    multipliers = resolve_multipliers(config.lr_multipliers, list(axes))
    clip = (
        optax.clip_by_global_norm(config.grad_clip_norm)
        if config.grad_clip_norm > 0
        else optax.identity()
    )
    adamw = optax.adamw(
        make_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    scale = optax.stateless(
        lambda updates, _: {name: u * multipliers[name] for name, u in updates.items()}
    )
    return optax.chain(clip, adamw, scale)


def resolve_multipliers(rules: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """The factor of every parameter: the first rule that matches, else 1. A rule that matches nothing is an error."""
    for pattern in rules:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"optim.lr_multipliers: {pattern!r} matches no parameter; names look like {names[0]}."
            )
    return {
        name: next((factor for pattern, factor in rules.items() if re.search(pattern, name)), 1.0)
        for name in names
    }
