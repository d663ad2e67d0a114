"""What a launch on TPU VMs remembers on this machine, so that another call goes on with it: a laptop may sleep."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets as random_names
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from launch.job import Job
from launch.launch_folder import make_folder
from launch.locks import held
from launch.queued_resource import Capacity
from launch.tpu_workers import MOUNT_POINT
from vitscale.errors import UserError

FORMAT = 1
RUN = (
    "command",
    "environment",
    "secrets",
    "env_file",
)  # what a launch runs; not known before its first `run`


@dataclass
class Launch:
    """One launch. All of it may be seen: secrets are references."""

    launch_id: str  # the value of the label on what this launch creates
    zone: str
    project: str | None
    capacity: Capacity
    command: tuple[str, ...] = ()  # words after `vitscale`
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)  # variable → name in Secret Manager
    env_file: str | None = None  # on the workers
    bucket: str | None = None
    commit: str = ""  # that the workers run
    base: str = ""  # HEAD when the bundle was made
    planned: tuple[str, ...] = ()  # the command that `vitscale plan` was asked about last
    script: str = (
        ""  # `tpu_worker.sh` as it is called on the workers; another version has another name
    )
    workers: int = 0  # machines, as the cloud counts them; 0: not known yet
    run: int = 0  # number of the run that was started last; 0: none
    recreated: int = 0  # how often the queued resource was asked for again
    restarted: int = 0  # how often a run that failed was
    offset: int = 0  # bytes of the run's log that were printed


class Launches:
    """The folder `.vitscale/launch` of a repository: NAME.json and NAME/ for every launch."""

    def __init__(self, repository: Path) -> None:
        self.folder = repository / ".vitscale" / "launch"

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def read(self, name: str) -> Launch | None:
        """None: there is no launch of that name. Raises `UserError` for a file that is none of ours."""
        path = self.path(name)
        try:
            document = json.loads(path.read_text())
            if document.pop("format") != FORMAT:
                raise UserError(f"{path} is of another version of vitscale; use that one.")
            document["capacity"] = Capacity(**document["capacity"])
            for words in ("command", "planned"):
                document[words] = tuple(document.get(words, ()))
            return Launch(**document)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): the queued resource {name} may still be there and cost; look at "
                "`gcloud compute tpus queued-resources list`, then remove the file."
            ) from error

    def need(self, name: str) -> Launch:
        """Raises `UserError`, with the names there are, for one that is not there."""
        launch = self.read(name)
        if launch is None:
            known = ", ".join(self.names()) or "none"
            raise UserError(f"there is no launch {name!r} in {self.folder}; there are: {known}.")
        return launch

    def write(self, name: str, launch: Launch) -> None:
        """Whole or not at all, whenever this process dies."""
        make_folder(self.folder)
        part = self.path(name).with_suffix(".part")
        with part.open("w") as file:
            json.dump({"format": FORMAT, **dataclasses.asdict(launch)}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path(name))

    def forget(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def alone(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Nobody else on this machine works on the launch. Raises `UserError` when somebody does."""
        make_folder(self.folder)
        return held(
            self.path(name).with_suffix(".lock"),
            "the folder of launches",
            busy=f"another process on this machine works on the launch {name!r}; `status`, `logs` and `stop` may be "
            "used beside it.",
        )


def new_launch(capacity: Capacity, zone: str, project: str | None) -> Launch:
    """A launch with a label that no other has: values of labels take 63 small letters, digits, `-` and `_`."""
    return Launch(f"{capacity.name[:48]}-{random_names.token_hex(5)}", zone, project, capacity)


def check_same(launch: Launch, stated: Mapping[str, object]) -> None:
    """Raises `UserError` where the user states something else (None: nothing) than what the launch was made with."""
    known = {**dataclasses.asdict(launch.capacity), **vars(launch)}
    if not launch.command:
        for key in RUN:
            del known[key]
    for key, value in stated.items():
        if value is not None and key in known and known[key] != value:
            old, new = (shlex.join(v) if isinstance(v, tuple) else v for v in (known[key], value))
            name = launch.capacity.name
            raise UserError(
                f"the launch {name!r} is there with {key} {old!r}, and not {new!r}: use the same words, another "
                f"--name, or `vitscale launch tpu-vm down --name {name}` first."
            )


def check_command(job: Job, launch: Launch, *, own_disk: bool) -> None:
    """Raises `UserError` where the workdir of `train` would be lost with the VMs, or be another one on every host."""
    if job.command[0] != "train" or own_disk or job.workdir is None:
        return
    workdir = PurePosixPath(job.workdir)
    if ".." in workdir.parts or not workdir.is_relative_to(MOUNT_POINT):
        raise UserError(
            f"--workdir {job.workdir} is not below {MOUNT_POINT} but on the VMs' own disks, which other hosts do not "
            "see and which go with them: give --bucket NAME and a workdir there, or --own-disk to accept that."
        )
    if launch.bucket is None:
        raise UserError(f"--workdir {job.workdir} is in the bucket: name it, --bucket NAME.")
