"""A launch on GKE: create what the manifests say, look at it, read its logs, delete it.

A launch has an id, which is a label on all that it creates and is kept in `.vitscale/launch/gke/NAME.json`. Everything
is asked for and deleted by that label, so what somebody else made under the same name is never touched.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets as random_names
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.chips import Rented
from launch.job import Job
from launch.kubectl import AlreadyThere, Kubectl, Unreachable
from launch.launch_folder import launch_folder, make_folder
from launch.locks import held
from launch.manifests import Manifest, to_yaml
from launch.pod_lines import pod_lines
from launch.pods import CONTAINER, ID_LABEL
from vitscale.errors import LaunchFailed, UserError

SAVE_SECONDS = (
    120  # for a checkpoint after SIGTERM, besides what waiting for another process can take
)
PEER_SECONDS = 100.0  # where the command has no config that says so
JOBSETS = "jobsets.jobset.x-k8s.io"
# How to delete, without and with waiting for the end of it. Both keep what is deleted until its pods are gone.
DELETE = (["--cascade=foreground", "--wait=false"], ["--cascade=foreground", "--timeout=5m"])
# Reasons of "Failed" where one of our rules has ended it: only exit code 2 has such a rule (`launch.manifests`). The
# first is a JobSet's, the second a Job's.
MISTAKES = ("FailJobSetFailurePolicyAction", "PodFailurePolicy")
# What conditions say, those that are the end first: a Job that has failed also keeps "FailureTarget".
STATES = {
    "Completed": "finished",
    "Complete": "finished",
    "Failed": "failed",
    "FailureTarget": "failing",
    "SuccessCriteriaMet": "finishing",
    "Suspended": "waits for admission",
}


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
    deleted: bool = False  # somebody has, and it stays until its pods have saved

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "failed")

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


def new_launch_id(name: str) -> str:
    """A label's value that no other launch has: the name and 40 random bits."""
    return f"{name[:40].rstrip('-')}-{random_names.token_hex(5)}"


def new_record(
    job: Job, rented: Rented, context: str, namespace: str, folder: Path | None = None
) -> Record:
    """folder: where launches are remembered. The same launch, made from there before, gives its id: its `kubectl
    create` may still be under way, though nobody waits for it any more."""
    old = remembered(job.name, folder) if folder is not None else None
    launch_id = old.launch_id if old is not None else new_launch_id(job.name)
    words = (context, namespace, rented.is_tpu, rented.hosts, job.command)
    record = Record(job.name, launch_id, *words)
    if old in (None, record):
        return record
    return dataclasses.replace(record, launch_id=new_launch_id(job.name))


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
    busy = f"another process on this machine launches {record.name!r} just now: wait for it."
    make_folder(folder)
    with held(_path(record.name, folder).with_suffix(".lock"), "the folder of launches", busy):
        old = read(_path(record.name, folder))
        if old is not None:
            _refuse_second(old, folder)
        write(record, _path(record.name, folder))
        _create(record, documents, folder, old)


def _refuse_second(old: Record, folder: Path) -> None:
    left = _left(old, folder)
    if any("deletionTimestamp" in each["metadata"] for each in left):
        raise UserError(
            f"launch {old.name!r} is being deleted (context {old.context}), and its pods save first: run the same "
            "command in a few minutes."
        )
    if left:
        raise UserError(
            f"launch {old.name!r} is still there (context {old.context}): look at it by `vitscale launch gke status "
            f"--name {old.name}`, delete it, or launch another --workdir under another --name."
        )


def _create(
    record: Record, documents: Sequence[Manifest], folder: Path, old: Record | None
) -> None:
    """old: what was remembered under the name before."""
    kubectl, kinds = record.kubectl, record.created_kinds
    try:
        kubectl.run("create", "--filename=-", given=to_yaml(list(documents)))
    except Unreachable:
        raise  # perhaps it has done so
    except (AlreadyThere, UserError) as error:
        there = isinstance(error, AlreadyThere)
        if there and len(kubectl.get(kinds, record.selector)) == len(documents):
            return  # by a `kubectl create` of this launch whose vitscale was killed meanwhile
        # Refused. What was created before the refused one has this launch's label. After any other end nobody knows
        # what is there, and the record stays.
        if len(documents) > 1:
            kubectl.run("delete", kinds, f"--selector={record.selector}")
        _path(record.name, folder).unlink()
        if old is not None:
            write(
                old, _path(old.name, folder)
            )  # the name may be taken by that one, which came late
        if there:
            raise UserError(
                f"something else in namespace {record.namespace!r} has the name {record.name!r}; take another --name, "
                "and another --workdir if it is a training in yours."
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
    lines += pod_lines(kubectl.get("pods", record.selector))
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

    It goes after its pods, which save first, and is remembered so long: nothing else may train in their workdir.

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
    kubectl.run("delete", record.created_kinds, f"--selector={record.selector}", *DELETE[wait])
    if wait or not kubectl.get(record.created_kinds, record.selector):
        forget(record, folder)
    return named


def forget(record: Record, folder: Path) -> None:
    """Where it is what the name is remembered for."""
    known = remembered(record.name, folder)
    if known is not None and known.launch_id == record.launch_id:
        _path(record.name, folder).unlink(missing_ok=True)


def exists(record: Record, folder: Path) -> bool:
    """Whether anything of the launch is left: the Service of a Job stays when that is deleted."""
    return bool(_left(record, folder))


def _left(record: Record, folder: Path) -> list[dict[str, Any]]:
    with remembered_wrongly(record, folder):
        return record.kubectl.get(record.created_kinds, record.selector)


@contextmanager
def remembered_wrongly(record: Record, folder: Path) -> Iterator[None]:
    """Says the way out where the cluster of a launch cannot be asked, and never will."""
    try:
        yield
    except UserError as error:
        raise type(error)(
            f"there was a launch {record.name!r}, and whether it still is cannot be asked: {error} If its cluster is "
            f"gone, remove {_path(record.name, folder)}."
        ) from error


def _tops(record: Record) -> list[dict[str, Any]]:
    return record.kubectl.get(JOBSETS if record.is_jobset else "jobs", record.selector)


def _standing(top: Mapping[str, Any]) -> Standing:
    deleted = "deletionTimestamp" in top["metadata"]
    conditions = top.get("status", {}).get("conditions", ())
    true = {each["type"]: each for each in conditions if each["status"] == "True"}
    for kind, state in STATES.items():
        if kind in true:
            mistake = state == "failed" and true[kind].get("reason") in MISTAKES
            return Standing(state, true[kind].get("message", ""), mistake, deleted)
    return Standing("running", deleted=deleted)


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
