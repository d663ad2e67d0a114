"""Learning rate by step: a linear warm-up, then one of four courses."""

from __future__ import annotations

import math

import jax.numpy as jnp
import optax
from jaxtyping import Array

from vitscale.config import OptimConfig
from vitscale.errors import UserError


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """From a step (number of steps done) to its learning rate, a float32 scalar. Durations are steps by now.

    Warm-up: linear from `lr / warmup` to `lr`, so that the first step already learns. Then, with t steps since it:

    - constant: lr.
    - cosine: half a cosine from lr to `final_lr_fraction * lr` (Loshchilov & Hutter, 2017, arXiv 1608.03983).
    - rsqrt: lr / sqrt(1 + t / timescale), as in big_vision (Zhai et al., 2022, arXiv 2106.04560, section 3.5).
    - wsd: constant until the cooldown (Hu et al., 2024, arXiv 2404.06395; Hägele et al., 2024, arXiv 2405.18392).

    The cooldown of rsqrt and wsd is linear. Cosine and cooldown reach their end at step `total_steps`, one after the
    last, and stay there.

    Raises:
        UserError: for durations that do not fit into the run, or an option that the schedule would not read.
    """
    _check(config, total_steps)
    assert isinstance(config.warmup, int)
    rest = total_steps - config.warmup
    after_warmup: optax.Schedule
    if config.schedule == "cosine":
        after_warmup = optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr_fraction)
    elif config.schedule == "constant":
        after_warmup = optax.constant_schedule(config.lr)
    else:
        after_warmup = _with_cooldown(config, rest)
    schedule = after_warmup
    if config.warmup:
        first = config.lr / config.warmup
        warmup = optax.linear_schedule(first, config.lr, max(config.warmup - 1, 1))
        schedule = optax.join_schedules([warmup, after_warmup], [config.warmup])
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def _with_cooldown(config: OptimConfig, rest: int) -> optax.Schedule:
    """The course after the warm-up, `rest` steps long, blended linearly into the final learning rate at its end."""
    assert isinstance(config.cooldown, int)
    assert isinstance(config.timescale, int)
    lr, cooldown, timescale = config.lr, config.cooldown, config.timescale
    final = config.final_lr_fraction * lr

    def schedule(step: Array) -> Array:
        course = jnp.asarray(lr, jnp.float32)
        if config.schedule == "rsqrt":
            # A schedule is also evaluated during the warm-up, where its step is negative and its value unused.
            course = lr / jnp.sqrt(1 + jnp.maximum(step, 0) / timescale)
        if not cooldown:
            return course
        remaining = jnp.clip((rest - step) / cooldown, 0.0, 1.0)
        return course * remaining + final * (1 - remaining)

    return schedule


def _check(config: OptimConfig, total_steps: int) -> None:
    warmup, cooldown, timescale = config.warmup, config.cooldown, config.timescale
    if not isinstance(warmup, int) or not isinstance(cooldown, int):
        raise ValueError(f"{warmup=} and {cooldown=} are not resolved to steps")
    if not isinstance(timescale, int):
        raise ValueError(f"{timescale=} is not resolved to steps")
    name = config.schedule
    if warmup >= total_steps:
        raise UserError(f"optim.warmup={warmup} steps must be below the run's {total_steps} steps.")
    if warmup + cooldown > total_steps:
        raise UserError(
            f"optim.warmup={warmup} and optim.cooldown={cooldown} steps do not fit into the run's {total_steps} steps."
        )
    if name == "wsd" and not cooldown:
        raise UserError(
            "optim.schedule='wsd' needs optim.cooldown, such as '20 percent'; without one choose 'constant'."
        )
    if cooldown and name not in ("rsqrt", "wsd"):
        raise UserError(
            f"optim.cooldown={cooldown} is for the schedules 'rsqrt' and 'wsd', but optim.schedule={name!r}."
        )
    if config.final_lr_fraction and name != "cosine" and not cooldown:
        raise UserError(
            f"optim.final_lr_fraction={config.final_lr_fraction} is where cosine and cooldowns end, and "
            f"optim.schedule={name!r} has neither here; set optim.cooldown or leave it at 0."
        )
    if name == "rsqrt":
        if timescale < 1:
            raise UserError(f"optim.timescale={timescale} must be at least one step.")
        lowest = 1 / math.sqrt(1 + (total_steps - warmup) / timescale)
        if config.final_lr_fraction > lowest:
            raise UserError(
                f"optim.final_lr_fraction={config.final_lr_fraction} is above the {lowest:.3g} that rsqrt comes to "
                "without a cooldown, so that the learning rate would rise at the end; set it lower."
            )
