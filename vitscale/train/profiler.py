"""A profiler trace of a few steps in the middle of a run, for XProf and Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from vitscale.config import LogConfig

logger = logging.getLogger(__name__)
PROFILE_FOLDER = (
    "profile"  # in it: plugins/profile/<time>/{<host>.xplane.pb, perfetto_trace.json.gz}
)


class ProfileWindow:
    """Traces the steps `[profile_start, profile_start + profile_steps)` into `WORKDIR/profile`.

    The device is settled where the window opens and where it closes, so that it holds whole steps and no others. It is
    opened once: a run that resumes behind its first step has no window. A profiler that fails does not stop the run.
    """

    def __init__(self, workdir: Path, log: LogConfig, *, enabled: bool = True) -> None:
        """`enabled`: by one process; names of traces collide where processes share a host."""
        self._folder = workdir / PROFILE_FOLDER
        self._first = log.profile_start
        self._last = log.profile_start + log.profile_steps - 1
        self._waiting = enabled and log.profile_start > 0 and log.profile_steps > 0
        self._open = False

    def __enter__(self) -> ProfileWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def before_step(self, step: int, state: Any) -> None:
        """`state`: what the step will read, so that the work on it is over when the trace begins."""
        if not self._waiting or step < self._first:
            return
        self._waiting = False
        if step > self._first:
            logger.info(
                "no profile: its window begins at step %d, and this start at step %d",
                self._first,
                step,
            )
            return
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        # Every Python call would crowd out the steps: a trace holds a million events.
        options.python_tracer_level = 0
        try:
            jax.profiler.start_trace(
                str(self._folder), create_perfetto_trace=True, profiler_options=options
            )
        except (RuntimeError, OSError) as error:  # another trace is being taken
            logger.warning("no profile: %s", error)
            return
        self._open = True

    def after_step(self, step: int, result: Any) -> None:
        """`result`: what the step computes last, awaited before the trace ends."""
        if self._open and step >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def close(self) -> None:
        """Ends a window that the run's end has cut short."""
        if self._waiting:
            logger.info("no profile: the run ended before step %d", self._first)
        self._waiting = False
        if self._open:
            self._stop()

    def _stop(self) -> None:
        self._open = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, ValueError, OSError) as error:  # a full disk, a trace without a file
            logger.warning("the profile is not written: %s", error)
        else:
            logger.info(
                "profile: %s (XProf, TensorBoard; *.json.gz: ui.perfetto.dev)", self._folder
            )


def annotate(step: int) -> jax.profiler.StepTraceAnnotation:
    """A context around one step: profilers show and average what happens in it as that step."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step)
