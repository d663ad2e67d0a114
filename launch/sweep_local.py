"""The runs of a sweep as processes of this machine: `python -m launch.sweep_local FOLDER` runs one of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launch.job import Job
from launch.local import TETHER, launch_local, visible_gpus
from launch.preflight import check_plan
from launch.secrets import hide
from launch.sweep import LOG_WORDS, Status
from vitscale.errors import EXIT_PREEMPTED, LaunchFailed, Preempted, UserError

JOB_FILE, LOG_FILE, ENDED_FILE, LOCK_FILE = "job.json", "log.txt", "ended.json", ".lock"
LOCK_PATIENCE = (
    3.0  # seconds: a sweep that looks whether a job is running has its lock for a moment
)


@dataclass
class LocalPlace:
    """Each run is a process here that starts the run's own; it dies with the sweep, after its run has saved."""

    processes: int = 1
    devices: int | None = None
    gpus: int | None = None
    restarts: int = 0
    topology: str | None = None  # chips that a run's plan must fit
    skip_plan: bool = False
    tethered: bool = True  # a sweep that is killed takes the processes of its runs with it
    outlives: bool = False
    sees_workdirs: bool = True
    name_suffix: str = ""
    poll_seconds: float = 0.5
    log_words: str = LOG_WORDS
    _own: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _gpus_of: dict[str, list[str]] = field(default_factory=dict)  # by handle

    def check_room(self, concurrency: int) -> None:
        """Raises `UserError` where so many runs at once have not enough GPUs."""
        if self.gpus is not None:
            need, have = concurrency * self.processes * self.gpus, len(visible_gpus())
            if need > have:
                raise UserError(
                    f"--concurrency={concurrency} runs of {self.processes} x {self.gpus} GPUs need {need}, and this "
                    f"machine has {have}."
                )

    def check(self, job: Job) -> None:
        if self.topology is not None and job.command[0] == "train":
            said = check_plan(job.command, self.topology, skip=self.skip_plan)
            print(f"[sweep] {job.name}: plan: {said}", flush=True)

    def start(self, job: Job, folder: Path, known: str | None) -> str:
        if (running := holder(folder)) is not None:
            return running
        what = {
            "command": list(job.command),
            "processes": self.processes,
            "devices": self.devices,
            "gpus": self.gpus,
            "restarts": self.restarts,
            "logs": str(folder / "logs"),
        }
        (folder / JOB_FILE).write_text(json.dumps(what, indent=2))
        (folder / ENDED_FILE).unlink(missing_ok=True)
        # Variables may hold what must not be in a file.
        environment = dict(os.environ) | dict(job.environment)
        gpus = self._free_gpus()
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        tether = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid())] * self.tethered
        with (folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [*tether, sys.executable, "-m", "launch.sweep_local", str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is the sweep's
            )
        handle = str(process.pid)
        self._own[handle] = process
        if gpus is not None:
            self._gpus_of[handle] = gpus
        return handle

    def poll(self, handle: str, folder: Path) -> Status:
        if own := self._own.get(handle):
            running = own.poll() is None
        else:
            running = holder(folder) == handle
            if running and self.gpus is not None and handle not in self._gpus_of:
                self._gpus_of[handle] = _gpus_in(folder)
        if running:
            return Status(running=True)
        self._own.pop(handle, None)
        self._gpus_of.pop(handle, None)
        try:
            ended = json.loads((folder / ENDED_FILE).read_text())
        except (OSError, ValueError):
            return Status(running=False)
        return Status(running=False, code=ended["code"], words=ended["words"])

    def cancel(self, handle: str, folder: Path) -> None:
        if handle in self._own or holder(folder) == handle:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(handle), signal.SIGTERM)

    def _free_gpus(self) -> list[str] | None:
        if self.gpus is None:
            return None
        taken = {gpu for gpus in self._gpus_of.values() for gpu in gpus}
        free = [gpu for gpu in visible_gpus() if gpu not in taken]
        return free[: self.gpus * self.processes]


def run_job(folder: Path) -> int:
    """What a process of `LocalPlace` does: `launch_local`, and how it ended written into `folder`."""
    with _held(folder) as held:
        if not held:
            print(f"{folder} has a job that is running already", flush=True)
            return EXIT_PREEMPTED  # and its end is not ours to write
        what = json.loads((folder / JOB_FILE).read_text())
        code, words = _launch(what)
        temporary = folder / f"{ENDED_FILE}.tmp"
        temporary.write_text(json.dumps({"pid": os.getpid(), "code": code, "words": words}))
        temporary.replace(folder / ENDED_FILE)
        return code


def _launch(what: dict[str, Any]) -> tuple[int, str]:
    """(exit code, the sentence that says why)."""
    command = what.pop("command")
    what["logs"] = Path(what["logs"])
    print(hide(f"[launch] vitscale {shlex.join(command)}"), flush=True)
    try:
        launch_local(command, **what)
    except LaunchFailed as failed:
        return failed.code, str(failed).splitlines()[-1].strip()
    except Preempted as stopped:
        return EXIT_PREEMPTED, str(stopped)
    except UserError as error:
        print(error, flush=True)
        return 2, str(error)
    return 0, ""


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Holds the folder for one job. The file names the process and its GPUs, for a sweep that was killed meanwhile."""
    with (folder / LOCK_FILE).open("a+") as file:
        until = time.monotonic() + LOCK_PATIENCE
        while not _locks(file):
            if time.monotonic() > until:
                yield False
                return
            time.sleep(0.05)
        file.truncate(0)
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        file.write(json.dumps({"pid": os.getpid(), "gpus": gpus}))
        file.flush()
        yield True


def holder(folder: Path) -> str | None:
    """Handle of the job that is running for a folder."""
    try:
        with (folder / LOCK_FILE).open("r+") as file:
            return None if _locks(file) else str(json.loads(file.read())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _gpus_in(folder: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads((folder / LOCK_FILE).read_text())["gpus"].split(",")
    return []


def _locks(file: IO[str]) -> bool:
    """Takes the lock until `file` is closed; False: another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1])))
