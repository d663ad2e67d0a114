"""Progress of long work: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0  # between plain lines


class Task:
    """One piece of work of known length. Use it as a context manager and call `update` as it goes on."""

    def __init__(self, description: str, total: int, start: int = 0) -> None:
        self._description, self._total, self._done = description, total, start
        self._first = start
        self._began = self._last_line = time.monotonic()
        self._info = ""
        self._live = Console(stderr=True).is_terminal
        if self._live:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task(description, total=total, completed=start, info="")

    def __enter__(self) -> Task:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._progress.stop()
        elif kind is None:
            self._line()

    def update(self, done: int, info: str = "", *, total: int | None = None) -> None:
        """`done` of `total` are finished; `info` is shown beside the bar; `total` may become known late."""
        self._done, self._info = done, info or self._info
        self._total = total or self._total
        if self._live:
            self._progress.update(self._task, completed=done, total=self._total, info=self._info)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS and done < self._total:
            self._line()

    def _line(self) -> None:
        now = time.monotonic()
        self._last_line = now
        seconds = now - self._began
        rate = (self._done - self._first) / max(seconds, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        ending = f"{left:.0f} s left" if self._done < self._total else f"in {seconds:.1f} s"
        print(
            f"{self._description}: {self._done}/{self._total} {self._info} ({rate:.1f}/s, {ending})",
            file=sys.stderr,
            flush=True,
        )
