"""A launch on GKE: create what the manifests say, look at it, read its logs, delete it.

A launch has an id, which is a label on all that it creates and is kept in `.vitscale/launch/gke/NAME.json`. Everything
is asked for and deleted by that label, so what somebody else made under the same name is never touched.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import secrets as random_names
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.chips import Rented
from launch.job import Job
from launch.kubectl import AlreadyThere, Kubectl, Unreachable
from launch.launch_folder import launch_folder, make_folder
from launch.locks import held
from launch.manifests import Manifest, to_yaml
from launch.pods import CONTAINER, ID_LABEL
from vitscale.errors import LaunchFailed, UserError

SAVE_SECONDS = (
    120  # for a checkpoint after SIGTERM, besides what waiting for another process can take
)
PEER_SECONDS = 100.0  # where the command has no config that says so
JOBSETS = "jobsets.jobset.x-k8s.io"
# Reasons of "Failed" where one of our rules has ended it: only exit code 2 has such a rule (`launch.manifests`). The
# first is a JobSet's, the second a Job's.
MISTAKES = ("FailJobSetFailurePolicyAction", "PodFailurePolicy")
LISTED = 10  # pods that a table names one by one


@dataclass(frozen=True)
class Record:
    """What a launch remembers on this machine."""

    name: str
    launch_id: str
    context: str
    namespace: str
    is_jobset: bool
    hosts: int  # of a slice
    command: tuple[str, ...] = ()  # words after `vitscale`; empty for one from another machine

    @property
    def selector(self) -> str:
        return f"{ID_LABEL}={self.launch_id}"

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.context, self.namespace)

    @property
    def created_kinds(self) -> str:
        """What `create` was given; the cluster makes the rest of them, and deletes it with them."""
        return JOBSETS if self.is_jobset else "jobs,services"


@dataclass(frozen=True)
class Standing:
    """What a JobSet or a Job is doing."""

    state: str
    why: str = ""
    mistake: bool = False  # it has failed for exit code 2, by the rule that makes that final

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "failed")

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


def new_launch_id(name: str) -> str:
    """A label's value that no other launch has: the name and 40 random bits."""
    return f"{name[:40].rstrip('-')}-{random_names.token_hex(5)}"


def new_record(job: Job, rented: Rented, context: str, namespace: str) -> Record:
    launch_id = new_launch_id(job.name)
    return Record(job.name, launch_id, context, namespace, rented.is_tpu, rented.hosts, job.command)


def grace_of(job: Job) -> int:
    """Seconds between SIGTERM and SIGKILL: to miss a process that is gone (`survival.peer_timeout`), and to save."""
    seconds = PEER_SECONDS
    if job.config is not None and job.command[0] == "train":
        from vitscale.config import TrainConfig
        from vitscale.config_loading import load_config

        overrides = [
            word.removeprefix("--config.")
            for word in _joined(job.command)
            if word.startswith("--config.")
        ]
        seconds = load_config(TrainConfig, job.config, overrides).survival.peer_timeout
    return math.ceil(seconds) + SAVE_SECONDS


def find_folder(start: Path) -> Path:
    """Where launches are remembered."""
    return launch_folder(start) / "gke"


def create(record: Record, documents: Sequence[Manifest], folder: Path) -> None:
    """Gives the manifests to the cluster, and remembers the launch before that.

    Raises:
        UserError: there is such a launch, or something else has the name; nothing of it is changed.
    """
    busy = f"another process on this machine launches {record.name!r} just now: wait for it, or take another --name."
    make_folder(folder)
    with held(_path(record.name, folder).with_suffix(".lock"), "the folder of launches", busy):
        old = read(_path(record.name, folder))
        if old is not None and exists(old, folder):
            raise UserError(
                f"launch {record.name!r} is still there (context {old.context}): look at it by `vitscale launch gke "
                f"status --name {record.name}`, delete it, or take another --name."
            )
        write(record, _path(record.name, folder))
        _create(record, documents, folder)


