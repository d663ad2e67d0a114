"""Worker processes of the direct runner."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa


class Workers:
    """Processes that live until `stop`, or until this process ends, whatever ends it."""

    def __init__(self, count: int) -> None:
        # Not forked: JAX has threads, which do not survive that.
        context = multiprocessing.get_context("spawn")
        watched, self._life = context.Pipe(duplex=False)
        threads = max(1, num_cores() // count)
        self.executor = ProcessPoolExecutor(count, context, _begin, (watched, threads))

    def stop(self) -> None:
        self._life.close()
        self.executor.shutdown(wait=False, cancel_futures=True)


def get_workers(count: int) -> Workers:
    """The processes of this number that run already, or new ones."""
    if count not in _RUNNING:
        stop_workers()
        _RUNNING[count] = Workers(count)
    return _RUNNING[count]


def stop_workers() -> None:
    for count in list(_RUNNING):
        _RUNNING.pop(count).stop()


def are_running(count: int) -> bool:
    return count in _RUNNING


def num_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_seconds() -> float:
    """CPU seconds of this process, of its ended children and, on Linux, of those that still run."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # no /proc, or it has just ended
            fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


_RUNNING: dict[int, Workers] = {}


def _begin(watched: Connection, threads: int) -> None:
    def end_with_parent() -> None:
        watched.poll(None)  # returns when the other end is closed
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=end_with_parent, daemon=True).start()
    pa.set_cpu_count(threads)
    pa.set_io_thread_count(1)
