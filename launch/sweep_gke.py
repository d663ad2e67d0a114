"""The runs of a sweep as jobs of GKE: each a JobSet or a Job of its own, on chips of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launch import gke
from launch.chips import Rented
from launch.job import Job
from launch.kubectl import Unreachable, current_context
from launch.manifests import Manifest, pod_suffix
from launch.preflight import check_plan
from launch.sweep import USER_ERROR, Later, Status
from vitscale.errors import UserError

RECORD_FILE = (
    "launch.json"  # in the folder of a run's stage: its job, and the cluster where that is
)
SILENT_SECONDS = 1800.0  # without an answer of the cluster: somebody must look


@dataclass
class GkePlace:
    """A `launch.sweep.Place`: jobs go on when the sweep's own process ends, and are found again by their names.

    render: the manifests of a job; refuses what cannot run, and asks nobody.
    records: where launches are remembered (`gke.find_folder`).
    """

    rented: Rented
    render: Callable[[Job, gke.Record], list[Manifest]]
    records: Path
    context: str | None = None  # None: the kubeconfig's, when the sweep starts
    namespace: str = "default"
    skip_plan: bool = False
    outlives: bool = True
    sees_workdirs: bool = False
    poll_seconds: float = 10.0
    log_words: str = "its log: vitscale launch gke logs --name {job}"
    _silent_since: dict[str, float] = field(default_factory=dict)  # by what is asked for

    @property
    def name_suffix(self) -> str:
        return pod_suffix(self.rented)

    def check(self, job: Job) -> None:
        self.render(job, gke.new_record(job, self.rented, "", self.namespace))
        if job.command[0] == "train":
            said = check_plan(job.command, self.rented.topology, skip=self.skip_plan)
            print(f"[sweep] {job.name}: plan: {said}", flush=True)
        self._find_context()

    def start(self, job: Job, folder: Path, known: str | None) -> str:
        try:
            record = self._take_over(job, known)
            if record is None:
                record = self._create(job)
        except Unreachable as error:
            raise self._later(f"start {job.name}", error) from error
        self._silent_since.pop(f"start {job.name}", None)
        gke.write(record, folder / RECORD_FILE)
        return record.launch_id

    def poll(self, handle: str, folder: Path) -> Status:
        record = gke.read(folder / RECORD_FILE)
        if record is None or record.launch_id != handle:
            return Status(running=False, words=f"{folder / RECORD_FILE} is not of its job")
        try:
            standing = gke.look(record)
        except Unreachable as error:
            self._later("poll", error)
            return Status(running=True)
        self._silent_since.pop("poll", None)
        if standing is None:
            return Status(running=False, words=f"job {record.name} was deleted")
        if not standing.ended:
            return Status(running=True)
        if standing.state == "finished":
            return Status(running=False, code=0)
        words = f"job {record.name}: {standing}; see vitscale launch gke logs --name {record.name}"
        return Status(running=False, code=USER_ERROR if standing.mistake else 1, words=words)

    def cancel(self, handle: str, folder: Path) -> None:
        record = gke.read(folder / RECORD_FILE)
        if record is not None and record.launch_id == handle and gke.look(record) is not None:
            gke.delete(record, self.records)

    def _find_context(self) -> str:
        self.context = self.context or current_context()  # tomorrow it may be another one
        return self.context

    def _create(self, job: Job) -> gke.Record:
        context = self._find_context()
        record = gke.new_record(job, self.rented, context, self.namespace, self.records)
        gke.create(record, self.render(job, record), self.records)
        return record

    def _take_over(self, job: Job, known: str | None) -> gke.Record | None:
        """The job of that name which is there already; one of whose end the sweep knows is deleted."""
        record = gke.remembered(job.name, self.records)
        if record is None:
            return None
        with gke.remembered_wrongly(record, self.records):
            standing = gke.look(record)
        is_known = record.launch_id == known
        if standing is None or standing.deleted or (standing.ended and is_known):
            if gke.exists(record, self.records):
                gke.delete(record, self.records, wait=True)
            elif is_known:
                gke.forget(record, self.records)  # the next one is not to be taken for it
            return None
        if record.command != job.command:
            raise UserError(
                f"launch {job.name!r} (context {record.context}) is there with another command: look at it by "
                f"`vitscale launch gke status --name {job.name}`; delete it, or give this sweep another --workdir and "
                "--name."
            )
        return record

    def _later(self, what: str, error: Unreachable) -> Later:
        """Jobs go on without us; so a network that comes back costs nothing. Raises `UserError` when it does not."""
        now = time.monotonic()
        if what not in self._silent_since:
            self._silent_since[what] = now
            print(f"[sweep] {error} Trying again; jobs go on meanwhile.", flush=True)
        elif now - self._silent_since[what] > SILENT_SECONDS:
            raise UserError(
                f"{error} So for {SILENT_SECONDS / 60:.0f} minutes: jobs go on, and the same command takes them over."
            ) from error
        return Later(str(error))
