"""A stand-in for `gcloud` on the PATH: records calls, keeps a small cloud in a folder, fails as the real one does.

Wordings of errors and shapes of answers are those of Google Cloud SDK 528 and of the TPU API. Commands over ssh really
run: every worker is a folder that is its HOME.

The folder holds `calls.jsonl`, `plan.json` (what happens, by the test), `resources.json`, `workers/NODE-W/`.
A plan is a list of rules: {"on": "create|describe|delete|scp|ssh|list", "nth": 2, "times": 1, "fail": TEXT, "code": 1,
"set": {"state": …}, "do": "preempt|drop-worker"}; a rule is used `times` times, from the `nth` call of its kind on.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ERRORS = {
    "quota": "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 8 in zone us-west4-a.",
    "stockout": 'ERROR: (gcloud.compute.tpus.queued-resources.create) {\n  "code": 8,\n  "message": "There is no more '
    'capacity in the zone \\"us-west4-a\\"; you can try in another zone where Cloud TPU Nodes are offered (see '
    'https://cloud.google.com/tpu/docs/regions) [EID: 0x191e4b746b2c69a9]"\n}',
    "auth": "ERROR: (gcloud.compute.tpus.queued-resources.describe) There was a problem refreshing your current auth "
    "tokens: Reauthentication failed. cannot prompt during non-interactive execution.\nPlease run:\n\n  $ gcloud auth "
    "login\n\nto obtain new credentials.",
    "agent": "ERROR: (gcloud.compute.tpus.queued-resources.ssh) SSH Key is not present in the SSH agent. Please run "
    '"ssh-add /root/.ssh/google_compute_engine" to add it, and try again.',
    "permission": "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Cloud TPU API has not been "
    "used in project 12345 before or it is disabled.",
    "ssh": "ssh: connect to host 34.1.2.3 port 22: Connection timed out\nERROR: "
    "(gcloud.compute.tpus.queued-resources.ssh) [/usr/bin/ssh] exited with return code [255].",
    "gone": "ERROR: (gcloud.compute.tpus.queued-resources.ssh) This TPU has terminal state \"PREEMPTED\", so it cannot "
    "be used anymore.",
    "unavailable": "ERROR: (gcloud.compute.tpus.queued-resources.describe) UNAVAILABLE: The service is currently "
    "unavailable.",
    "busy": "ERROR: (gcloud.compute.tpus.queued-resources.delete) FAILED_PRECONDITION: DeleteQueuedResource is not "
    "supported when state is SUSPENDING (must be one of [ACCEPTED WAITING_FOR_RESOURCES SUSPENDED FAILED])",
}  # fmt: skip
PROJECT = "projects/p/locations"


class Cloud:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "resources.json"
        self.resources = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def save(self) -> None:
        self.file.write_text(json.dumps(self.resources))

    def homes(self, name: str) -> list[Path]:
        resource = self.resources[name]
        return [
            self.folder / "workers" / f"{node}-{worker}"
            for node in resource["nodes"]
            for worker in range(resource["hosts"])
        ]

    def preempt(self, name: str, state: str = "SUSPENDED") -> None:
        """The machines go, with their processes and disks."""
        for home in self.homes(name):
            for pid in home.glob("*/runs/*/pid"):
                subprocess.run(
                    ["kill", "-KILL", "--", f"-{pid.read_text().split()[0]}"], check=False
                )
            shutil.rmtree(home, ignore_errors=True)
        self.resources[name]["state"] = state
        self.save()


def main() -> int:
    folder = Path(os.environ["FAKE_GCLOUD"])
    words = sys.argv[1:]
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    assert words[:2] == ["compute", "tpus"], words
    kind = words[3]
    # Several launches may ask at once; what runs on workers takes long, and changes nothing here.
    lock = (folder / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    cloud = Cloud(folder)
    rule = take_rule(folder, kind)
    for name in list(cloud.resources) if rule else []:
        if rule.get("do") == "preempt":
            cloud.preempt(name)
        cloud.resources[name] |= rule.get("set", {})
    cloud.save()
    if rule and "fail" in rule:
        print(ERRORS.get(rule["fail"], rule["fail"]), file=sys.stderr)
        return rule.get("code", 1)
    if kind in ("ssh", "scp"):
        lock.close()
    return globals()[f"do_{kind}"](cloud, parse(words[2:]))


def take_rule(folder: Path, kind: str) -> dict | None:
    plan = folder / "plan.json"
    rules = json.loads(plan.read_text()) if plan.is_file() else []
    for rule in rules:
        if rule["on"] != kind or rule.get("times", 1) == 0:
            continue
        rule["nth"] = rule.get("nth", 1) - 1
        if rule["nth"] <= 0:
            rule["times"] = rule.get("times", 1) - 1
            plan.write_text(json.dumps(rules))
            return rule
        plan.write_text(json.dumps(rules))
        return None
    return None


def parse(words: list[str]) -> argparse.Namespace:
    """Only what the real command takes (SDK 528, GA): anything else is an error there as well."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("group", choices=["queued-resources", "tpu-vm"])
    parser.add_argument("kind")
    parser.add_argument("rest", nargs="*")
    for flag in (
        "zone",
        "project",
        "format",
        "filter",
        "node-id",
        "node-prefix",
        "accelerator-type",
        "type",
        "topology",
    ):
        parser.add_argument(f"--{flag}")
    for flag in (
        "runtime-version",
        "valid-until-duration",
        "network",
        "subnetwork",
        "service-account",
        "labels",
    ):
        parser.add_argument(f"--{flag}")
    for flag in ("node", "worker", "command"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--node-count", type=int)
    for flag in ("quiet", "spot", "reserved", "internal-ips", "async", "force", "recurse"):
        parser.add_argument(f"--{flag}", action="store_true")
    found = parser.parse_intermixed_args(words)
    assert found.zone
    assert found.quiet
    return found


def missing(what: argparse.Namespace, name: str) -> int:
    print(
        f"ERROR: (gcloud.compute.tpus.{what.group}.{what.kind}) NOT_FOUND: Resource "
        f"'{PROJECT}/{what.zone}/queuedResources/{name}' was not found",
        file=sys.stderr,
    )
    return 1


def do_create(cloud: Cloud, what: argparse.Namespace) -> int:
    (name,) = what.rest
    assert what.runtime_version
    assert what.accelerator_type or what.topology
    assert what.labels
    if name in cloud.resources:
        print(
            f"ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource '{name}' already exists",
            file=sys.stderr,
        )
        return 1
    chips = int((what.accelerator_type or "x-4").rpartition("-")[2])
    count = what.node_count or 1
    assert count > 1 or what.node_id
    prefix = what.node_prefix or name
    cloud.resources[name] = {
        "state": "WAITING_FOR_RESOURCES",
        "left": ["PROVISIONING", "ACTIVE"],
        "labels": dict(pair.split("=") for pair in what.labels.split(",")),
        "nodes": [what.node_id] if what.node_id else [f"{prefix}-{i}" for i in range(count)],
        "hosts": max(1, chips // 4),
        "accelerator": what.accelerator_type,
    }
    cloud.save()
    print(f"Create request issued for: [{name}]", file=sys.stderr)
    return 0


def do_describe(cloud: Cloud, what: argparse.Namespace) -> int:
    (name,) = what.rest
    assert what.format == "json"
    if name not in cloud.resources:
        return missing(what, name)
    resource = cloud.resources[name]
    if resource["state"] == "DELETING":
        del cloud.resources[name]
        cloud.save()
        return missing(what, name)
    state = {"state": resource["state"], "stateInitiator": "SERVICE"}
    if resource["state"] == "FAILED":
        state["failedData"] = {"error": {"code": 8, "message": resource.get("error", "")}}
    print(
        json.dumps(
            {
                "name": f"{PROJECT}/{what.zone}/queuedResources/{name}",
                "state": state,
                "tpu": {
                    "nodeSpec": [
                        {
                            "nodeId": n,
                            "node": {
                                "acceleratorType": resource["accelerator"],
                                "labels": resource["labels"],
                            },
                        }
                        for n in resource["nodes"]
                    ]
                },
            }
        )
    )
    if resource.get("left") and resource["state"] in ("WAITING_FOR_RESOURCES", "PROVISIONING"):
        resource["state"] = resource["left"].pop(0)
        if resource["state"] == "ACTIVE":
            for home in cloud.homes(name):
                home.mkdir(parents=True, exist_ok=True)
    cloud.save()
    return 0


def do_delete(cloud: Cloud, what: argparse.Namespace) -> int:
    (name,) = what.rest
    if name not in cloud.resources:
        return missing(what, name)
    assert what.force, "an ACTIVE queued resource has nodes"
    cloud.preempt(name, "DELETING")
    return 0


def do_list(cloud: Cloud, what: argparse.Namespace) -> int:
    key, _, value = what.filter.removeprefix("labels.").partition("=")
    nodes = [
        {
            "name": f"{PROJECT}/{what.zone}/nodes/{node}",
            "state": resource.get("node_state", "READY"),
            "health": resource.get("health", "HEALTHY"),
            "networkEndpoints": [{"port": 8470}] * resource["hosts"],
        }
        for resource in cloud.resources.values()
        if resource["labels"].get(key) == value
        for node in resource["nodes"]
    ]
    print(json.dumps(nodes))
    return 0


def usable(cloud: Cloud, what: argparse.Namespace, name: str) -> int:
    if name not in cloud.resources:
        return missing(what, name)
    state = cloud.resources[name].get("node_state", "READY")
    if cloud.resources[name]["state"] != "ACTIVE" or state != "READY":
        print(ERRORS["gone"], file=sys.stderr)
        return 1
    return 0


def do_scp(cloud: Cloud, what: argparse.Namespace) -> int:
    source, target = what.rest
    assert what.recurse
    assert what.node == what.worker == "all"
    assert target.endswith(":")
    if code := usable(cloud, what, target[:-1]):
        return code
    for home in cloud.homes(target[:-1]):
        shutil.copytree(source, home / Path(source).name, dirs_exist_ok=True)
    return 0


def do_ssh(cloud: Cloud, what: argparse.Namespace) -> int:
    (name,) = what.rest
    if code := usable(cloud, what, name):
        return code
    homes = cloud.homes(name)
    if what.worker != "all":
        assert what.node == what.worker == "0"
        homes = homes[:1]
    homes = homes[: cloud.resources[name].get("reachable", len(homes))]
    started = []
    for home in homes:
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("FAKE_GCLOUD", "PYTHONPATH")},
            "HOME": str(home),
            "VITSCALE_WORKER": home.name,
            "VITSCALE_MOUNT_POINT": str(cloud.folder / "bucket"),
            "PATH": f"{cloud.folder / 'bin'}:/usr/bin:/bin",
        }
        started.append(
            subprocess.Popen(
                ["bash", "-c", what.command], cwd=home, env=environment, stdin=subprocess.DEVNULL
            )
        )
    codes = [process.wait() for process in started]
    last = next(filter(None, codes), 0)
    if last:
        print(
            f"##### Command execution on worker 0 failed with exit status {last}. Continuing.",
            file=sys.stderr,
        )
    return last


if __name__ == "__main__":
    sys.exit(main())
