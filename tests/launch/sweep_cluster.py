"""Sweeps on a stand-in for a GKE cluster, whose jobs end as told."""

import json
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from kubernetes_server import cluster

from vitscale.cli import main

SWEEP = "def get_sweep():\n    return [('a', {'seed': %s}), ('b.X', {'seed': 2})]\n"
# Conditions of a JobSet, and of a Job as job_controller.go adds them: what ends it first, and that stays.
MISTAKE = {"reason": "FailJobSetFailurePolicyAction", "message": "rule mistake"}
RULE = {"reason": "PodFailurePolicy", "message": "rule mistake"}
OFTEN = {"reason": "ReachedMaxRestarts", "message": "too often"}
LIMIT = {"reason": "FailedIndexes", "message": "too often"}
ENDS = {
    "jobsets": {
        "done": [{"type": "Completed"}],
        "crash": [{"type": "Failed", **OFTEN}],
        "mistake": [{"type": "Failed", **MISTAKE}],
    },
    "jobs": {
        "done": [{"type": "SuccessCriteriaMet"}, {"type": "Complete"}],
        "ending": [{"type": "FailureTarget", **LIMIT}],
        "crash": [{"type": "FailureTarget", **LIMIT}, {"type": "Failed", **LIMIT}],
        "mistake": [{"type": "FailureTarget", **RULE}, {"type": "Failed", **RULE}],
    },
}
STATE = Path(".vitscale/launch/gke-sweeps/lr")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")


class Killed(BaseException):
    """kill -9: nothing is written after it."""


class Controller:
    """Is waited for between the sweep's looks; meanwhile every job ends with the next of its ends, "done" if none."""

    def __init__(self, api) -> None:
        self.api, self.ends, self.most, self.kill = api, {}, 0, False

    def jobs(self) -> dict[str, dict]:
        found = self.api.objects.items()
        return {name: thing for (kinds, name), thing in found if kinds in ("jobs", "jobsets")}

    def wait(self, seconds: float) -> bool:
        if self.kill:
            self.kill = False
            raise Killed
        self.most = max(self.most, sum("status" not in job for job in self.jobs().values()))
        for name in self.jobs():
            self.end(name)
        return False

    def end(self, name: str) -> None:
        """A job that is running."""
        left = self.ends.get(name, [])
        what = left.pop(0) if left else "done"
        job = self.jobs()[name]
        kinds = next(kinds for kinds, each in self.api.objects if each == name and kinds in ENDS)
        if "status" not in job and what != "wait":
            job["status"] = {
                "conditions": [{"status": "True", **each} for each in ENDS[kinds][what]]
            }

    def is_set(self) -> bool:
        return False

    def asked(self, method: str) -> list[str]:
        """What was created, or deleted."""
        kinds = ("/jobsets", "/jobs")
        urls = [url.partition("?")[0] for each, url in self.api.requests if each == method]
        if method == "POST":
            return [url for url in urls if url.endswith(kinds)]
        return [url.rpartition("/")[2] for url in urls if url.rpartition("/")[0].endswith(kinds)]


@contextmanager
def controlled(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(Path("configs").absolute())
    (tmp_path / "sweep.py").write_text(SWEEP % 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl caches what it discovers
    monkeypatch.setattr("launch.sweep.BACK_OFF", 0.0)
    with cluster() as api:
        (tmp_path / "kubeconfig").write_text(api.kubeconfig())
        found = Controller(api)
        # Each look takes as long as kubectl does.
        monkeypatch.setattr("launch.sweep.on_termination", lambda: nullcontext(found))
        yield found


def sweep(*options, topology="v5e:4x4", workdir="/mnt/bucket/runs/lr") -> int:
    return main(
        [
            *("launch", "gke", "--image", "registry/vitscale:1", "--bucket", "my-bucket"),
            *("--topology", topology, "--skip-plan", "--sweep", "sweep.py", *options, "--"),
            *("train", "--config", "configs/small/multitask.py", "--workdir", workdir),
        ]
    )


def states() -> dict[str, tuple[str, int | None]]:
    runs = json.loads((STATE / "sweep.json").read_text())["runs"]
    return {name: (run["state"], run["code"]) for name, run in runs.items()}


def words_of(controller, name: str) -> list[str]:
    job = controller.jobs()[name]["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]["containers"][0]["args"]
