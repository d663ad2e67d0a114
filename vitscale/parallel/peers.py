"""When one process of a run dies, the others say so and stop.

JAX alone: the survivors' collectives wait without a word, until the coordination service misses the heartbeats (after
`heartbeat_timeout_seconds`; at once when process 0 died) and aborts each of them: a C++ stack trace and SIGABRT. Its
Python callback cannot be used (jaxlib 0.10 to 0.12: std::bad_cast). So every process also keeps a TCP connection to
process 0. The kernel closes it with the process that dies, however it dies; silence means a lost machine. A thread
of each survivor then ends it by a sentence and exit code 76, also while the main thread is stuck in a collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

from vitscale.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, PeerLost

KEY = "vitscale/peers"
CONNECT_TIMEOUT = 60.0  # seconds
# A process that fails on its own says so first: if all fail for one reason, each can still print it.
FAILURE_GRACE = 3.0
# What libraries say when a collective, a barrier or a remote call loses its other end.
LOST_TEXTS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Socket closed",
    "Broken pipe",
    "stopped sending heartbeats",
    "coordination service",
    "CoordinationService",
    "Gloo",
    "remote process exited",
    "ncclRemoteError",
    "Barrier timed out",
)


def translate(error: BaseException) -> PeerLost | None:
    """The error of a collective whose other end is gone, in words; None: something else went wrong."""
    if isinstance(error, PeerLost):
        return error
    # jax.errors.JaxRuntimeError, by name: this module is imported where jax is not.
    if not any(
        kind.__name__ in ("JaxRuntimeError", "XlaRuntimeError") for kind in type(error).__mro__
    ):
        return None
    text = str(error)
    if not any(words in text for words in LOST_TEXTS):
        return None
    first = text.strip().splitlines()[0][:200]
    return PeerLost(sentence("another process") + f" ({first})")


def sentence(who: str, what: str = "has died or cannot be reached") -> str:
    return (
        f"{who} {what}; this one stops. "
        "Start the same command again to go on from the last checkpoint."
    )


class Store(Protocol):
    """The part of JAX's coordination client that the processes find each other with."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = ...) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...


