"""Where a run's numbers go: `metrics.jsonl`, `events.jsonl`, TensorBoard and, on wish, Weights & Biases."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.config import LogConfig
from vitscale.errors import Preempted, UserError
from vitscale.optional import without

with without("torch"):  # tensorboardX imports PyTorch where it finds it; the core must not
    from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"  # one object a logged step: {"step": s, name: value, ...}
EVENTS_FILE = "events.jsonl"  # one object an event: {"time": unix seconds, "event": kind, ...}
WANDB_ID_FILE = "wandb_id"


class MetricsWriter:
    """Writes the metrics of logged steps, and the events of a run's life, for the one process that is `enabled`.

    `metrics.jsonl` is strict JSON: a NaN or an infinity is written as null, which `read_metrics` gives back as NaN.
    On resume and on rollback the lines after the restored step are dropped: the stream reads as if the run had never
    stopped. Events are never dropped: they tell the stops.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        log: LogConfig,
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        """`start_step`: the restored step, 0 for a fresh run. `config`: what Weights & Biases shows of the run."""
        self._enabled = enabled
        if not enabled:
            return
        self._workdir, self._log = workdir, log
        # First: it may refuse, and then nothing has been touched.
        self._wandb = _WandbRun(workdir, log, config or {}) if log.wandb_project else None
        _keep_lines(workdir / EVENTS_FILE, lambda row: True)  # a line that a kill has cut off goes
        self._open(start_step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Also on an error: TensorBoard's events are buffered.
        self._finish(failed=kind is not None and not issubclass(kind, Preempted))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`values` are on the host: a device array here would be a transfer that nobody sees."""
        if not self._enabled:
            return
        self._file.write(_dumps({"step": step, **{k: float(v) for k, v in values.items()}}))
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, float(value), step)
        if self._wandb is not None:
            self._wandb.write(step, values)

    def event(self, kind: str, **fields: Any) -> None:
        """One line in `events.jsonl`, with the time.

        Kinds: start, restore, skip, rollback, preempted, stall, end. The `step` of start, restore and rollback is the
        one that the run goes on from, of the others the one at which it happened. What goodput reads: telemetry.py.
        """
        if not self._enabled:
            return
        with (self._workdir / EVENTS_FILE).open("a") as file:
            file.write(_dumps({"time": time.time(), "event": kind, **fields}))

    def rewind(self, step: int) -> None:
        """Rollback to `step`: drops the lines after it, as at a start. Weights & Biases cannot drop: it shows both."""
        if not self._enabled:
            return
        self._close_files()
        self._open(step)

    def close(self) -> None:
        self._finish(failed=False)

    def _open(self, start_step: int) -> None:
        path = self._workdir / METRICS_FILE
        _keep_lines(path, lambda row: row["step"] <= start_step)
        self._file = path.open("a")
        self._tensorboard = (
            SummaryWriter(
                str(self._workdir / "tensorboard"),
                purge_step=start_step + 1,
                # Names differ by the second, and a file of the same name is overwritten.
                filename_suffix=f".{time.time_ns()}",
            )
            if self._log.tensorboard
            else None
        )

    def _close_files(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _finish(self, *, failed: bool) -> None:
        if not self._enabled:
            return
        self._enabled = False
        self._close_files()
        if self._wandb is not None:
            self._wandb.close(failed=failed)


class _WandbRun:
    """One Weights & Biases run for one workdir, across restarts: its id is kept in `WORKDIR/wandb_id`.

    Sent are the config, the metrics and the machine's load; not the environment, the command line, the host's name,
    the git remote, the source code or the terminal's output: any of these may hold a secret.
    """

    def __init__(self, workdir: Path, log: LogConfig, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"log.wandb_project={log.wandb_project!r} needs Weights & Biases: "
                "pip install 'vitscale[wandb]', or leave log.wandb_project empty."
            ) from None
        id_file = workdir / WANDB_ID_FILE
        name = id_file.read_text().strip() if id_file.is_file() else ""
        name = name or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=log.wandb_project,
                id=name,
                resume="allow",
                mode=log.wandb_mode,
                dir=str(workdir),
                config=dict(config),
                save_code=False,
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_code=True,
                    disable_git=True,
                    x_disable_meta=True,
                    x_save_requirements=False,
                ),
            )
        except wandb.errors.Error as error:  # no key, no network
            raise UserError(
                f"Weights & Biases does not start: {error} "
                "Run `wandb login`, or set log.wandb_mode to 'offline' and `wandb sync` later."
            ) from None
        id_file.write_text(name)
        # Its own step counter never goes back, so that it would drop what a resumed run says again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """All complete lines of a run's `metrics.jsonl`; null, the file's NaN or infinity, is NaN again."""
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _complete_lines(workdir / METRICS_FILE)
    ]


def read_events(workdir: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's `events.jsonl`, oldest first."""
    return [row for _, row in _complete_lines(workdir / EVENTS_FILE)]


def _complete_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line's text and content; one that a kill has cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append((line, json.loads(line)))
        except json.JSONDecodeError:
            continue
    return rows


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites the file with the lines that `keep` wants, byte for byte, in one move."""
    lines = [line + "\n" for line, row in _complete_lines(path) if keep(row)]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(lines))
    temporary.replace(path)


def _dumps(row: Mapping[str, Any]) -> str:
    """One line of strict JSON."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
