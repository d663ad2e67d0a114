"""Many runs of one command: started as there is room, the finished skipped, the failed tried again.

All that must survive a `kill -9` of the sweep is in `ROOT/sweep.json` and in the runs' own folders; started again, it
goes on with the jobs that are still running.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.job import Job
from launch.signals import on_termination
from launch.sweep_plan import Planned
from launch.sweep_state import RunState, SweepState
from launch.trained import last_step, why_unfinished
from vitscale.errors import EXIT_PREEMPTED, Preempted, UserError

USER_ERROR = 2  # the same command would end the same way
BACK_OFF, LONGEST_BACK_OFF = (
    5.0,
    300.0,
)  # seconds before a failed run is tried again; doubled each time
DOUBLINGS = 10  # more would be longer than the longest pause, and at last than any float
STOP_LIMIT = 600.0  # seconds for cancelled runs to save


@dataclass(frozen=True)
class Status:
    """Of a job. `code` is its exit code, and None while it runs or where nobody knows how it ended."""

    running: bool
    code: int | None = None
    words: str = ""  # its last line, or where to look


class Later(Exception):
    """A place cannot start a job just now: try again at the next look."""


class Place(Protocol):
    """Where the runs of a sweep are jobs."""

    outlives: bool  # jobs go on when the sweep is stopped; else they are cancelled with it
    sees_workdirs: bool  # here; else a run has finished when its job has ended with code 0
    name_suffix: str  # the longest that the place hangs on the name of a job
    poll_seconds: float
    log_words: str  # where the log of {job} is, whose files are in {folder}

    def check(self, job: Job) -> None:
        """Raises `UserError` for a job that must not start here, such as one whose plan does not fit."""

    def start(self, job: Job, folder: Path, known: str | None) -> str:
        """Starts `vitscale JOB.COMMAND`; logs and the like go into `folder`.

        Returns a handle that means the same to another process. Where a job of this folder is running already, its
        handle: the sweep may have died before it could write that down. The same where such a job has ended
        meanwhile, at places that do not see workdirs and so could not tell from there.

        known: the handle of the folder's last job of whose end the sweep knows.

        Raises `Later` where it does not answer for the moment.
        """

    def poll(self, handle: str, folder: Path) -> Status: ...

    def cancel(self, handle: str, folder: Path) -> None:
        """Asks the job to save and stop; does not wait."""


LOG_WORDS = "its log is in {folder}"


@dataclass
class Sweep:
    """The runs, their states, and the place where they are jobs."""

    state: SweepState
    planned: Mapping[str, Planned]
    place: Place
    concurrency: int = 1
    retries: int = 1  # of each run, in each start of the sweep
    _ready: dict[str, float] = field(default_factory=dict)  # run -> when it may be tried again
    _tried: dict[str, int] = field(
        default_factory=dict
    )  # run -> failures in this start of the sweep

    def run(self) -> None:
        """Until every run is finished or has failed for good.

        Raises:
            Preempted: SIGTERM came; the same command goes on.
            KeyboardInterrupt: Ctrl-C, after the runs have saved where they do not outlive the sweep.
        """
        self._begin()
        with on_termination() as asked:
            try:
                while self._advance():
                    if asked.wait(self.place.poll_seconds):
                        break
            except KeyboardInterrupt:
                self._leave()
                raise
        if asked.is_set():
            self._leave()
            raise Preempted("the sweep was stopped")

    def _begin(self) -> None:
        """What an earlier start left: finished runs stay so, failed ones are tried again."""
        for name, run in self._runs():
            if run.handle is not None:
                continue
            if run.state == "failed":
                run.attempts = 0
            # Without a job all that is not finished waits: also what was finished once (a `--then` that has changed, a
            # checkpoint that is gone), and what was interrupted between its start and the note of it.
            run.state = "finished" if self._is_finished(name, run) else "waiting"
        for name, run in self._runs():
            if run.handle is None and run.state != "finished":
                for job in filter(None, (self.planned[name].job, self.planned[name].then)):
                    try:
                        self.place.check(job)
                    except UserError as error:
                        raise UserError(f"run {name}: {error}") from error
        self.state.save()

    def _advance(self) -> bool:
        """One look at every job. False: nothing is left to do."""
        for name, run in self._runs():
            if run.handle is not None:
                self._look(name, run)
        going = sum(run.handle is not None for _, run in self._runs())
        now = time.monotonic()
        for name, run in self._runs():
            if going >= self.concurrency:
                break
            if run.state == "waiting" and self._ready.get(name, 0.0) <= now:
                try:
                    self._start(name, run)
                except Later:
                    break
                going += 1
        return any(run.state not in ("finished", "failed") for _, run in self._runs())

    def _start(self, name: str, run: RunState) -> None:
        planned = self.planned[name]
        stage = "train" if self._unfinished(name, run) else "then"
        job = planned.job if stage == "train" else planned.then
        assert job is not None
        if run.stage != stage:
            run.stage, run.attempts = stage, 0
        folder = planned.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        step = self._step(name, run)
        handle = self.place.start(job, folder, run.known.get(stage))
        run.state = "running" if stage == "train" else "evaluating"
        run.attempts += 1
        run.code, run.started, run.handle, run.step = None, time.time(), handle, step
        run.stopped = False
        self.state.save()
        again = f", attempt {run.attempts}" if run.attempts > 1 else ""
        log = self.place.log_words.format(job=job.name, folder=folder)
        _say(f"{name}: {run.state}{again}; {log}")

    def _look(self, name: str, run: RunState) -> None:
        status = self._end_of(name, run)
        if status is None:
            return
        if run.stopped and status.code != 0:
            self._note_stop(name, run, status)
        elif run.stage == "then":
            self._settle(name, run, "" if status.code == 0 else _how(status))
        else:
            why = self._unfinished(name, run)
            self._settle(name, run, f"{_how(status)}: {why}" if why else "")
        if run.state == "waiting" and self._is_finished(name, run):
            run.state = "finished"
            _say(f"{name}: finished after {run.seconds:,.0f} s")
        self.state.save()

    def _end_of(self, name: str, run: RunState) -> Status | None:
        """How its job has ended, which is noted; None: it has not."""
        assert run.handle is not None
        status = self.place.poll(run.handle, self.planned[name].folder(run.stage))
        if status.running:
            return None
        _note_end(run, status)
        if run.stage == "then" and status.code == 0:
            run.then = self.planned[name].then_words
        return status

    def _note_stop(self, name: str, run: RunState, status: Status) -> None:
        """It was asked to stop by the sweep: however it ended, that is no failure of its own."""
        run.state = "waiting"
        if status.code not in (0, EXIT_PREEMPTED):
            _say(f"{name}: {_how(status)}")

    def _settle(self, name: str, run: RunState, complaint: str) -> None:
        """`complaint`: why the stage is not done; empty: it is, and the next one waits."""
        run.state, run.complaint = "waiting", complaint
        if not complaint:
            self._tried.pop(name, None)
            return
        # Stopped and saved is no failure as long as the run gets nearer to its end. One that does not would go on for
        # ever: a time limit that is over before the first save. What leaves no steps cannot show that it does.
        nearer = run.code == EXIT_PREEMPTED and self._step(name, run) > run.step
        tried = self._tried[name] = self._tried.get(name, 0) + (not nearer)
        if tried > self.retries or run.code == USER_ERROR:
            run.state = "failed"
            _say(f"{name}: failed: {complaint}")
            return
        pause = min(BACK_OFF * 2 ** min(run.attempts - 1, DOUBLINGS), LONGEST_BACK_OFF)
        self._ready[name] = time.monotonic() + pause
        _say(f"{name}: {complaint}; again in {pause:.0f} s")

    def _leave(self) -> None:
        """Stopped: jobs that do not outlive the sweep are cancelled, and waited for while they save."""
        going = sum(run.handle is not None for _, run in self._runs())
        try:
            if self.place.outlives:
                _say(f"stopped; {going} jobs go on, and the same command takes them over")
                return
            _say(f"stopping {going} runs, which save first")
            for name, run in self._runs():
                if run.handle is not None:
                    run.stopped = True
                    self.place.cancel(run.handle, self.planned[name].folder(run.stage))
            self.state.save()  # a second signal may end the wait for them
            self._await_all(time.monotonic() + STOP_LIMIT)
        finally:
            self.state.save()

    def _await_all(self, until: float) -> None:
        while time.monotonic() < until:
            for name, run in self._runs():
                if run.handle is None:
                    continue
                status = self._end_of(name, run)
                if status is not None:
                    self._note_stop(name, run, status)
            if all(run.handle is None for _, run in self._runs()):
                return
            time.sleep(min(self.place.poll_seconds, 1.0))
        _say(f"not all have ended after {STOP_LIMIT:.0f} s; the same command looks after them")

    def _step(self, name: str, run: RunState) -> int:
        """Of the newest checkpoint of a training; -1: there is none."""
        planned = self.planned[name]
        if planned.config is None or planned.here is None or run.stage == "then":
            return -1
        step = last_step(planned.here)
        return -1 if step is None else step

    def _runs(self) -> list[tuple[str, RunState]]:
        return [(name, self.state.runs[name]) for name in self.planned]

    def _is_finished(self, name: str, run: RunState) -> bool:
        planned = self.planned[name]
        return not self._unfinished(name, run) and run.then == planned.then_words

    def _unfinished(self, name: str, run: RunState) -> str:
        """Why the command itself is not done; empty: it is. A run of `train` says so by what it leaves, if that can be
        seen from here."""
        planned = self.planned[name]
        if planned.config is not None and planned.here is not None:
            return why_unfinished(planned.here, planned.config, planned.changed_keys)
        if run.stage == "then" or run.state == "finished":
            return ""
        return "" if run.code == 0 else "it has not ended well yet"


def _note_end(run: RunState, status: Status) -> None:
    assert run.handle is not None
    run.seconds += max(time.time() - (run.started or time.time()), 0.0)
    run.known[run.stage] = run.handle
    run.handle, run.started, run.code = None, None, status.code


def table_of(state: SweepState, names: Sequence[str]) -> tuple[tuple[str, ...], list[list[str]]]:
    """(columns, rows) of a table of the runs."""
    rows = []
    for name in names:
        run = state.runs[name]
        code = "" if run.code is None else str(run.code)
        rows.append(
            [name, run.state, str(run.attempts), f"{run.seconds:,.0f}", code, run.complaint]
        )
    return ("run", "state", "attempts", "seconds", "code", ""), rows


def _how(status: Status) -> str:
    how = "ended, nobody knows how" if status.code is None else f"ended with code {status.code}"
    return f"{how} ({status.words})" if status.words else how


def _say(text: str) -> None:
    print(f"[sweep] {text}", flush=True)
