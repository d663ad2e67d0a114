"""`ROOT/sweep.json`: what a sweep knows of its runs, written so that a kill at any moment leaves a whole file."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from launch.job import option
from launch.locks import held
from vitscale.errors import UserError

SWEEP_FILE, LOCK_FILE = "sweep.json", ".sweep.lock"
State = Literal["waiting", "running", "evaluating", "finished", "failed"]


@dataclass
class RunState:
    """One run. `stage` is the part that it is in: the command itself, or what `--then` names."""

    overrides: dict[str, Any]
    digest: str = ""  # of the config with its overrides; empty for commands other than `train`
    state: State = "waiting"
    stage: str = "train"
    attempts: int = 0  # of this stage
    code: int | None = None  # exit code of the last attempt
    seconds: float = 0.0  # that its jobs have taken, all attempts and stages
    started: float | None = None  # of the job that is running, Unix time
    handle: str | None = None  # of that job
    step: int = -1  # of the newest checkpoint when that job was started; -1: none
    then: str = ""  # the command after it that has ended well
    complaint: str = ""  # why the last attempt was not enough
    known: dict[str, str] = field(
        default_factory=dict
    )  # stage -> its last job whose end is in here
    stopped: bool = False  # the sweep has asked the job that is running to save and end
    redone: int = 0  # how often `--redo` gave it a new workdir, where this machine sees none


@dataclass
class SweepState:
    """All runs by name, in the order in which they came up; those that left the sweep's file stay."""

    path: Path
    command: list[str]
    runs: dict[str, RunState] = field(default_factory=dict)

    def redone(self) -> dict[str, int]:
        """Of runs that `--redo` gave a new workdir, how often."""
        return {name: run.redone for name, run in self.runs.items() if run.redone}

    def save(self) -> None:
        runs = {name: dataclasses.asdict(run) for name, run in self.runs.items()}
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w") as file:
            json.dump({"command": self.command, "runs": runs}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def load_state(folder: Path, command: list[str]) -> SweepState:
    """The state of an earlier start, or an empty one."""
    path = folder / SWEEP_FILE
    state = SweepState(path, command)
    if path.is_file():
        try:
            tree = json.loads(path.read_text())
            state.runs = {name: RunState(**run) for name, run in tree["runs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no sweep's state ({error}); move it away, and what is still there is found again."
            ) from error
    return state


def check_same_root(folder: Path, root: str) -> None:
    """Raises `UserError` where a folder that is not the runs' own holds the sweep of another `--workdir`."""
    before = _root_of(folder)
    if before is not None and PurePosixPath(before) != PurePosixPath(root):
        raise UserError(
            f"{folder} is of the sweep in --workdir {before}, not {root}: give this one another --name."
        )


def check_sole_owner(folder: Path, root: str) -> None:
    """Raises `UserError` where a folder beside this one holds another sweep of the same `--workdir`: each would have
    its own job for a run."""
    for other in sorted(folder.parent.glob(f"*/{SWEEP_FILE}")):
        before = _root_of(other.parent)
        if other.parent != folder and before and PurePosixPath(before) == PurePosixPath(root):
            raise UserError(
                f"--workdir {root} is of the sweep whose files are in {other.parent}: start it by the --name that it "
                f"began with ({other.parent.name}), or give this one another --workdir. If none of its jobs is left, "
                "you may also move that folder away."
            )


def _root_of(folder: Path) -> str | None:
    """`--workdir` of the sweep that is there. None: none is, or `load_state` says what is wrong."""
    try:
        command = json.loads((folder / SWEEP_FILE).read_text())["command"]
        return option(command, "--workdir")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sweep_lock(folder: Path) -> AbstractContextManager[None]:
    """One sweep at a time in a folder."""
    busy = f"another sweep is running in {folder}; wait for it or take another --workdir."
    return held(folder / LOCK_FILE, "the sweep's folder", busy)
