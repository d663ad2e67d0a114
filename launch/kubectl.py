"""The one way to the cluster: `kubectl`, with its errors in words."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from launch.secrets import hide
from vitscale.errors import UserError

UNREACHABLE = (
    r"[Uu]nable to connect|connection refused|was refused|connection reset|no such host|i/o timeout"
    r"|TLS handshake"
)
# 429, 500, 503 and 504: an upgrade of the control plane, or a database that elects its leader.
BUSY = (
    r"Error from server \((InternalError|ServiceUnavailable|Timeout|ServerTimeout|TooManyRequests)\)|etcdserver:"
    r"|Error from server: .*(timed out|deadline exceeded)"
)
# What kubectl says, and what to do; the first that matches.
_WAYS_OUT: tuple[tuple[str, str], ...] = (
    (BUSY, "the cluster's API server has trouble of its own; run the same command in some minutes"),
    (
        r"no matches for kind \"JobSet\"|doesn't have a resource type \"jobsets",
        "the cluster has no JobSet controller; install JobSet 0.10 or newer: kubectl apply --server-side -f "
        "https://github.com/kubernetes-sigs/jobset/releases/download/v0.10.1/manifests.yaml",
    ),
    (
        r"current-context is not set|context \".*\" does not exist|context was not found",
        "there is no such cluster in your kubeconfig; run gcloud container clusters get-credentials CLUSTER "
        "--location=LOCATION, and choose one by --context",
    ),
    (
        r"gke-gcloud-auth-plugin|getting credentials|[Uu]nauthorized|must be logged in|token has expired",
        "the cluster does not know you; run gcloud auth login, and gcloud components install gke-gcloud-auth-plugin "
        "where that is missing",
    ),
    (
        r"[Ff]orbidden",
        "you may not do that in this namespace; ask for the role container.developer",
    ),
    (
        UNREACHABLE,
        "the cluster cannot be reached; look at `gcloud container clusters list` and at your network, or choose "
        "another by --context",
    ),
    (
        r"timed out waiting for the condition",
        "it is not gone after a while; look at it by `kubectl describe`, then run the same command",
    ),
    (r"unknown field|[Ii]nvalid", "the cluster does not take the manifest; --dry-run prints it"),
)


class AlreadyThere(Exception):
    """An object of that name exists."""


class Unreachable(UserError):
    """The cluster did not answer; it may have done what it was asked for, and may answer later."""


@dataclass(frozen=True)
class Kubectl:
    """A namespace of a cluster."""

    context: str | None  # of the kubeconfig; None: its current one
    namespace: str

    def command(self, *words: str) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return ["kubectl", *context, f"--namespace={self.namespace}", *words]

    def run(self, *words: str, given: str | None = None) -> str:
        """What `kubectl WORDS` prints.

        Raises:
            UserError: no kubectl, no cluster, no permission, a manifest that the cluster refuses.
            AlreadyThere: `create` of what exists.
        """
        try:
            done = subprocess.run(self.command(*words), input=given, text=True, capture_output=True)
        except FileNotFoundError as error:
            raise _not_installed() from error
        if done.returncode == 0:
            return done.stdout
        raise _translate(done.stderr, words[0])

    def get(self, kinds: str, selector: str) -> list[dict[str, Any]]:
        """The objects of these kinds with these labels."""
        return json.loads(self.run("get", kinds, f"--selector={selector}", "--output=json"))[
            "items"
        ]

    def stream(self, *words: str) -> int:
        """Runs it with this process's terminal. Returns its exit code."""
        try:
            return subprocess.run(self.command(*words)).returncode
        except FileNotFoundError as error:
            raise _not_installed() from error


def current_context() -> str:
    """The kubeconfig's current context, by name: it may be another one tomorrow."""
    return Kubectl(None, "default").run("config", "current-context").strip()


def _not_installed() -> UserError:
    return UserError(
        "kubectl is not installed: gcloud components install kubectl, or see kubernetes.io/docs/tasks/tools; --dry-run "
        "prints the manifest without it."
    )


def _translate(stderr: str, verb: str) -> Exception:
    text = hide(stderr).strip()
    if "AlreadyExists" in text or "already exists" in text:
        return AlreadyThere(text)
    # The last line is the answer; before it are attempts.
    said = (text.splitlines() or ["no words"])[-1].removeprefix("error: ")
    for pattern, way_out in _WAYS_OUT:
        if re.search(pattern, text):
            kind = Unreachable if pattern in (UNREACHABLE, BUSY) else UserError
            return kind(f"kubectl {verb}: {way_out} (it says: {said}).")
    return RuntimeError(f"kubectl {verb} failed: {text}")
