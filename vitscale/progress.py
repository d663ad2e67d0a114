"""Progress of long work: a live view on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich import progress as bars
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between plain lines
RATE_SECONDS = 600.0  # that the rate on a terminal is taken over; training may report once a minute


class Task:
    """One piece of work of known length. Use it as a context manager and call `update` as it goes on."""

    def __init__(
        self, description: str, total: int, start: int = 0, *, console: Console | None = None
    ) -> None:
        """`start`: done before now. `console`: by default standard error."""
        self._description, self._total, self._done = description, total, start
        self._first = start
        self._began = self._last_line = time.monotonic()
        self._info = ""
        self._details: Mapping[str, str] = {}
        self._console = console = console or Console(stderr=True)
        self._live: Live | None = None
        if console.is_terminal:
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                _RateColumn(),
                bars.TextColumn("{task.fields[info]}"),
                bars.TimeElapsedColumn(),
                bars.TimeRemainingColumn(),
                _LeftColumn(),
                console=console,
                speed_estimate_period=RATE_SECONDS,
            )
            self._task = self._bar.add_task(description, total=total, completed=start, info="")
            self._live = Live(get_renderable=self._view, console=console)

    def __enter__(self) -> Task:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif kind is None:
            self._line()

    def update(
        self,
        done: int,
        info: str = "",
        *,
        total: int | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """`done` of `total` are finished; `total` may become known late.

        `info` is shown beside the bar; `details`, name → value, as rows below it, on a terminal only. Both stay until
        they are replaced.
        """
        self._done, self._info = done, info or self._info
        self._total = total or self._total
        self._details = self._details if details is None else dict(details)
        if self._live is not None:
            self._bar.update(self._task, completed=done, total=self._total, info=self._info)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS and done < self._total:
            self._line()

    def _view(self) -> RenderableType:
        """The bar, and the details below it."""
        details = self._details  # the thread that draws is not the one that updates
        if not details:
            return self._bar.get_renderable()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right")
        for name, value in details.items():
            table.add_row(Text(f"  {name}"), Text(value))
        return Group(self._bar.get_renderable(), table)

    def _line(self) -> None:
        now = time.monotonic()
        self._last_line = now
        seconds = now - self._began
        rate = (self._done - self._first) / max(seconds, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        ending = f"{left:.0f} s left" if self._done < self._total else f"in {seconds:.1f} s"
        print(
            f"{self._description}: {self._done}/{self._total} {self._info} ({rate:.1f}/s, {ending})",
            file=self._console.file,
            flush=True,
        )


class _RateColumn(bars.ProgressColumn):
    """Pieces a second, over the last `RATE_SECONDS`; the time before the first report is not in it."""

    def render(self, task: bars.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g}/s" if speed else "", style="progress.data.speed")


class _LeftColumn(bars.ProgressColumn):
    """Says what the time before it is."""

    def render(self, task: bars.Task) -> Text:
        return Text("" if task.finished else "left")