class PeerWatch:
    """A star of connections around process 0 that notices who goes, within `timeout` seconds.

    Lines: `hello TOKEN RANK`, `alive`, `bye CODE` (this process ends), `gone RANK CODE` (process 0 to the others; the
    code is `lost` for one that said nothing).
    """

    def __init__(
        self,
        rank: int,
        count: int,
        *,
        timeout: float,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._rank, self._count, self._timeout = rank, count, timeout
        self._on_lost = on_lost or (lambda message: self._stop(message))
        self._lines: dict[int, _Line] = {}
        self._departed: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._token = ""
        self._closed = False

    def start(self, store: Store, host: str) -> None:
        """Connects to process 0 on `host`; raises `OSError` where that port cannot be reached."""
        if self._rank == 0:
            self._token = secrets.token_hex(16)  # a stray connection is not a process of this run
            self._listener = socket.create_server(("", 0), backlog=self._count)
            self._selector.register(self._listener, selectors.EVENT_READ)
            port = self._listener.getsockname()[1]
            store.key_value_set(KEY, f"{port} {self._token}", True)
        else:
            port, token = store.blocking_key_value_get(KEY, int(CONNECT_TIMEOUT * 1000)).split()
            connection = socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT)
            connection.sendall(f"hello {token} {self._rank}\n".encode())
            self._add(0, connection)
        _delay_abort()
        threading.Thread(target=self._run, name="peer-watch", daemon=True).start()

    def leave(self, code: int) -> None:
        """Tells the others that this process ends with `code`; those that have not left are watched until `close`."""
        self._send(f"bye {code}")

    def close(self) -> None:
        self._closed = True

    def _run(self) -> None:
        interval = min(5.0, self._timeout / 10)
        beaten = time.monotonic()
        while not self._closed:
            for key, _ in self._selector.select(timeout=interval / 2):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            now = time.monotonic()
            if (
                now - beaten > 3 * interval
            ):  # this process was stopped for a while; so may all have been
                for line in list(self._lines.values()):
                    line.heard = now
            if now - beaten >= interval:
                beaten = now
                self._send("alive")
            for rank, line in list(self._lines.items()):
                if now - line.heard > self._timeout and rank not in self._departed:
                    self._gone(rank, "lost")

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        connection.settimeout(
            self._timeout / 4
        )  # a stray one must not keep this thread from its beats
        with contextlib.suppress(OSError, ValueError):
            greeting, token, rank = _read_line(connection).split()
            if greeting == "hello" and secrets.compare_digest(token, self._token):
                self._add(int(rank), connection)
                return
        connection.close()

    def _add(self, rank: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        line = _Line(rank, connection)
        with self._lock:
            self._lines[rank] = line
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _read(self, line: _Line) -> None:
        words, open_ = line.read()
        for text in words:
            kind, *rest = text.split()
            if kind == "bye":
                self._departed.add(line.rank)
                if int(rest[0]) not in (0, EXIT_PREEMPTED):
                    self._gone(line.rank, rest[0])
            elif kind == "gone":
                self._gone(int(rest[0]), rest[1])
        if not open_:
            self._selector.unregister(line.connection)
            with self._lock:
                self._lines.pop(line.rank, None)
            if line.rank not in self._departed:
                self._gone(line.rank, "lost")

    def _gone(self, rank: int, code: str) -> None:
        if self._closed:
            return
        self._departed.add(rank)
        if self._rank == 0:
            self._send(f"gone {rank} {code}")
        who = f"process {rank} of {self._count}"
        if code == "lost":
            if self._rank == 0:
                time.sleep(0.5)  # the others read who it was before this process, too, is gone
            self._on_lost(sentence(who))
        else:
            time.sleep(FAILURE_GRACE)
            if not self._closed:
                self._on_lost(sentence(who, f"has stopped with exit code {code}"))

    def _send(self, text: str) -> None:
        with self._lock:
            for line in self._lines.values():
                with contextlib.suppress(OSError):  # its end is noticed where it is read
                    line.connection.send(f"{text}\n".encode())

    def _stop(self, message: str) -> NoReturn:
        # Not through sys.stderr: the main thread may hold its lock.
        os.write(2, f"\nvitscale: process {self._rank} of {self._count}: {message}\n".encode())
        exit_now(EXIT_PEER_LOST)


class _Line:
    """One connection and what has arrived of its next line."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank, self.connection = rank, connection
        self.heard = time.monotonic()
        self._partial = b""

    def read(self) -> tuple[list[str], bool]:
        """Complete lines, and whether the other end is still there."""
        try:
            data = self.connection.recv(4096)
        except BlockingIOError:
            return [], True
        except OSError:
            return [], False
        self.heard = time.monotonic()
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line.decode() for line in lines if line], bool(data)


def _read_line(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) < 200:
        part = connection.recv(1)
        if not part:
            break
        data += part
    return data.decode()


def _delay_abort() -> None:
    """Gives the watch a few seconds when JAX aborts this process because process 0 died.

    JAX's client notices in the same millisecond and calls abort(). A Python handler of SIGABRT would run too late,
    and one through ctypes needs the GIL inside a dying process. libc's sleep() is safe there, and takes an int.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    # sleep(SIGABRT) waits 6 seconds; abort() goes on after it.
    libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def exit_now(code: int) -> NoReturn:
    """Ends this process without Python's and JAX's exit handlers: they wait for processes that are gone."""

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    # In a thread: a stream's lock may be held by a thread that is stuck.
    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(timeout=1.0)
    for (
        child
    ) in multiprocessing.active_children():  # workers of the loader: nobody else would end them
        child.kill()
    os._exit(code)
