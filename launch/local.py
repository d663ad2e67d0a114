"""Several processes on this machine, joined by `jax.distributed`: what a pod does, small enough for a test."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from vitscale.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, LaunchFailed, UserError

PROGRAM = (sys.executable, "-m", "vitscale.cli")
STOP_GRACE = 15.0  # seconds for the others to end by themselves after one has
TERM_GRACE = 5.0  # seconds between SIGTERM and SIGKILL for those that did not
INTERRUPT_GRACE = 20.0  # seconds between SIGINT, SIGTERM and SIGKILL after Ctrl-C
LAST_LINES = 20
KNOWN_CODES: Mapping[int, str] = {
    EXIT_PREEMPTED: "stopped and saved; the same command goes on from there",
    EXIT_PEER_LOST: "another process was lost; the same command goes on from the last checkpoint",
}


def launch_local(command: Sequence[str], *, processes: int, devices: int | None = None) -> None:
    """Runs `vitscale COMMAND` in every process, output prefixed by its number. One failure stops them all.

    `devices`: that many fake CPU devices a process; None: the real devices of the machine. SIGTERM is passed on, and
    the processes end as they see fit; Ctrl-C interrupts them. Raises `LaunchFailed` with the words and the code of
    the first process that failed.
    """
    if processes < 1:
        raise UserError(f"--processes={processes} must be at least 1.")
    if not command:
        raise UserError(
            "name the command to run after `--`, such as: -- train --config X --workdir D."
        )
    port = _free_port()
    children: list[_Child] = []
    with _passing_on(children):
        try:
            for rank in range(processes):
                children.append(_Child(command, rank, processes, port, devices))
            failed = _wait(children)
        except KeyboardInterrupt:
            _stop(children, (signal.SIGINT, signal.SIGTERM), INTERRUPT_GRACE)
            raise
        finally:
            # Nothing is left running, whatever happened above.
            _stop(children, (signal.SIGTERM,), TERM_GRACE)
            for child in children:
                child.finish()
    if failed is not None:
        raise LaunchFailed(failed.story(), failed.exit_code)


class _Child:
    """One process, in a process group of its own so that a signal reaches its workers and Ctrl-C only us."""

    def __init__(
        self, command: Sequence[str], rank: int, processes: int, port: int, devices: int | None
    ) -> None:
        environment = dict(os.environ)
        if processes > 1:
            environment |= {
                "VITSCALE_COORDINATOR": f"127.0.0.1:{port}",
                "VITSCALE_NUM_PROCESSES": str(processes),
                "VITSCALE_PROCESS_ID": str(rank),
            }
        if devices is not None:
            environment["JAX_PLATFORMS"] = "cpu"
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        self.rank = rank
        self.process = subprocess.Popen(
            [*PROGRAM, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._relay, daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 128 + n for a process ended by signal n."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def signal(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.process.pid, number)
            elif self.running:
                self.process.send_signal(number)

    def finish(self) -> None:
        """Reaps the process; its workers end with it, since one of them would hold its output open."""
        self.process.wait()
        self.signal(signal.SIGKILL, group=True)
        self._reader.join(timeout=5.0)

    def story(self) -> str:
        """How it ended, with its last lines."""
        code = self.process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        if code in KNOWN_CODES:
            how += f" ({KNOWN_CODES[code]})"
        lines = "".join(f"  [{self.rank}] {line}" for line in self._last)
        return f"process {self.rank} {how}; its last lines:\n{lines}".rstrip()

    def _relay(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._last.append(line if line.endswith("\n") else line + "\n")
            print(f"[{self.rank}] {line}", end="", flush=True)


@contextlib.contextmanager
def _passing_on(children: Sequence[_Child]) -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) to us are meant for the run: every process gets a SIGTERM."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in list(children):
            child.signal(signal.SIGTERM)

    previous = {}
    # Not where `nohup` ignores one, and not outside the main thread, where no handler can be set.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(children: Sequence[_Child]) -> _Child | None:
    """The first process that fails; None when all end well. The others get a while to end by themselves."""
    while any(child.running for child in children):
        failed = _first_failed(children)
        if failed is not None:
            _await(children, STOP_GRACE)
            return failed
        time.sleep(0.05)
    return _first_failed(children)


def _first_failed(children: Sequence[_Child]) -> _Child | None:
    """Of several that failed since the last look, the one that did not only lose another."""
    failed = [c for c in children if not c.running and c.process.returncode != 0]
    return min(failed, key=lambda child: child.process.returncode in KNOWN_CODES, default=None)


def _stop(children: Sequence[_Child], signals: Sequence[int], grace: float) -> None:
    """Each of `signals` in turn, `grace` seconds apart, then SIGKILL; nothing when all have ended."""
    for number in signals:
        for child in children:
            child.signal(number)
        _await(children, grace)
    for child in children:
        if child.running:
            child.signal(signal.SIGKILL, group=True)


def _await(children: Sequence[_Child], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(child.running for child in children) and time.monotonic() < until:
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
