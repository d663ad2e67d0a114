"""The runs of a sweep on Cloud TPU VMs: for each a process here that asks for its chips and deletes them at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.chips import Rented
from launch.job import Job
from launch.preflight import check_plan
from launch.sweep import LOG_WORDS, Status
from launch.sweep_local import ENDED_FILE, JOB_FILE, LocalPlace
from launch.tpu_launches import Launches


@dataclass
class TpuVmPlace:
    """A `launch.sweep.Place`: `vitscale launch tpu-vm run` for each run, on the machine of the sweep.

    A sweep that is stopped stops them, and they let their runs save and delete their chips. Of one that is killed they
    go on; where they are killed as well, a start of the same run takes over what they had asked for.

    words: the command that launches a job.
    refuse: raises `UserError` for a job that must not be launched; asks nobody.
    """

    rented: Rented
    words: Callable[[Job], list[str]]
    refuse: Callable[[Job], None]
    launches: Launches
    skip_plan: bool = False
    outlives: bool = False
    sees_workdirs: bool = False
    poll_seconds: float = 1.0
    log_words: str = LOG_WORDS
    _processes: LocalPlace = field(default_factory=lambda: LocalPlace(tethered=False))

    @property
    def name_suffix(self) -> str:
        # Every slice's node has a number.
        return f"-{self.rented.slices - 1}" if self.rented.slices > 1 else ""

    def check(self, job: Job) -> None:
        self.refuse(job)
        if job.command[0] == "train":
            said = check_plan(job.command, self.rented.topology, skip=self.skip_plan)
            print(f"[sweep] {job.name}: plan: {said}", flush=True)

    def start(self, job: Job, folder: Path, known: str | None) -> str:
        # The variables are the run's, on the workers: `words` has them.
        launch = replace(job, command=tuple(self.words(job)), environment={})
        if (ended := _ended_unseen(launch, folder, known)) is not None:
            return ended
        return self._processes.start(launch, folder, known)

    def poll(self, handle: str, folder: Path) -> Status:
        status = self._processes.poll(handle, folder)
        if status.running or status.code == 0:
            return status
        name = _name_in(folder)
        if name is None or not self.launches.path(name).exists():
            return status
        stays = f"its chips cost until it goes on, or `vitscale launch tpu-vm down --name {name}`"
        return replace(status, words="; ".join(filter(None, (status.words, stays))))

    def cancel(self, handle: str, folder: Path) -> None:
        self._processes.cancel(handle, folder)


def _ended_unseen(launch: Job, folder: Path, known: str | None) -> str | None:
    """The handle of a process that has ended while no sweep was there to see it."""
    try:
        handle = str(json.loads((folder / ENDED_FILE).read_text())["pid"])
        command = json.loads((folder / JOB_FILE).read_text())["command"]
    except (OSError, ValueError, KeyError):
        return None
    return handle if handle != known and command == list(launch.command) else None


def _name_in(folder: Path) -> str | None:
    """Of the launch of a process."""
    try:
        words = json.loads((folder / JOB_FILE).read_text())["command"]
    except (OSError, ValueError, KeyError):
        return None
    return words[words.index("--name") + 1]
