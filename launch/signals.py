"""SIGTERM and SIGHUP to a launcher: what it started is told, and it goes on to its own end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_termination(tell: Callable[[], object] = lambda: None) -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGHUP (a closed terminal) set while the block runs; `tell` is called as well."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()
        tell()

    previous = {}
    # Not where `nohup` ignores one, and not outside the main thread, where no handler can be set.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
