"""Several processes on this machine, joined by `jax.distributed`: what a pod does, small enough for a test."""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launch.secrets import HIDDEN, hide, is_secret_name
from launch.signals import on_termination
from vitscale.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, LaunchFailed, Preempted, UserError

PROGRAM = (sys.executable, "-m", "vitscale.cli")
TETHER = Path(__file__).with_name("tether.py")
STOP_GRACE = 15.0  # seconds for the others to end by themselves after one has
TERM_GRACE = 5.0  # seconds between SIGTERM and SIGKILL for those that did not
INTERRUPT_GRACE = 20.0  # seconds between SIGINT, SIGTERM and SIGKILL after Ctrl-C
BACK_OFF, LONGEST_BACK_OFF = 1.0, 60.0  # seconds before a restart; doubled each time
DOUBLINGS = 10  # more would be longer than the longest pause, and at last than any float
LAST_LINES = 20
KNOWN_CODES: Mapping[int, str] = {
    EXIT_PREEMPTED: "stopped and saved; the same command goes on from there",
    EXIT_PEER_LOST: "another process was lost; the same command goes on from the last checkpoint",
}
# The same command would end the same way: the user's mistake; or the user wants no more of it: Ctrl-C.
FINAL_CODES = (2, 130)
_COUNT_FLAG = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Processes:
    """What is started: `vitscale COMMAND`, so many times."""

    command: tuple[str, ...]
    count: int = 1
    devices: int | None = None  # fake CPU devices a process; None: real ones
    gpus: int | None = None  # GPUs a process, each its own; None: every process sees them all
    environment: Mapping[str, str] = field(default_factory=dict)  # besides this process's own
    logs: Path | None = None  # folder for process-0.log, process-1.log, ...

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--processes={self.count} must be at least 1.")
        for name, value in (("devices", self.devices), ("gpus", self.gpus)):
            if value is not None and value < 1:
                raise UserError(f"--{name}={value} must be at least 1.")
        if self.devices is not None and self.gpus is not None:
            raise UserError("--devices are fake ones and --gpus real ones: give one of them.")
        if not self.command:
            raise UserError(
                "name the command to run after `--`, such as: -- train --config X --workdir D."
            )

    def variables(self, rank: int, port: int) -> dict[str, str]:
        """What process `rank` sees besides this process's own environment."""
        found = dict(self.environment)
        if self.count > 1:
            found |= {
                "VITSCALE_COORDINATOR": f"127.0.0.1:{port}",
                "VITSCALE_NUM_PROCESSES": str(self.count),
                "VITSCALE_PROCESS_ID": str(rank),
            }
        if self.devices is not None:
            own = found.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", "")).split()
            kept = [flag for flag in own if not flag.startswith(_COUNT_FLAG)]
            found["JAX_PLATFORMS"] = "cpu"
            found["XLA_FLAGS"] = " ".join([*kept, f"{_COUNT_FLAG}={self.devices}"])
        if self.gpus is not None:
            found["CUDA_VISIBLE_DEVICES"] = gpu_share(rank, self.gpus, self.count)
        return found

    def describe(self) -> str:
        """For `--dry-run`: a line a process, as a shell would take it."""
        lines = []
        for rank in range(self.count):
            variables = self.variables(rank, port=0)
            if self.count > 1:
                variables["VITSCALE_COORDINATOR"] = "127.0.0.1:PORT"
            words = [
                f"{name}={HIDDEN if is_secret_name(name) else shlex.quote(value)}"
                for name, value in variables.items()
            ]
            lines.append(" ".join([*words, shlex.join(["vitscale", *self.command])]))
        return hide("\n".join(lines))


