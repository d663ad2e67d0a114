"""Measuring pipelines against each other: each lives in processes of its own, pinned to cores, and they take turns.

The speed of a shared machine drifts by tens of per cent within minutes, so a rate by itself means little. Here every
pipeline is started once, and then all of them run for a second or two, one after the other, several rounds long. Who
is not running is stopped (SIGSTOP), threads and workers included, so that nobody fills its buffers in another's time.
A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

STARTING_SECONDS = 180  # within which a pipeline must have made its first batches


@dataclasses.dataclass(frozen=True)
class Lap:
    """One turn of one pipeline: images, and the seconds on the wall and of CPU (all of its processes) they took."""

    images: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.images / self.seconds


class Racer:
    """A pipeline on `cores` cores: one process on all of them, or `copies` processes with a share of the cores each.

    function: "module:function" that takes `arguments` as keywords and `cores`, and returns an endless iterator of
    batches of `batch` images.
    """

    def __init__(
        self,
        name: str,
        function: str,
        arguments: Mapping[str, Any],
        *,
        batch: int,
        cores: int,
        copies: int = 1,
    ) -> None:
        self.name, self.cores = name, cores
        self.laps: list[Lap] = []
        mine = sorted(os.sched_getaffinity(0))[:cores]
        share = cores // copies
        self._children = [
            _start(
                function, {**arguments, "cores": share}, batch, mine[i * share : (i + 1) * share]
            )
            for i in range(copies)
        ]

    def wait(self) -> str | None:
        """Until it is ready, and then stops it. Returns why it cannot run, or None."""
        answers = [_answer(child) for child in self._children]
        reason = next((answer["error"] for answer in answers if "error" in answer), None)
        if reason is None:
            self._signal(signal.SIGSTOP)
        return reason

    def run(self, seconds: float) -> None:
        """One lap: it runs alone for `seconds`, and is stopped again."""
        self._signal(signal.SIGCONT)
        for child in self._children:
            print(seconds, file=child.stdin, flush=True)
        laps = [Lap(**_answer(child)) for child in self._children]
        self._signal(signal.SIGSTOP)
        # Copies start within a millisecond of each other: their rates add.
        wall = max(lap.seconds for lap in laps)
        images = sum(lap.rate for lap in laps) * wall
        self.laps.append(Lap(round(images), wall, sum(lap.cpu_seconds for lap in laps)))

    def close(self) -> None:
        self._signal(signal.SIGKILL)  # the whole session: workers would outlive their parent
        for child in self._children:
            child.wait()

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.poll() is None:
                os.killpg(child.pid, number)

    @property
    def rate(self) -> float:
        """Images a second: the median of the laps."""
        return statistics.median(lap.rate for lap in self.laps)

    @property
    def cpu_rate(self) -> float:
        """Images for each second of CPU: blind to other work on the machine."""
        return sum(lap.images for lap in self.laps) / sum(lap.cpu_seconds for lap in self.laps)

    @property
    def cores_used(self) -> float:
        """Of its cores, how many it had and used."""
        return sum(lap.cpu_seconds for lap in self.laps) / sum(lap.seconds for lap in self.laps)


def race(racers: Sequence[Racer], *, seconds: float, rounds: int) -> dict[str, str]:
    """Runs them in turns, and closes them. Returns why some could not: name -> reason."""
    missing: dict[str, str] = {}
    try:
        for racer in racers:
            if reason := racer.wait():
                missing[racer.name] = reason
        able = [racer for racer in racers if racer.name not in missing]
        for number in range(rounds):
            # Back and forth, so that a drift of the machine favours nobody.
            for racer in able if number % 2 == 0 else reversed(able):
                racer.run(seconds)
    finally:
        for racer in racers:
            racer.close()
    return missing


def ratio(a: Racer, b: Racer) -> float:
    """How many times as fast as `b` `a` is: the median over the rounds."""
    pairs = zip(a.laps, b.laps, strict=True)
    return statistics.median(x.rate / y.rate for x, y in pairs)


def cpu_ratio(a: Racer, b: Racer) -> float:
    """The same of images for each CPU second, over all rounds."""
    return a.cpu_rate / b.cpu_rate


def _start(
    function: str, arguments: Mapping[str, Any], batch: int, cores: Sequence[int]
) -> subprocess.Popen[str]:
    folder = Path(__file__).parent
    # One thread for each numerical library: a pipeline may use its cores, but by its own workers.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, str(folder / "input_race.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **quiet, "PYTHONPATH": f"{folder}:{folder.parent}"},
    )
    print(
        json.dumps([function, arguments, batch, cores], default=str), file=child.stdin, flush=True
    )
    return child


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        return {"error": f"it ended with code {child.wait(STARTING_SECONDS)}"}
    return json.loads(line)


def serve() -> None:
    """The child: builds the pipeline of its input's first line, then runs a lap for each further line."""
    function, arguments, batch, cores = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, cores)  # before any library counts the cores
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    module, _, name = function.partition(":")
    try:
        batches = getattr(importlib.import_module(module), name)(**arguments)
        for _ in range(4 + 2 * len(cores)):  # first calls, and what was prefetched meanwhile
            next(batches)
    except ImportError as error:
        print(json.dumps({"error": f"{error}: `make .venv-bench` installs it"}), file=channel)
        return
    print(json.dumps({}), file=channel)
    for line in sys.stdin:
        print(
            json.dumps(dataclasses.asdict(_lap(batches, batch, float(line), len(cores)))),
            file=channel,
        )


def _lap(batches: Iterator[Any], batch: int, seconds: float, workers: int) -> Lap:
    """Times whole batches, from the arrival of one to the arrival of another."""
    for _ in range(workers):
        next(batches)
    start, cpu = time.perf_counter(), _cpu_seconds()
    for count in itertools.count(1):
        next(batches)
        elapsed = time.perf_counter() - start
        # Workers deliver in bursts: only a multiple of their number is a fair count.
        if elapsed >= seconds and count % workers == 0:
            return Lap(count * batch, elapsed, _cpu_seconds() - cpu)
    raise AssertionError("the pipeline is endless")


def _cpu_seconds() -> float:
    """Of this process and its children, in both modes."""
    import psutil

    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    serve()