def _create(record: Record, documents: Sequence[Manifest], folder: Path) -> None:
    try:
        record.kubectl.run("create", "--filename=-", given=to_yaml(list(documents)))
    except Unreachable:
        raise  # perhaps it has done so
    except (AlreadyThere, UserError) as error:
        # Refused. What was created before the refused one has this launch's label. After any other end nobody knows
        # what is there, and the record stays.
        if len(documents) > 1:
            record.kubectl.run("delete", record.created_kinds, f"--selector={record.selector}")
        _path(record.name, folder).unlink()
        if isinstance(error, AlreadyThere):
            raise UserError(
                f"something else in namespace {record.namespace!r} has the name {record.name!r}; take another --name."
            ) from error
        raise


def find(name: str, *, launch_id: str | None, kubectl: Kubectl | None, folder: Path) -> Record:
    """The launch of that name: remembered here, or known by its id (the label) where it was launched elsewhere.

    Args:
        kubectl: where to look for `launch_id`.
    """
    if launch_id is None:
        record = remembered(name, folder)
        if record is None:
            raise UserError(
                f"no launch {name!r} in {folder}: run this where it was launched, or give its id (`kubectl get "
                f"{JOBSETS},jobs --show-labels`, label {ID_LABEL}) by --launch-id."
            )
        return record
    assert kubectl is not None
    is_jobset, hosts = False, 1
    for found in kubectl.get("jobs", f"{ID_LABEL}={launch_id}"):
        hosts = found["spec"].get("completions", 1)
        is_jobset = is_jobset or "jobset.sigs.k8s.io/jobset-name" in found["metadata"]["labels"]
    return Record(name, launch_id, kubectl.context or "", kubectl.namespace, is_jobset, hosts)


def look(record: Record) -> Standing | None:
    """None: it is not there any more."""
    tops = _tops(record)
    return _standing(tops[0]) if tops else None


def status(record: Record) -> list[str]:
    """Lines about the job and its pods.

    Raises:
        UserError: it is not there any more.
        LaunchFailed: it has failed, and why.
    """
    kubectl = record.kubectl
    tops = _tops(record)
    if not tops:
        raise UserError(
            f"launch {record.name!r} (id {record.launch_id}) is not in namespace {record.namespace!r} of context "
            f"{record.context}: it was deleted, or ended more than a week ago."
        )
    standing = _standing(tops[0])
    lines = [f"{record.name}: {standing}, launch {record.launch_id}"]
    if record.is_jobset:
        found = tops[0].get("status", {})
        counted = found.get("restartsCountTowardsMax", 0)
        lines[0] += f", {found.get('restarts', 0)} restarts of which {counted} count"
    lines += _pod_lines(kubectl.get("pods", record.selector))
    if standing.state == "failed":
        raise LaunchFailed("\n".join(lines), 1)
    return lines


def logs(record: Record, *, process: int | None, tail: int, follow: bool) -> None:
    """Prints the last lines of every process, or of one, prefixed by the pod."""
    selector = record.selector
    if process is not None:
        slice_id, host = divmod(process, record.hosts)
        selector += f",batch.kubernetes.io/job-completion-index={host}"
        if record.is_jobset:
            selector += f",jobset.sigs.k8s.io/job-index={slice_id}"
    code = record.kubectl.stream(
        "logs",
        f"--selector={selector}",
        f"--container={CONTAINER}",
        f"--tail={tail}",
        "--prefix",
        "--max-log-requests=10000",
        *(["--follow"] if follow else []),
    )
    if code:
        raise LaunchFailed(f"kubectl logs ended with code {code}.", code)


