"""What happens beside the steps: metrics files, rates, and a polite end on SIGTERM."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType

from vitscale.optional import without

with without("torch"):  # tensorboardX imports PyTorch where it finds it; the core must not
    from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends to `metrics.jsonl`, one object a logged step, and to TensorBoard events beside it.

    On resume, lines after the restored step are dropped: the stream reads as if the run had never stopped.
    """

    def __init__(
        self, workdir: Path, *, start_step: int, tensorboard: bool, enabled: bool = True
    ) -> None:
        self._enabled = enabled  # one process of a run writes
        if not enabled:
            return
        self._path = workdir / METRICS_FILE
        kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._events = (
            SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
            if tensorboard
            else None
        )

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()  # also when the run stops early: TensorBoard's events are buffered

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if not self._enabled:
            return
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """All complete lines of a run's `metrics.jsonl`; a line cut off by a kill is left out."""
    path = workdir / METRICS_FILE
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RateMeter:
    """Images per second and the share of time spent waiting for input, since the last reading."""

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._steps, self._waited = 0, 0.0
        self._since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        self._waited += seconds
        self._steps += 1

    def read(self, flops_per_image: float, peak_flops: float) -> dict[str, float]:
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate = self._steps * self._images_per_step / seconds
        stall = self._waited / seconds
        self._steps, self._waited, self._since = 0, 0.0, now
        return {
            "images_per_sec": rate,
            "mfu": rate * flops_per_image / peak_flops,
            "input_stall": stall,
        }


class StopSignal:
    """Notes SIGTERM (preemption) so that the loop can save between two steps instead of dying in one."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        try:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread (a notebook's worker): nobody will signal us
            self._previous = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
