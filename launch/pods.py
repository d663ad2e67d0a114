"""What one pod of a launch on GKE is: image, variables, chips, mounts, and what its exit codes mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launch.chips import Rented
from launch.environment import environment_of
from launch.job import Job
from launch.secrets import parse_references
from vitscale.errors import EXIT_PREEMPTED, UserError

CONTAINER = "train"
ID_LABEL = (
    "vitscale-launch"  # on everything that a launch creates; nothing without it is ever deleted
)
TPU_PORTS = (8471, 8482, 8080)  # libtpu's, JAX's coordinator, the slices' coordinator
USER = 1000  # of the images in launch/docker
EXIT_USER_ERROR = 2
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_SECRET = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")  # RFC 1123

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Mount:
    """A Cloud Storage bucket, or a folder of it, as a folder of every pod (Cloud Storage FUSE)."""

    bucket: str
    folder: str  # in the bucket; "": all of it
    path: str
    read_only: bool = False


@dataclass(frozen=True)
class Secret:
    """A variable whose value the cluster keeps: a key of a Kubernetes secret."""

    variable: str
    name: str
    key: str


@dataclass(frozen=True)
class PodOptions:
    """What the user says of the pods."""

    image: str
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[Secret, ...] = ()
    service_account: str | None = None
    grace: int = 220  # seconds between SIGTERM and SIGKILL
    cpu: str | None = None
    memory: str | None = None
    shared_memory: str = "16Gi"  # /dev/shm, which worker processes hand batches through
    local_ssd: str | None = None  # where the node's own disks are mounted
    zone: str | None = None
    spot: bool = False
    reservation: str | None = None
    host_network: bool = False
    as_root: bool = False
    autopilot: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_mount(text: str) -> Mount:
    """`gs://BUCKET[/FOLDER]=/PATH[:ro]`. Raises `UserError` for anything else."""
    source, equals, target = text.partition("=")
    path, colon, mode = target.partition(":")
    bucket, _, folder = source.removeprefix("gs://").partition("/")
    folder = folder.strip("/")
    if (
        not equals
        or not source.startswith("gs://")
        or not _BUCKET.fullmatch(bucket)
        or not path.startswith("/")
        or PurePosixPath(path) == PurePosixPath("/")
        or ".." in (*PurePosixPath(path).parts, *PurePosixPath(folder).parts)
        or (colon and mode != "ro")
        or "," in folder  # mount options are separated by commas
    ):
        raise UserError(
            f"--mount {text!r} is not gs://BUCKET[/FOLDER]=/PATH, with :ro after it for reading only; such as "
            "gs://my-bucket/runs=/runs."
        )
    return Mount(bucket, folder, str(PurePosixPath(path)), bool(colon))


def parse_secrets(pairs: Iterable[str]) -> tuple[Secret, ...]:
    """`VARIABLE=SECRET[:KEY]` of `--secret`; without a key it is the variable's name. Raises `UserError` else."""
    found = []
    for variable, reference in parse_references(pairs).items():
        name, _, key = reference.partition(":")
        if not _SECRET.fullmatch(name) or len(name) > 253:
            raise UserError(
                f"--secret {variable}: {name!r} is no name of a Kubernetes secret (lower-case letters, digits, '-' and "
                "'.'); such as WANDB_API_KEY=wandb:key."
            )
        found.append(Secret(variable, name, key or variable))
    return tuple(found)


def check_image(image: str) -> None:
    """Raises `UserError` for an image that may be another one after a restart."""
    _, _, last = image.rpartition("/")
    name, colon, tag = last.partition(":")
    if "@sha256:" in image or (name and colon and tag and tag != "latest"):
        return
    raise UserError(
        f"--image {image!r} names no fixed version, so a restart could run another one; add a tag (not latest) or a "
        "digest."
    )


def check_paths(workdir: str | None, mounts: Sequence[Mount], local_ssd: str | None) -> None:
    """Raises `UserError` for a workdir that would be lost with its pod, and for folders that cover each other."""
    taken = [mount.path for mount in mounts] + ([local_ssd] if local_ssd else [])
    for path in taken:
        if not path.startswith("/"):
            raise UserError(f"--local-ssd {path!r} must be an absolute path, such as /scratch.")
        if taken.count(path) > 1:
            raise UserError(f"two volumes are mounted at {path}; give each its own folder.")
    if workdir is None:
        return
    where = PurePosixPath(workdir)
    if ".." not in where.parts and any(
        where.is_relative_to(mount.path) for mount in mounts if not mount.read_only
    ):
        return
    raise UserError(
        f"--workdir {workdir} is not in a writable --mount, so its checkpoints would be lost with the pod; such as "
        "--mount gs://my-bucket/runs=/runs and --workdir /runs/NAME."
    )


