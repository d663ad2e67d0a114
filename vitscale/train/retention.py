"""Which checkpoints stay: the newest ones, every so many steps, and the best by a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers as managers

from vitscale.config import CheckpointConfig


def preservation_policy(
    config: CheckpointConfig, metrics: Mapping[int, Mapping[str, float]]
) -> managers.PreservationPolicy:
    """A checkpoint stays when one of the rules keeps it.

    metrics: values by step, read each time a checkpoint is made.
    """
    policies: list[managers.PreservationPolicy] = [managers.LatestN(config.keep)]
    if config.keep_every_steps:
        policies.append(managers.EveryNSteps(config.keep_every_steps))
    if config.best_metric:
        policies.append(_Best(config, metrics))
    return managers.AnyPreservationPolicy(policies)


class _Best(managers.PreservationPolicy):
    """Keeps the one with the best value; among equal ones the newest.

    Orbax's own BestN takes its metrics from an item that a damaged checkpoint stops it from reading.
    """

    def __init__(
        self, config: CheckpointConfig, metrics: Mapping[int, Mapping[str, float]]
    ) -> None:
        self._name, self._sign = config.best_metric, 1 if config.best_mode == "max" else -1
        self._metrics = metrics

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        values = [self._value(checkpoint.step) for checkpoint in checkpoints]
        best = max(values, default=-math.inf)
        newest = max((i for i, v in enumerate(values) if v == best != -math.inf), default=None)
        return [i == newest for i in range(len(values))]

    def _value(self, step: int) -> float:
        value = self._sign * self._metrics.get(step, {}).get(self._name, math.nan)
        return -math.inf if math.isnan(value) else value
