"""Processes that read and decode batches, each a fresh interpreter without JAX, and what happens when one dies.

Below Grain, not Grain's own: a worker of Grain 0.2 that dies ends the run with "terminated unexpectedly" (no second
attempt, no word of why), imports JAX, and hands batches over in POSIX shared memory, which a kill leaves behind.
Grain keeps the order and reads ahead with threads that wait for these processes.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from dataclasses import replace
from multiprocessing import reduction
from multiprocessing.connection import Connection

from vitscale.data.batches import Batch, TrainBatches
from vitscale.data.buffers import Buffers, Memory
from vitscale.errors import UserError

logger = logging.getLogger(__name__)
LANES = (
    2  # requests that a worker has at once: it goes on with one while the other's answer is taken
)
LAST_WORDS = 20  # lines of output that are kept
PATIENCE = 5.0  # seconds for a worker to end by itself


class WorkerPool:
    """Makes batches in `count` processes. Call it from up to `concurrency` threads."""

    def __init__(self, make: TrainBatches, count: int) -> None:
        self.concurrency = LANES * count
        self._spec = make.spec
        self._buffers = Buffers(shared=True)
        work = pickle.dumps(make, pickle.HIGHEST_PROTOCOL)
        self._workers = [_Worker(number, work) for number in range(count)]
        self._free: queue.SimpleQueue[tuple[_Worker, int]] = queue.SimpleQueue()
        for lane in range(LANES):
            for worker in self._workers:
                self._free.put((worker, lane))

    def __call__(self, first_draw: int) -> Batch:
        """The batch that begins with draw `first_draw`; its image lies in shared memory until nobody refers to it."""
        image, memory = self._buffers.take(self._spec.image_shape)
        worker, lane = self._free.get()
        try:
            answer = worker.ask(lane, first_draw, self._spec.image_shape, memory)
        finally:
            self._free.put((worker, lane))
        if isinstance(answer, BaseException):
            raise answer
        return replace(answer, image=image)

    def close(self) -> None:
        """Ends the processes. Threads that wait for one get an exception."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.wait()


class _Closed(Exception):
    """The pool was closed while a batch was waited for."""


class _Worker:
    """One place in the pool: a process and, after its death, one more."""

    def __init__(self, number: int, work: bytes) -> None:
        self._number, self._work = number, work
        self._lock = threading.Lock()
        self._closing = False
        self._restarted = False
        self._process = _Process(work)

    def ask(
        self, lane: int, first_draw: int, shape: tuple[int, ...], memory: Memory
    ) -> Batch | BaseException:
        """The process's answer; asks the next process again if this one dies, for which it has the same words."""
        while True:
            process = self._process
            try:
                return process.ask(lane, first_draw, shape, memory)
            except (EOFError, OSError):
                self._mourn(process, first_draw, shape[0])

    def _mourn(self, dead: _Process, first_draw: int, size: int) -> None:
        with self._lock:
            if self._closing:
                raise _Closed
            if self._process is not dead:  # another lane's thread was first
                return
            cause = dead.cause_of_death()
            obituary = (
                f"input worker {self._number} {cause} while making the batch of draw {first_draw}"
            )
            if self._restarted:
                raise UserError(
                    f"{obituary}, and so had the worker before it; if the machine ran out of memory, lower "
                    f"data.num_workers or data.prefetch_batches. Its last words:\n{dead.last_words()}"
                )
            logger.warning("%s; restarted once. Its last words:\n%s", obituary, dead.last_words())
            self._restarted = True
            self._process = _Process(self._work)

    def hang_up(self) -> None:
        with self._lock:
            self._closing = True
            self._process.hang_up()

    def wait(self) -> None:
        self._process.wait()


class _Process:
    """One process with its lanes."""

    def __init__(self, work: bytes) -> None:
        pairs = [socket.socketpair() for _ in range(LANES)]
        theirs = [pair[1].fileno() for pair in pairs]
        # Not multiprocessing: that imports the parent's main module, and JAX with it.
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "vitscale.data.worker", *map(str, theirs)],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
        self._sockets = [ours for ours, _ in pairs]
        self._lanes = [Connection(os.dup(ours.fileno())) for ours in self._sockets]
        for _, their in pairs:
            their.close()
        self._known: set[int] = set()  # memories that it has mapped
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        # In a thread: the process reads it after its imports, and the other workers should start meanwhile.
        self._ready = threading.Thread(target=self._send_work, args=(work,), daemon=True)
        self._ready.start()

    def ask(
        self, lane: int, first_draw: int, shape: tuple[int, ...], memory: Memory
    ) -> Batch | BaseException:
        """Raises `EOFError` or `OSError` when the process ends before its answer."""
        self._ready.join()
        connection = self._lanes[lane]
        new = memory.number not in self._known
        connection.send((first_draw, memory.number, shape, new))
        if new:
            assert memory.descriptor is not None
            reduction.send_handle(connection, memory.descriptor, self._popen.pid)
            self._known.add(memory.number)
        return pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own process

    def cause_of_death(self) -> str:
        self.wait()
        code = self._popen.returncode
        if code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"

    def last_words(self) -> str:
        self._listener.join(timeout=1)
        return "".join(self._words).rstrip() or "(none)"

    def hang_up(self) -> None:
        # shutdown, not close: it wakes a thread that reads, and keeps the descriptor's number until nobody does.
        for end in self._sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end has gone
                continue

    def wait(self) -> None:
        """Until the process has ended: by itself, or killed when it does not."""
        self.hang_up()
        try:
            self._popen.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _send_work(self, work: bytes) -> None:
        try:
            self._lanes[0].send_bytes(work)
        except OSError:  # it died: the lanes will say so
            return

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for line in output:
                text = line.decode(errors="replace")
                self._words.append(text)
                sys.stderr.write(text)


def _environment() -> dict[str, str]:
    """Modules are found where the parent finds them; libraries take the one core that a worker is meant to use."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": paths, **threads}
