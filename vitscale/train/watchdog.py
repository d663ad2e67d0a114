"""A step that takes too long shows where every thread stands."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO


class Watchdog:
    """Prints all threads' stacks when no `beat` has come for `timeout` seconds; 0 switches it off.

    It tells, and does not kill: a slow disk is no reason to lose a run. The first beat arms it, so that the compile of
    the first step is not counted; long work between steps belongs in `pause()`. Each stuck step is told once.
    """

    def __init__(
        self,
        timeout: float,
        *,
        on_stall: Callable[[int], None] | None = None,
        stream: TextIO | None = None,
    ) -> None:
        """`on_stall(step)` runs in the watchdog's thread. `stream`: a real file; default: stderr."""
        self._timeout, self._on_stall = timeout, on_stall
        self._stream = stream
        self._changed = threading.Condition()
        self._step = 0
        self._since: float | None = None  # None: not armed, or told already
        self._pauses = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._timeout > 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int) -> None:
        """Step `step` is done; the next one has `timeout` seconds from now. No lock: it is in the hot loop."""
        self._step = step
        self._since = time.monotonic()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Work that may take long: a checkpoint, validation, a compile. The clock starts anew after it."""
        self._pauses += 1
        try:
            yield
        finally:
            if self._since is not None:
                self._since = time.monotonic()
            self._pauses -= 1

    def _watch(self) -> None:
        poll = self._timeout / 10
        file = self._file()
        with self._changed:
            while not self._closed:
                # Where a thread is stuck with the GIL, this one is too: faulthandler's own thread needs no GIL.
                faulthandler.dump_traceback_later(self._timeout + 2 * poll, file=file)
                self._changed.wait(poll)
                since = self._since
                if since is None or self._pauses or time.monotonic() - since < self._timeout:
                    continue
                if self._since == since:
                    self._since = None
                self._tell(file, self._step + 1)

    def _tell(self, file: TextIO, step: int) -> None:
        file.write(
            f"\nstep {step} has taken more than {self._timeout:g} s; every thread, newest call first:\n"
        )
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        if self._on_stall is not None:
            self._on_stall(step)

    def _file(self) -> TextIO:
        """faulthandler writes to a file descriptor, which a notebook's stderr does not have."""
        stream = self._stream or sys.stderr
        try:
            stream.fileno()
        except (OSError, ValueError, AttributeError):
            assert sys.__stderr__ is not None
            return sys.__stderr__
        return stream
