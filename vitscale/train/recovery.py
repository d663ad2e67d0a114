"""When skipped steps pile up: which checkpoint was the last good one, and when to give up."""

from __future__ import annotations

from vitscale.config import SurvivalConfig
from vitscale.errors import UserError


class SkipWatch:
    """Counts skipped steps within `survival.window`, from the totals that logging points read."""

    def __init__(self, config: SurvivalConfig, step: int, skipped: int) -> None:
        self._config = config
        self.rollbacks = 0
        self._readings = [(step, skipped)]

    def check(self, step: int, skipped: int) -> int | None:
        """Takes one reading. Returns the last step before the trouble when there was too much of it, else None."""
        self._readings.append((step, skipped))
        # The newest reading that is older than the window is where the window begins.
        while len(self._readings) > 1 and self._readings[1][0] <= step - self._config.window:
            self._readings.pop(0)
        before = self._readings[0][1]
        if skipped - before <= self._config.max_skipped:
            return None
        return max(step for step, total in self._readings if total == before)

    def rolled_back(self, step: int, skipped: int) -> None:
        """Begins again at a restored state. Raises `UserError` when that has happened too often."""
        self.rollbacks += 1
        self._readings = [(step, skipped)]
        if self.rollbacks > self._config.max_rollbacks:
            raise UserError(
                f"loss or gradients were not usable again after {self._config.max_rollbacks} returns to an earlier "
                "checkpoint (events.jsonl has the steps); lower optim.lr, lengthen optim.warmup, or look at the data "
                "there, then run the same command."
            )