def pod_template(job: Job, rented: Rented, options: PodOptions) -> Manifest:
    """The template of every pod: one process with all chips of its machine."""
    container: Manifest = {
        "name": CONTAINER,
        "image": options.image,
        "args": [_literal(word) for word in job.command],  # after `tini -- vitscale`
        "env": _environment(job, rented, options.secrets),
        "resources": _resources(rented, options),
        "volumeMounts": _volume_mounts(options),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if rented.is_tpu:
        container["ports"] = [{"containerPort": port, "protocol": "TCP"} for port in TPU_PORTS]
    specification: Manifest = {
        "restartPolicy": "Never",  # the Job decides, by exit code
        "terminationGracePeriodSeconds": options.grace,
        "automountServiceAccountToken": False,
        "securityContext": _security(options),
        "nodeSelector": _nodes(rented, options),
        "containers": [container],
        "volumes": _volumes(options),
    }
    if options.service_account:
        specification["serviceAccountName"] = options.service_account
    if options.spot:
        specification["tolerations"] = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    if options.host_network:
        specification |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    metadata: Manifest = {"labels": dict(options.labels)}
    if options.mounts:
        metadata["annotations"] = _fuse_annotations(options)
    return {"metadata": metadata, "spec": specification}


def failure_rules(final: str, again: str) -> list[Manifest]:
    """`podFailurePolicy.rules`: which exits of a pod are final, and which are nobody's fault. Others count as failures.

    Args:
        final: the action for a mistake of the user (exit code 2), which a restart would repeat.
        again: the action for a run that was stopped and has saved (75), or whose node went away. 76 (it lost another
            process) is none of them: a process that hangs fails nowhere itself, and would be restarted without end.
    """
    return [
        {"action": final, "onExitCodes": _exits(EXIT_USER_ERROR)},
        {"action": again, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": again, "onExitCodes": _exits(EXIT_PREEMPTED)},
    ]


def _exits(*codes: int) -> Manifest:
    return {"containerName": CONTAINER, "operator": "In", "values": list(codes)}


def _environment(job: Job, rented: Rented, secrets: Sequence[Secret]) -> list[Manifest]:
    own = dict(job.environment)
    twice = own.keys() & {secret.variable for secret in secrets}
    if twice:
        raise UserError(f"{', '.join(sorted(twice))}: given by --env and by --secret; keep one.")
    found = {
        "PYTHONUNBUFFERED": "1",
        # Named, so that a chip that cannot be opened is an error: jax would go on with the CPU.
        "JAX_PLATFORMS": "tpu,cpu" if rented.is_tpu else "cuda,cpu",
        "VITSCALE_NUM_PROCESSES": str(rented.processes),
    }
    if not rented.is_tpu and rented.hosts > 1:
        # Pod 0's stable name under the headless service of the same name. TPUs: GKE says where the others are.
        found["JAX_COORDINATOR_ADDRESS"] = f"{job.name}-0.{job.name}"
    found |= own
    found |= environment_of(rented.chip, rented.processes, own)
    return [{"name": name, "value": _literal(value)} for name, value in found.items()] + [
        {
            "name": secret.variable,
            "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}},
        }
        for secret in secrets
    ]


def _literal(text: str) -> str:
    """Kubernetes puts variables for `$(NAME)` in arguments and values; `$$(` stays `$(`."""
    return text.replace("$(", "$$(")


def _resources(rented: Rented, options: PodOptions) -> Manifest:
    amounts = {"google.com/tpu" if rented.is_tpu else "nvidia.com/gpu": str(rented.chips_per_host)}
    if options.cpu:
        amounts["cpu"] = options.cpu
    if options.memory:
        amounts["memory"] = options.memory
    return {"requests": amounts, "limits": dict(amounts)}


def _nodes(rented: Rented, options: PodOptions) -> Manifest:
    if rented.is_tpu:
        labels = {
            "cloud.google.com/gke-tpu-accelerator": rented.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": rented.shape,
        }
    else:
        labels = {"cloud.google.com/gke-accelerator": rented.gke_accelerator}
    # GPUs of one kind are in machines of several sizes, and a 2x4 can be one machine or two. Autopilot makes nodes by
    # the number of chips that a pod asks for.
    if not options.autopilot and (not rented.is_tpu or rented.chips_per_host == 8):
        labels["node.kubernetes.io/instance-type"] = rented.machine
    if options.zone:
        labels["topology.kubernetes.io/zone"] = options.zone
    if options.spot:
        labels["cloud.google.com/gke-spot"] = "true"
    if options.reservation:
        labels["cloud.google.com/reservation-name"] = options.reservation
    if options.local_ssd:
        if not rented.local_ssds:
            raise UserError(
                f"--local-ssd: machines with {rented.chip} come without local SSDs; leave it out."
            )
        labels["cloud.google.com/gke-ephemeral-storage-local-ssd"] = "true"
    return labels


def _security(options: PodOptions) -> Manifest:
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    if options.as_root:
        return {"runAsUser": 0, "runAsGroup": 0, **profile}
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        **profile,
    }


def _fuse_annotations(options: PodOptions) -> Manifest:
    found = {"gke-gcsfuse/volumes": "true"}
    if not options.autopilot:
        # No limits: files are staged on the node's disk while they are written. Autopilot refuses "0" and has defaults.
        found |= {
            f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")
        }
    return found


def _volumes(options: PodOptions) -> list[Manifest]:
    user = 0 if options.as_root else USER
    found: list[Manifest] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": options.shared_memory}}
    ]
    if options.local_ssd:
        found.append({"name": "local-ssd", "emptyDir": {}})
    for i, mount in enumerate(options.mounts):
        words = ["implicit-dirs", f"uid={user}", f"gid={user}", "file-mode=664", "dir-mode=775"]
        if mount.folder:
            words.append(f"only-dir={mount.folder}")
        attributes = {"bucketName": mount.bucket, "mountOptions": ",".join(words)}
        if options.host_network:
            attributes["hostNetworkPodKSA"] = "true"  # or the node's service account reads it
        found.append(
            {
                "name": f"bucket-{i}",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "readOnly": mount.read_only,
                    "volumeAttributes": attributes,
                },
            }
        )
    return found


def _volume_mounts(options: PodOptions) -> list[Manifest]:
    found: list[Manifest] = [{"name": "shm", "mountPath": "/dev/shm"}]
    if options.local_ssd:
        found.append({"name": "local-ssd", "mountPath": options.local_ssd})
    for i, mount in enumerate(options.mounts):
        found.append({"name": f"bucket-{i}", "mountPath": mount.path, "readOnly": mount.read_only})
    return found
