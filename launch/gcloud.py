"""The one way to `gcloud`: what it is asked, what its errors mean, and what is worth another try.

Wordings of errors are those of Google Cloud SDK 528 (googlecloudsdk.core.credentials.exceptions,
command_lib.compute.tpus) and of the TPU API as users report them (google/jax, skypilot-org/skypilot #1468,
marin-community/marin #87).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from launch.secrets import hide
from vitscale.errors import Preempted, UserError

Kind = Literal[
    "auth", "agent", "permission", "quota", "stockout", "not found", "exists", "gone", "busy", "ssh", "passing",
    "other",
]  # fmt: skip
# The first that matches is taken: a quota error is also a RESOURCE_EXHAUSTED, as a stockout is.
_MEANINGS: tuple[tuple[Kind, str], ...] = (
    (
        "auth",
        r"refreshing (your current )?auth tokens|[Rr]eauthenticat|do not currently have an active account|invalid_grant"
        r"|UNAUTHENTICATED|Request had invalid authentication credentials",
    ),
    ("agent", r"SSH Key is not present in the SSH agent"),
    (
        "permission",
        r"PERMISSION_DENIED|SERVICE_DISABLED|does not have permission|has not been used in project",
    ),
    ("quota", r"[Qq]uota limit|Quota '|quota metric|exceed quota|QUOTA_EXCEEDED"),
    (
        "stockout",
        r"no more capacity in the zone|[Ii]nsufficient (reserved )?capacity|ZONE_RESOURCE_POOL_EXHAUSTED|stockout",
    ),
    ("gone", r"has terminal state|has state \"?[A-Z]+\"?, so it cannot be"),
    ("busy", r"is not supported (when|while) (in )?state"),
    ("not found", r"NOT_FOUND|was not found"),
    ("exists", r"ALREADY_EXISTS|already exists"),
    (
        "ssh",
        r"Connection (timed out|refused|closed|reset)|port 22|exited with return code \[255\]|Broken pipe"
        r"|kex_exchange_identification|Could not prepare all",
    ),
    (
        "passing",
        r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|HTTPError 5\d\d|\b50[0234]\b|RATE_LIMIT|rateLimitExceeded"
        r"|Could not reach|Name or service not known|Temporary failure in name resolution|network is unreachable"
        r"|Max retries exceeded|SSLError|timed out",
    ),
)
_ADVICE: dict[Kind, str] = {
    "auth": "sign in again with `gcloud auth login`, then run the same command: it goes on from here.",
    "agent": 'run `eval "$(ssh-agent)"` and `ssh-add ~/.ssh/google_compute_engine`, then the same command: several '
    "workers are reached at once by a key that the agent holds.",
    "permission": "your account needs the roles TPU Admin and Service Account User in the project, and the project the "
    "TPU API (`gcloud services enable tpu.googleapis.com`).",
    "quota": "ask for more at console.cloud.google.com/iam-admin/quotas (spot and on-demand TPUs have quotas of their "
    "own, in every zone), delete queued resources that you no longer need, or name another --zone or fewer chips.",
}
RETRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0  # seconds between tries; doubled each time


class EndAsked(Preempted):
    """Somebody asks the launch to end, while nothing is under way that must not be cut off."""


class GcloudFailed(Exception):
    """A call of gcloud ended with an error that another try did not cure."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def meaning(text: str) -> Kind:
    """What kind of error gcloud's or the API's words are."""
    return next((kind for kind, pattern in _MEANINGS if re.search(pattern, text)), "other")


@dataclass
class Gcloud:
    """gcloud with a project and a zone.

    Nothing that changes the cloud goes another way, and every call is printed with `dry_run` and then not made.
    """

    zone: str
    project: str | None = None  # None: gcloud's own configuration
    dry_run: bool = False
    say: Callable[[str], None] = print
    sleep: Callable[[float], None] = time.sleep
    program: str = field(default="gcloud")
    end_asked: threading.Event | None = None

    def pause(self, seconds: float) -> None:
        """Sleeps between looks. Raises `EndAsked` as soon as `end_asked` is set."""
        if self.end_asked is None:
            self.sleep(seconds)
        elif self.end_asked.wait(seconds):
            raise EndAsked("asked to end")

    def command(self, *words: str) -> list[str]:
        """The words of a call, as it is made and printed."""
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return [self.program, "compute", "tpus", *words, *where, "--quiet"]

    def call(
        self, *words: str, retry: Sequence[Kind] = ("passing",), timeout: float = 600.0
    ) -> str:
        """Standard output of `gcloud compute tpus WORDS --zone … --quiet`; "" with `dry_run`, which prints the words.

        Args:
            retry: kinds of errors that are worth another try; others are raised at once.
            timeout: seconds for one try.

        Raises:
            UserError: what only the user can mend: sign in, ask for quota.
            GcloudFailed: everything else, when the last try has failed.
        """
        command = self.command(*words)
        if self.dry_run:
            self.say(hide(shlex.join(command)))
            return ""
        if shutil.which(self.program) is None:
            raise UserError(
                "gcloud is not on the PATH: install the Google Cloud CLI (cloud.google.com/sdk/docs/install) and run "
                "`gcloud auth login`."
            )
        for attempt in range(1, RETRIES + 2):
            try:
                return self._once(command, timeout)
            except GcloudFailed as failed:
                if failed.kind in _ADVICE:
                    raise UserError(f"{failed}: {_ADVICE[failed.kind]}") from failed
                if failed.kind not in retry or attempt > RETRIES:
                    raise
                pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                self.say(f"{failed}; try {attempt + 1} of {RETRIES + 1} in {pause:.0f} s")
                self.sleep(pause)
        raise AssertionError("unreachable")

    def ask(self, *words: str) -> Any:
        """The JSON that a call answers; None with `dry_run`."""
        said = self.call(*words, "--format=json")
        try:
            return None if self.dry_run else json.loads(said)
        except ValueError as error:
            what = " ".join(words[:2])
            raise GcloudFailed(
                "passing", f"gcloud {what} did not answer in JSON: {said[:80]!r}"
            ) from error

    def _once(self, command: Sequence[str], timeout: float) -> str:
        what = " ".join(word for word in command[3:6] if not word.startswith("-"))
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,  # a question would wait for ever
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise GcloudFailed(
                "passing", f"gcloud {what} said nothing for {timeout:.0f} s"
            ) from error
        if done.returncode == 0:
            return done.stdout
        raise GcloudFailed(
            meaning(done.stderr), f"gcloud {what}: {_sentence(done.stderr, done.returncode)}"
        )


def _sentence(stderr: str, code: int) -> str:
    """The one line of gcloud's error that says what it is."""
    lines = [line.strip() for line in hide(stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    line = errors[-1] if errors else (lines[-1] if lines else f"ended with code {code}")
    if line.endswith("{"):  # an operation's error is JSON over several lines
        line += " ".join(lines[lines.index(line) + 1 :]) if line in lines else ""
    return re.sub(r"^ERROR: (\(gcloud[^)]*\) )?", "", line).rstrip(".")