def delete(record: Record, folder: Path, *, wait: bool = False) -> list[str]:
    """Deletes what this launch created, by its label. Returns what that was.

    wait: until it is gone with all that the cluster has made of it, so that its name is free.

    Raises:
        UserError: nothing with the label is there.
    """
    kubectl = record.kubectl
    named = kubectl.run(
        "get", record.created_kinds, f"--selector={record.selector}", "--output=name"
    ).split()
    if not named:
        raise UserError(
            f"nothing in namespace {record.namespace!r} of context {record.context} has the label {record.selector}; "
            f"what is called {record.name!r} there, if anything is, was not created by this launch and is left alone."
        )
    how = ["--cascade=foreground", "--timeout=5m"] if wait else ["--wait=false"]
    kubectl.run("delete", record.created_kinds, f"--selector={record.selector}", *how)
    known = remembered(record.name, folder)
    if known is not None and known.launch_id == record.launch_id:  # not of another by the name
        _path(record.name, folder).unlink(missing_ok=True)
    return named


def exists(record: Record, folder: Path) -> bool:
    """Whether anything of the launch is left: the Service of a Job stays when that is deleted."""
    try:
        return bool(record.kubectl.get(record.created_kinds, record.selector))
    except UserError as error:
        raise UserError(
            f"there was a launch {record.name!r}, and whether it still is cannot be asked: {error} If its cluster is "
            f"gone, remove {_path(record.name, folder)}."
        ) from error


def _tops(record: Record) -> list[dict[str, Any]]:
    return record.kubectl.get(JOBSETS if record.is_jobset else "jobs", record.selector)


def _standing(top: Mapping[str, Any]) -> Standing:
    names = {
        "Completed": "finished",
        "Complete": "finished",
        "Failed": "failed",
        "FailureTarget": "failing",
        "Suspended": "waits for admission",
    }
    for condition in top.get("status", {}).get("conditions", ()):
        if condition["status"] == "True" and condition["type"] in names:
            state, why = names[condition["type"]], condition.get("message", "")
            return Standing(state, why, state == "failed" and condition.get("reason") in MISTAKES)
    return Standing("running")


def _pod_lines(pods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Pods by what they do; those that are not well one by one."""
    if not pods:
        return ["no pods"]
    counts = collections.Counter(pod["status"].get("phase", "Unknown") for pod in pods)
    lines = [", ".join(f"{count} pods {phase.lower()}" for phase, count in counts.most_common())]
    told = [(pod["metadata"]["name"], _complaint(pod)) for pod in pods]
    unwell = [f"  {name}: {words}" for name, words in sorted(told) if words]
    if len(unwell) > LISTED:
        unwell[LISTED:] = [f"  and {len(unwell) - LISTED} more"]
    return lines + unwell


def _complaint(pod: Mapping[str, Any]) -> str:
    """Why a pod does not run: no node, no image, an exit code."""
    for container in pod["status"].get("containerStatuses", ()):
        for state, found in container.get("state", {}).items():
            if state == "terminated" and found.get("exitCode"):
                return f"exit code {found['exitCode']} ({found.get('reason', 'no reason')})"
            if state == "waiting" and found.get("reason") not in (None, "ContainerCreating"):
                return f"{found['reason']}: {found.get('message', '')}".rstrip(": ")
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message', '')}".rstrip(": ")
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"stopped by the cluster: {condition.get('reason')}"
    return ""


def _joined(words: Sequence[str]) -> list[str]:
    """`--config.a=1` for `--config.a 1`."""
    joined: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--config.") and "=" not in word:
            word = f"{word}={next(rest, '')}"
        joined.append(word)
    return joined


def _path(name: str, folder: Path) -> Path:
    return folder / f"{name}.json"


def remembered(name: str, folder: Path) -> Record | None:
    """The launch of that name which was made from here last."""
    return read(_path(name, folder))


def read(path: Path) -> Record | None:
    """A record; None: there is none. Raises `UserError` for a file that is something else."""
    try:
        document = json.loads(path.read_text())
        return Record(**{**document, "command": tuple(document.get("command", ()))})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a launch's record; move it away.") from error


def write(record: Record, path: Path) -> None:
    """Whole or not at all, whenever this process dies."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1))
    os.replace(temporary, path)
