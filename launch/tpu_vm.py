"""A run on Cloud TPU VMs, from asking for chips to deleting them, through preemptions in between.

Every step can be called again: what is there already is found and taken. So a launch whose terminal was closed, or
whose laptop slept, goes on by the same command; the run itself is detached on the workers and never noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.chips import rent
from launch.code_bundle import Bundle, bundle_path, make_bundle_in, remove_others
from launch.environment import environment_of
from launch.gcloud import Gcloud, GcloudFailed
from launch.queued_resource import CapacityLost, QueuedResource
from launch.secrets import hide
from launch.tpu_launches import Launch, Launches
from launch.tpu_workers import Outcome, Status, Workers, outcome_of, render_run, script_name
from vitscale.errors import EXIT_PREEMPTED, LaunchFailed, Preempted, UserError

# For the other workers to end by themselves after one has; peers notice within 100 s.
MIXED_SECONDS = 300.0
# Without an answer of workers that the cloud says are there: somebody must look.
SILENT_SECONDS = 1800.0
NOTICE_SECONDS = 300.0  # between a run that saved and stopped by itself and its chips being taken
# Before chips are asked for again; doubled while there are none.
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 1800.0
LAST_LINES = 20


@dataclass(frozen=True)
class Limits:
    """How often a run may go on by itself."""

    recreate: int = 10  # asking for chips again: preempted, or none to be had
    restart: int = 0  # after a failure of the run itself


@dataclass
class TpuVm:
    """One launch, and the means to act on it."""

    name: str
    launch: Launch
    launches: Launches
    repository: Path
    gcloud: Gcloud
    limits: Limits = field(default_factory=Limits)
    with_uncommitted: bool = False
    poll_seconds: float = 30.0
    remember: bool = True  # False: another process works on the launch, and this one only looks
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        rented = rent(self.launch.capacity.topology)
        self._chip, self._hosts, self._slices = rented.chip, rented.processes, rented.slices
        self.resource = QueuedResource(
            self.gcloud,
            self.name,
            self.launch.launch_id,
            poll_seconds=self.poll_seconds,
            clock=self.clock,
        )
        self.workers = Workers(
            self.gcloud, self.name, self.launch.workers or self._hosts, self.launch.script
        )

    def up(self) -> None:
        """Until the chips are there. Raises `LaunchFailed` when they cannot be had."""
        attempt = 0
        while True:
            self._save()  # before anything is asked for: whoever dies here still knows the label
            try:
                if self.resource.bring_up(self.launch.capacity):
                    self.launch.offset = 0  # the log is another one on other machines
                return
            except CapacityLost as lost:
                attempt += 1
                self._give_up_or_delete(lost)
                if not self.gcloud.dry_run:
                    pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                    self.gcloud.say(
                        f"{lost}; asking again ({self.launch.recreated} of {self.limits.recreate}) in {pause:.0f} s"
                    )
                    self.gcloud.pause(pause)

    def start(self, *, new_code: bool = False) -> None:
        """Starts the launch's run on all workers, unless it is running there. Chips must be ACTIVE.

        new_code: bundles the repository as it is now; else what the launch began with.
        """
        bundle = self._bundle(new_code)
        if self.launch.run == 0:
            self.launch.run = 1
        # All must answer later: their number is the cloud's to say, and the table's where it does not.
        self.launch.workers = self.workers.count = self.resource.worker_count() or self._hosts
        self.launch.script = self.workers.script = script_name()
        self._save()
        own = self.launch.environment
        script = render_run(
            self.launch.command,
            self.workers.folder,
            {**own, **environment_of(self._chip, self._hosts, own)},
            self.launch.secrets,
            self.launch.env_file,
        )
        if self.gcloud.dry_run:
            for line in (f"run-{self.launch.run}.sh, on every worker:", *script.splitlines()):
                self.gcloud.say(hide(f"# {line}"))
        self.workers.copy(self._folder / "stage", bundle, self.launch.run, script)
        self.workers.set_up(bundle.commit, self.launch.bucket)
        self.workers.start(self.launch.run)

    def start_anew(self) -> None:
        """Starts a run with the code as it is now. Raises `UserError` while one is running."""
        if self.launch.run:
            if any(status.state == "running" for status in self._known_statuses()):
                raise UserError(
                    f"{self.name} is running; `vitscale launch tpu-vm stop --name {self.name}` lets it save and end."
                )
            self._next()
        self.start(new_code=True)

    def run(self, *, keep: bool = False) -> None:
        """All of it: chips, code, the run to its end through preemptions, and the chips given back.

        Raises:
            LaunchFailed: the run failed and no restart is left; chips are given back unless `keep`.
            Preempted: somebody asked it to stop (`stop`), or the launch to end (`EndAsked`); chips stay.
            UserError: what the user must mend first; chips and run stay as they are, as after any other error.
        """
        try:
            try:
                self._run_to_the_end()
            except LaunchFailed:
                if keep:
                    self._next()  # what the same command starts then
                self._close(keep)
                raise
            self._close(keep)
        except (LaunchFailed, Preempted):
            raise
        except BaseException:  # whatever it is, somebody pays for chips that nobody looks after
            self.say_what_stays()
            raise

    def follow(self) -> Outcome:
        """Prints the log of the first worker until the run has ended everywhere.

        Raises:
            CapacityLost: the chips were taken.
        """
        mixed_since: float | None = None
        heard = self.clock()
        while True:
            try:
                self._print_log()
                statuses = self.workers.statuses(self.launch.run)
                heard = self.clock()
            except GcloudFailed as failed:
                self._check_capacity(failed, self.clock() - heard)
            else:
                outcome = outcome_of(statuses)
                if outcome.state in ("ended", "stopped"):
                    self._print_log()  # what came between the log and the end
                    return outcome
                if outcome.state == "mixed":
                    mixed_since = mixed_since or self.clock()
                    if self.clock() - mixed_since > MIXED_SECONDS:
                        stopped = any(status.state == "stopped" for status in statuses)
                        return replace(outcome, state="stopped" if stopped else "ended")
                if self.remember and any(status.state == "absent" for status in statuses):
                    self.gcloud.say("a worker knows nothing of the run: it is started there again")
                    self.start()
            self.gcloud.pause(self.poll_seconds)

    def status(self) -> list[tuple[str, str]]:
        """Of the queued resource and of every worker."""
        look = self.resource.look()
        if look is None:
            return [(self.name, "not there")]
        rows = [(self.name, str(look) if self.resource.is_ours(look) else "somebody else's")]
        if look.state == "ACTIVE" and self.resource.is_ours(look) and self.launch.run:
            rows += [(s.worker, str(s)) for s in self._known_statuses()]
        return rows

    def logs(self, lines: int) -> str:
        """The last lines of every worker."""
        return hide(self.workers.tail(self.launch.run, lines))

    def stop(self) -> Outcome:
        """Asks the run to save and end, and waits for it. Chips stay."""
        known = outcome_of(self._known_statuses())
        return known if known.state == "absent" else outcome_of(self.workers.stop(self.launch.run))

    def down(self) -> bool:
        """Deletes the queued resource with its nodes, if this launch created it. Whether there was one."""
        found = self.resource.delete()
        if not self.gcloud.dry_run:
            self.launches.forget(self.name)
        return found

    @property
    def _folder(self) -> Path:
        return self.launches.folder / self.name

    def _save(self) -> None:
        if self.remember and not self.gcloud.dry_run:
            self.launches.write(self.name, self.launch)

    def _run_to_the_end(self) -> None:
        stopped = self.launch.run > 0  # perhaps, since the last call
        while True:
            self.up()
            try:
                if stopped and outcome_of(self._known_statuses()).state == "stopped":
                    self._next()
                stopped = False
                self.start()
                outcome = self.follow()
                if outcome.state == "stopped":
                    raise Preempted(
                        f"{self.name} was stopped; its chips stay and cost until `down`"
                    )
                if outcome.code == 0:
                    return
                if outcome.code == EXIT_PREEMPTED:
                    self._await_preemption()
                    self._go_on_where_it_is()
                else:
                    self._next_run(outcome)
            except CapacityLost as lost:
                self.gcloud.say(f"{lost}: going on from the last checkpoint on other chips")
                self._give_up_or_delete(lost)
                self._next()
            except GcloudFailed as failed:
                self._check_capacity_or_fail(failed)

    def _known_statuses(self) -> list[Status]:
        """Of a run that an earlier call started; none where the workers are new and know nothing."""
        try:
            return self.workers.statuses(self.launch.run)
        except GcloudFailed as failed:
            if failed.kind != "other":
                raise
            return []

    def _next(self) -> None:
        self.launch.run += 1
        self.launch.offset = 0
        self._save()

    def _next_run(self, outcome: Outcome) -> None:
        """After a run that ended with an error: counts it, or raises `LaunchFailed`."""
        how = f"{outcome.worker} ended with code {outcome.code}"
        if outcome.code == 2 or self.launch.restarted >= self.limits.restart:
            story = self.logs(LAST_LINES)
            raise LaunchFailed(
                f"{self.name}: {how}; its last lines:\n{story}".rstrip(), outcome.code
            )
        self.launch.restarted += 1
        self._next()
        self.gcloud.say(f"{how}: restart {self.launch.restarted} of {self.limits.restart}")

    def _await_preemption(self) -> None:
        """A run that saved and ended by itself had a notice: its chips are about to be taken."""
        self.gcloud.say("the run has saved and stopped; waiting for its chips to be taken")
        until = self.clock() + NOTICE_SECONDS
        while self.clock() < until:
            self._check_chips()
            self.gcloud.pause(self.poll_seconds)

    def _go_on_where_it_is(self) -> None:
        """After a notice that came to nothing: not a failure of the run, but it has an end as preemptions have."""
        self.launch.recreated += 1
        if self.launch.recreated > self.limits.recreate:
            raise LaunchFailed(
                f"{self.name} has saved and stopped by itself again (75), and had gone on {self.limits.recreate} times "
                "(--recreate): the same command goes on from the last checkpoint",
                EXIT_PREEMPTED,
            )
        self._next()
        self.gcloud.say("its chips are still there: going on from the last checkpoint")

    def _check_chips(self) -> None:
        """Raises `CapacityLost` where the cloud says that they are not ours any more."""
        look = self.resource.look()
        if look is None or look.state != "ACTIVE":
            raise CapacityLost(f"the queued resource {self.name} is {look or 'not there any more'}")
        self.resource.check_ours(look)
        if lost := self.resource.lost_nodes(self._slices):
            raise CapacityLost(f"preempted or deleted ({', '.join(lost)})")

    def _check_capacity(self, failed: GcloudFailed, silent: float) -> None:
        """After a call to the workers failed: are they gone, or is it the line to them?"""
        if failed.kind == "gone":
            raise CapacityLost(str(failed)) from failed
        if failed.kind not in ("ssh", "passing", "not found", "other"):
            raise failed
        try:
            self._check_chips()
            ill = self.resource.unhealthy_nodes() if silent > SILENT_SECONDS else []
        except GcloudFailed as offline:
            if offline.kind not in ("ssh", "passing"):
                raise
            self.gcloud.say(f"{offline}; the run goes on meanwhile")
            return
        if silent > SILENT_SECONDS:
            said = f"{failed}, for {silent / 60:.0f} minutes"
            if ill:
                raise CapacityLost(f"{said}, and the cloud says {', '.join(ill)}") from failed
            # The run may well go on: it is this machine, its network or one worker's ssh that does not.
            raise UserError(
                f"{said}, though the cloud says that all machines are there and well: nothing was deleted; mend the "
                "connection (port 22, VPN, ssh key), then run the same command."
            ) from failed
        self.gcloud.say(f"{failed}; the chips are there, trying again")

    def _check_capacity_or_fail(self, failed: GcloudFailed) -> None:
        """After copying, installing or starting failed for good."""
        try:
            self._check_capacity(failed, 0.0)
        except CapacityLost as lost:
            self.gcloud.say(f"{lost}: asking for other chips")
            return self._give_up_or_delete(lost)
        if failed.kind in ("ssh", "passing"):
            raise UserError(
                f"{failed}, again and again: mend the connection, then run the same command"
            ) from failed
        # Of an earlier call: what failed now must not cost the chips that it trains on.
        if any(status.state == "running" for status in self._known_statuses()):
            raise UserError(
                f"{failed}; the run that is going goes on, nothing was deleted"
            ) from failed
        raise LaunchFailed(f"{self.name}: {failed}", 1) from failed

    def _give_up_or_delete(self, lost: CapacityLost) -> None:
        """Deletes what is left of the chips; raises `LaunchFailed` when they were asked for often enough."""
        self.launch.recreated += 1
        self._save()
        if self.launch.recreated > self.limits.recreate:
            raise LaunchFailed(
                f"{lost}; asked for again {self.limits.recreate} times (--recreate): the same command goes on from the "
                "last checkpoint",
                EXIT_PREEMPTED,
            ) from lost
        self.resource.delete()

    def _bundle(self, new_code: bool) -> Bundle:
        known = bundle_path(self._folder, self.launch.commit)
        if self.launch.commit and known.is_file() and not new_code:
            return Bundle(known, self.launch.commit, self.launch.base, ())
        if self.gcloud.dry_run:
            path = bundle_path(self._folder, "HEAD")
            self.gcloud.say(f"git bundle create {path} HEAD")
            return Bundle(path, "HEAD", "HEAD", ())
        bundle = make_bundle_in(
            self._folder, self.repository, with_uncommitted=self.with_uncommitted
        )
        self.launch.commit, self.launch.base = bundle.commit, bundle.base
        self._save()
        remove_others(bundle)
        changed = (
            f" and {len(bundle.changed)} files that are not committed" if bundle.changed else ""
        )
        self.gcloud.say(
            f"code: {bundle.base[:12]}{changed}, {bundle.path.stat().st_size / 2**20:.1f} MiB"
        )
        return bundle

    def _print_log(self) -> None:
        while True:
            text, offset = self.workers.log(self.launch.run, self.launch.offset)
            for line in hide(text).splitlines():
                print(f"[0] {line}", flush=True)
            if offset == self.launch.offset:
                return
            self.launch.offset = offset
            self._save()

    def _close(self, keep: bool) -> None:
        if self.gcloud.dry_run:
            self.resource.delete()
        elif keep:
            self.gcloud.say(
                f"the queued resource {self.name} stays and costs until `vitscale launch tpu-vm down`"
            )
            self._save()
        else:
            self.down()
            self.gcloud.say(f"the queued resource {self.name} is deleted")

    def say_what_stays(self) -> None:
        self.gcloud.say(
            f"the launch {self.name} stays as it is, and its chips cost: the same command goes on with it, "
            f"`vitscale launch tpu-vm down --name {self.name}` deletes them"
        )
