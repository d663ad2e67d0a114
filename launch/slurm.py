"""Jobs of Slurm: submitted once, found again, asked to save and stop. The script is `launch.slurm_script`'s."""

from __future__ import annotations

import datetime
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from launch import slurm_commands as commands
from launch.capture import capture
from launch.job import Job
from launch.locks import held
from launch.slurm_commands import Busy, Found
from launch.slurm_options import Options, secret_files
from launch.slurm_script import BATCH_LOG, EXIT_CODE, STOP, script_of
from launch.sweep import LOG_WORDS, Status
from vitscale.errors import UserError

SCRIPT, SUBMITTED, LOCK = "job.sbatch", "submitted.json", ".lock"
FILES_DELAY = 5.0  # seconds until a network file system shows what another machine has written


@dataclass(frozen=True)
class Launched:
    """A submitted job, and the folder of this launch; the folder's name is the job's label."""

    job_id: str
    folder: Path

    @property
    def handle(self) -> str:
        return f"{self.job_id}/{self.folder.name}"

    @classmethod
    def of_handle(cls, handle: str, base: Path) -> Launched:
        job_id, _, label = handle.partition("/")
        return cls(job_id, base / label)


def base_folder(job: Job) -> Path:
    """Where the launches of a job are: in its workdir, or beside the code for a command that has none."""
    if job.workdir is not None and "://" not in job.workdir:
        return Path(job.workdir).absolute() / "launch"
    here = Path.cwd()
    # The same one from every folder of the repository.
    root = next((path for path in (here, *here.parents) if (path / ".git").exists()), here)
    return root / ".vitscale" / "launch" / job.name


def new_launch(base: Path) -> Path:
    """A folder that is not there yet; its name sorts by time."""
    now = datetime.datetime.now(datetime.UTC)
    return base / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def start(job: Job, options: Options, base: Path) -> Launched:
    """Submits the job, with all that is worth keeping in a new folder below `base`."""
    commands.require()
    options.check(job)
    secret_files(options.secrets, Path.home())
    directory = Path.cwd()
    folder = new_launch(base)
    text = script_of(job, options, folder, directory)
    folder.mkdir(parents=True)
    (folder / SCRIPT).write_text(text)
    capture(job, folder, directory, None if options.container else options.python)
    launched = Launched(_submit(folder), folder)
    record = json.dumps({"job": launched.job_id, "label": folder.name}) + "\n"
    temporary = folder / f"{SUBMITTED}.new"
    temporary.write_text(record)
    os.replace(temporary, folder / SUBMITTED)
    return launched


def find_or_start(job: Job, options: Options, base: Path) -> tuple[Launched, bool]:
    """The job of a launch below `base` that is in the queue or running; else a new one, and True.

    Of several processes that ask for it at once, one submits it.
    """
    with held(base / LOCK, "the folder of the launch's script and logs", busy=None):
        going = find_going(base)
        return (going, False) if going is not None else (start(job, options, base), True)


def _submit(folder: Path) -> str:
    """A controller that did not answer may have taken the job; so its label is looked for before another try."""
    until = time.monotonic() + commands.RETRY_FOR
    while True:
        try:
            return commands.submit(folder / SCRIPT)
        except Busy as busy:
            if time.monotonic() > until:
                raise UserError(f"sbatch: {busy}; tried for {commands.RETRY_FOR:.0f} s.") from busy
            time.sleep(commands.RETRY_EVERY)
            for found in commands.own_jobs():
                if found.label == folder.name:
                    return found.job_id


def find_going(base: Path) -> Launched | None:
    """The job of a launch below `base` that is in the queue or running."""
    if not base.is_dir():
        return None
    folders = {path.name: path for path in base.iterdir() if (path / SCRIPT).is_file()}
    if not folders:
        return None
    commands.require()
    for found in commands.own_jobs():
        if found.going and found.label in folders:
            return Launched(found.job_id, folders[found.label])
    return None


def stop(launched: Launched) -> None:
    """Asks a job to save and end; does not wait. A job that waits in the queue is cancelled.

    Raises:
        UserError: the job is not the one that this launch has submitted.
    """
    # First the file: from here on the job is not queued again, whatever happens.
    (launched.folder / STOP).touch()
    found = own(launched)
    if found is None or not found.going:
        return
    if found.state == "RUNNING":
        commands.signal_steps(launched.job_id, "TERM")
    else:
        commands.cancel(launched.job_id)


def kill(launched: Launched) -> None:
    """Slurm ends the job: SIGTERM, and SIGKILL after the cluster's KillWait."""
    (launched.folder / STOP).touch()
    found = own(launched)
    if found is not None and found.going:
        commands.cancel(launched.job_id)


def own(launched: Launched) -> Found | None:
    """The job, if Slurm knows it. Raises `UserError` where its label is not that of the launch."""
    found = commands.find_job(launched.job_id)
    if found is not None and found.label != launched.folder.name:
        raise UserError(
            f"job {launched.job_id} is not the one that {launched.folder} submitted (its comment is not "
            f"{launched.folder.name!r}): it is left alone."
        )
    return found


def exit_code(launched: Launched, found: Found | None) -> int | None:
    """Of a job that has ended; None: nobody knows."""
    path = launched.folder / EXIT_CODE
    until = time.monotonic() + FILES_DELAY
    # Cancelled in the queue or ended with its node, a job leaves no code.
    while not path.is_file() and (found is None or found.state in ("COMPLETED", "FAILED")):
        if time.monotonic() > until:
            return 0 if found is not None and found.state == "COMPLETED" else None
        time.sleep(0.2)
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class SlurmPlace:
    """A `launch.sweep.Place`: each run is a job, and goes on when the sweep's own process ends."""

    options: Options
    skip_plan: bool = False
    outlives: bool = True
    sees_workdirs: bool = True
    name_suffix: str = ""
    poll_seconds: float = 5.0
    log_words: str = LOG_WORDS

    def check(self, job: Job) -> None:
        self.options.check(job)
        self.options.plan(job, skip=self.skip_plan)

    def start(self, job: Job, folder: Path, known: str | None) -> str:
        base = folder.absolute()
        return find_or_start(job, self.options, base)[0].handle

    def poll(self, handle: str, folder: Path) -> Status:
        launched = Launched.of_handle(handle, folder.absolute())
        found = commands.find_job(launched.job_id)
        if found is not None and found.label != launched.folder.name:
            found = None  # the number is another job's by now
        if found is not None and found.going:
            return Status(running=True)
        state = found.state if found is not None else "no longer known to Slurm"
        words = f"job {launched.job_id}: {state}; see {launched.folder / BATCH_LOG}"
        return Status(running=False, code=exit_code(launched, found), words=words)

    def cancel(self, handle: str, folder: Path) -> None:
        stop(Launched.of_handle(handle, folder.absolute()))
