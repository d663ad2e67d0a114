"""How fast a run goes and how much of its time counts: rates, MFU, stalls, memory, goodput."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from vitscale.train.metrics import read_events, read_metrics

# The metrics that a clock or a machine decides: everything else is the same bits in a run that was stopped and resumed.
TIMING_FIELDS = frozenset(
    {
        "images_per_sec",  # wall time less validation
        "images_per_sec_per_device",
        "mfu",  # model FLOPs done / FLOPs possible, in the same time
        "step_seconds",  # mean, in the same time
        "input_stall",  # share of the interval's wall time that the loop waited for a batch
        "checkpoint_blocked",  # share of the interval's wall time that saving held up the loop
        "validation_seconds",  # in the interval, where there was any
        "productive_seconds",  # of the interval: see Goodput
        "elapsed_seconds",  # since the run first started, restarts and the time between included
        "goodput",
        "time_to_first_step",  # seconds; in the first reading of every start
        "device_memory_bytes",  # peak since the process began, the largest of this host's devices
        "host_memory_bytes",  # of this process, now
    }
)


@dataclass(frozen=True)
class Goodput:
    """Productive seconds of a run, and all its seconds since it first started; goodput is the share.

    Productive is the wall time of steps whose results still stand, less waiting for input, for checkpoints and for
    validation. Not productive, beside those three: start-up, compilation with the first step of every start, restores,
    the time in which nothing ran between two starts, and steps that a kill or a rollback threw away. (The terms are
    those of Google's ML Goodput Measurement.) The time between an end and a start after it, of a run that was complete,
    belongs to nobody.

    It is read off the lines that stand in `metrics.jsonl`, so that a start in the middle of a logging interval loses
    at most that interval: a lower bound, exact where `log.every_steps` divides `checkpoint.every_steps`.
    """

    productive: float = 0.0  # seconds
    elapsed: float = 0.0  # seconds

    @property
    def share(self) -> float:
        return self.productive / self.elapsed if self.elapsed > 0 else 0.0


class StepMeter:
    """Measures the intervals between logging points, on the host, without asking the device for anything.

    The host runs ahead of the device. A duration that is reported here therefore starts at a settled device
    (`jax.block_until_ready`), or it holds the steps in flight as well.
    """

    def __init__(
        self,
        *,
        images_per_step: int,
        flops_per_image: float,
        num_devices: int,
        peak_flops_per_device: float,
        clock: Callable[[], float] = time.perf_counter,
        began: float | None = None,
        previous: Goodput | None = None,
    ) -> None:
        """`began`: this start's beginning on `clock`, by default now; `previous`: `read_goodput(workdir, now)`."""
        self._images_per_step, self._num_devices = images_per_step, num_devices
        self._flops_per_image, self._peak_flops = flops_per_image, peak_flops_per_device
        self._clock = clock
        self._made = clock()
        self._began = self._made if began is None else began
        self._before = previous or Goodput(elapsed=self._made - self._began)
        self._productive = self._before.productive
        self._time_to_first_step: float | None = None  # until it has been read
        self._warm = False  # the first step is done
        self._uncounted = 0  # steps of the coming reading that lie before its interval
        self._reset()

    def waited_for_input(self, seconds: float) -> None:
        """Once a step."""
        self._input += seconds

    def blocked_by_checkpoint(self, seconds: float) -> None:
        """Time that saving or restoring kept the loop from its steps."""
        self._checkpoint += seconds

    def validated(self, seconds: float) -> None:
        self._validation += seconds

    def first_step_done(self) -> None:
        """The first step's result is on the host: what lies before is start-up, and in no interval."""
        self._reset()
        self._time_to_first_step = self._since - self._began
        self._warm, self._uncounted = True, 1

    def rolled_back(self, standing: Goodput) -> None:
        """Once an older state is restored. The interval in progress, and the restore, count for nothing.

        `standing`: `read_goodput` after `MetricsWriter.rewind`.
        """
        self._productive = standing.productive
        self._uncounted = 0
        self._reset()

    def read(self, steps: int) -> dict[str, float]:
        """The interval since the last reading, in which `steps` were done.

        Rates are absent where there is no step to time: in a reading of the first step alone.
        """
        now = self._clock()
        counted = steps - self._uncounted
        values: dict[str, float] = {}
        if self._warm and counted > 0:
            wall = max(now - self._since, 1e-9)
            training = max(wall - self._validation, 1e-9)
            productive = max(training - self._input - self._checkpoint, 0.0)
            rate = counted * self._images_per_step / training
            self._productive += productive
            values |= {
                "images_per_sec": rate,
                "images_per_sec_per_device": rate / self._num_devices,
                "mfu": rate * self._flops_per_image / (self._num_devices * self._peak_flops),
                "step_seconds": training / counted,
                "input_stall": self._input / wall,
                "checkpoint_blocked": self._checkpoint / wall,
                "productive_seconds": productive,
            }
        if self._validation:
            values["validation_seconds"] = self._validation
        if self._time_to_first_step is not None:
            values["time_to_first_step"] = self._time_to_first_step
            self._time_to_first_step = None
        if self._warm:
            self._uncounted = 0
        goodput = Goodput(self._productive, self._before.elapsed + now - self._made)
        values |= {"elapsed_seconds": goodput.elapsed, "goodput": goodput.share}
        self._reset(now)
        return values | memory()

    def _reset(self, now: float | None = None) -> None:
        self._input = self._checkpoint = self._validation = 0.0  # seconds, in this interval
        self._since = self._clock() if now is None else now


def memory() -> dict[str, float]:
    """`host_memory_bytes`, and `device_memory_bytes` where the backend counts it (a CPU does not)."""
    values = {"host_memory_bytes": float(_resident_bytes())}
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        values["device_memory_bytes"] = float(max(peaks))
    return values


def process_age() -> float:
    """Seconds since the system started this process, imports included; 0 where it does not tell (not Linux).

    For a command that is one run: `began=time.perf_counter() - process_age()`.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since boot
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)


def goodput(workdir: Path) -> float:
    """Goodput of a run up to its last line or event, from its files; 0 for one without any."""
    return read_goodput(workdir).share


def read_goodput(workdir: Path, now: float | None = None) -> Goodput:
    """The seconds behind `goodput`. `now`: count time up to here (Unix seconds) and not to the last sign of life.

    Events that it reads: start (`step`; `began`, Unix seconds, where the start was before the event), restore and
    rollback (`step` that the run goes on from), preempted (`step`, `productive_seconds` of the interval that no line
    tells), end.
    """
    events, rows = read_events(workdir), read_metrics(workdir)
    starts = [event.get("began", event["time"]) for event in events if event["event"] == "start"]
    if not starts:
        return Goodput()
    productive = sum(row.get("productive_seconds", 0.0) for row in rows) + _unlogged(events)
    until = max(event["time"] for event in events) if now is None else now
    elapsed = until - starts[0] - _complete(events)
    logged = max((row.get("elapsed_seconds", 0.0) for row in rows), default=0.0)
    return Goodput(productive, max(elapsed, logged))


def _unlogged(events: list[dict[str, Any]]) -> float:
    """Productive seconds of steps that were saved at a preemption before they were logged, and still stand."""
    standing: list[tuple[int, float]] = []
    for event in events:
        if event["event"] in ("start", "restore", "rollback"):
            goes_on_from = event.get("step", math.inf)
            standing = [entry for entry in standing if entry[0] <= goes_on_from]
        elif event["event"] == "preempted":
            standing.append((event["step"], event.get("productive_seconds", 0.0)))
    return sum(seconds for _, seconds in standing)


def _complete(events: list[dict[str, Any]]) -> float:
    """Seconds between an end and the start after it: the run was complete, nothing was to be done."""
    idle, ended = 0.0, None
    for event in events:
        if event["event"] == "start" and ended is not None:
            idle, ended = idle + event.get("began", event["time"]) - ended, None
        elif event["event"] == "end":
            ended = event["time"]
    return idle


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the peak, in bytes on a Mac and KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