def launch_local(
    command: Sequence[str],
    *,
    processes: int,
    devices: int | None = None,
    gpus: int | None = None,
    environment: Mapping[str, str] | None = None,
    logs: Path | None = None,
    restarts: int = 0,
    restart_preempted: bool = False,
) -> None:
    """Runs `vitscale COMMAND` in every process, output prefixed by its number. One failure stops them all.

    SIGTERM is passed on, and the processes end as they see fit; Ctrl-C interrupts them. When this process dies, they
    get a SIGTERM (Linux).

    Args:
        devices: that many fake CPU devices a process; None: the real devices of the machine.
        gpus: that many GPUs a process, of those that this process may see.
        environment: variables for every process.
        logs: folder where each process's output also goes, one file each, appended.
        restarts: how often all are started again after one failed, which goes on from the last checkpoint.
        restart_preempted: a run that was stopped and has saved (exit code 75) is also started again.

    Raises:
        LaunchFailed: with the words and the code of the first process that failed, when no restart is left or the
            same command would fail in the same way (exit code 2).
    """
    what = Processes(tuple(command), processes, devices, gpus, environment or {}, logs)
    if restarts < 0:
        raise UserError(f"--restarts={restarts} must not be negative.")
    children: list[_Child] = []

    def pass_on() -> None:
        for child in list(children):
            child.signal(signal.SIGTERM)

    with on_termination(pass_on) as asked:
        for restart in range(1, restarts + 2):
            try:
                return _run_once(what, children, asked, restart)
            except LaunchFailed as failed:
                final = (*FINAL_CODES, *(() if restart_preempted else (EXIT_PREEMPTED,)))
                if failed.code in final or asked.is_set():
                    raise
                if restart > restarts:
                    if restarts == 0:
                        raise
                    raise LaunchFailed(
                        f"after {restarts} restarts, {failed}", failed.code
                    ) from None
                pause = min(BACK_OFF * 2 ** min(restart - 1, DOUBLINGS), LONGEST_BACK_OFF)
                first = str(failed).splitlines()[0].removesuffix("; its last lines:")
                _say(f"{first}: restart {restart} of {restarts} in {pause:.0f} s")
                if asked.wait(pause):
                    raise Preempted("stopped before a restart") from failed


def _run_once(what: Processes, children: list[_Child], asked: threading.Event, start: int) -> None:
    port = _free_port()
    children.clear()
    try:
        for rank in range(what.count):
            children.append(_Child(what, rank, port, start))
            if asked.is_set():  # before this one was there to be told
                children[-1].signal(signal.SIGTERM)
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

    def __init__(self, what: Processes, rank: int, port: int, start: int) -> None:
        self.rank = rank
        self._log = _open_log(what.logs, rank, start)
        tether = (sys.executable, "-I", "-S", str(TETHER), str(os.getpid()))
        self.process = subprocess.Popen(
            [*tether, *PROGRAM, *what.command],
            env=dict(os.environ) | what.variables(rank, port),
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
        with self._log or contextlib.nullcontext():
            for line in self.process.stdout:
                self._last.append(line if line.endswith("\n") else line + "\n")
                print(f"[{self.rank}] {line}", end="", flush=True)
                if self._log is not None:
                    self._log = _write(self._log, line)


def _open_log(folder: Path | None, rank: int, start: int) -> IO[str] | None:
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / f"process-{rank}.log").open("a", buffering=1, encoding="utf-8")
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        log.write(f"--- {now}: start {start}\n")
    except OSError as error:
        raise UserError(
            f"--logs={folder} cannot be written ({error.strerror}); name another folder."
        ) from error
    return log


def _write(log: IO[str], line: str) -> IO[str] | None:
    """A full disk ends the log and not the run."""
    try:
        log.write(line)
    except OSError as error:
        _say(f"no more lines go to {log.name}: {error.strerror}")
        return None
    return log


def _say(text: str) -> None:
    print(f"[launch] {text}", flush=True)


def gpu_share(rank: int, gpus: int, count: int) -> str:
    """`CUDA_VISIBLE_DEVICES` of process `rank` among `count` with `gpus` each."""
    visible = visible_gpus()
    if len(visible) < gpus * count:
        raise UserError(
            f"{count} processes with {gpus} GPUs each need {gpus * count}, and this one may see {len(visible)}: take "
            "fewer --processes or --gpus, or --devices for fake ones."
        )
    return ",".join(visible[rank * gpus : (rank + 1) * gpus])


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` has them."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def _wait(children: Sequence[_Child]) -> _Child | None:
    """The first process that fails; None when all end well. The others get a while to end by themselves."""
    while any(child.running for child in children):
        failed = _first_failed(children)
        if failed is not None:
            _await(children, STOP_GRACE)
            # One that lost another may notice before the other's end is seen here.
            lost = failed.process.returncode == EXIT_PEER_LOST
            return _first_failed(children) if lost else failed
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
