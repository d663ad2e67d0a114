"""What `vitscale launch gke` gives to Kubernetes: a JobSet for TPU slices, an indexed Job and a Service for GPUs.

A JobSet restarts all slices together; its rules tell a pre-emption from a crash (`onJobFailureMessagePatterns`: JobSet
0.10 or newer). A Job restarts pod by pod: when one dies, the others notice and end with code 76, which counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from launch.chips import Rented
from launch.job import Job, check_name
from launch.pods import ID_LABEL, Manifest, PodOptions, failure_rules, pod_template
from vitscale.errors import UserError

SLICE = "slice"  # the name of a JobSet's only replicated job
KEEP_SECONDS = 7 * 24 * 3600  # how long what has ended can be asked about
COORDINATOR_PORT = 55527


@dataclass(frozen=True)
class JobOptions:
    """What the user says of the job as a whole."""

    launch_id: str  # the value of the label on all it creates
    restarts: int = 0  # after failures that are the run's own
    queue: str | None = None  # Kueue's LocalQueue
    priority_class: str | None = None


def manifests(job: Job, rented: Rented, pods: PodOptions, options: JobOptions) -> list[Manifest]:
    """The objects to create, in order.

    Raises:
        UserError: a name that is too long for the pods that it becomes part of, several slices of one machine each.
    """
    if options.restarts < 0:
        raise UserError(f"--restarts={options.restarts} must be at least 0.")
    if rented.is_tpu and rented.slices > 1 and rented.hosts == 1:
        raise UserError(
            f"topology {rented.topology!r}: GKE joins slices only when each has several machines; take a larger slice, "
            f"such as {rented.slices}*{rented.chip}:{'4x4' if rented.shape.count('x') == 1 else '2x2x2'}."
        )
    check_name("gke", job.name, pod_suffix(rented))
    labels = {"app.kubernetes.io/managed-by": "vitscale", ID_LABEL: options.launch_id}
    pods = replace(pods, labels={**pods.labels, **labels})
    if rented.is_tpu:
        return [_job_set(job, rented, pods, options, labels)]
    created = [_gpu_job(job, rented, pods, options, labels)]
    return [_service(job.name, labels), *created] if rented.hosts > 1 else created


def pod_suffix(rented: Rented) -> str:
    """What Kubernetes hangs on a job's name for a pod's, which is a label: numbers and five letters."""
    last = f"-{rented.hosts - 1}-abcde"
    return f"-{SLICE}-{rented.slices - 1}{last}" if rented.is_tpu else last


def _top(name: str, labels: Mapping[str, str], options: JobOptions) -> Manifest:
    queue = {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}
    return {"name": name, "labels": {**labels, **queue}}


def _job_set(
    job: Job, rented: Rented, pods: PodOptions, options: JobOptions, labels: Mapping[str, str]
) -> Manifest:
    template = _template(job, rented, pods, options)
    # Rules 0 (the user's mistake), 1 and 2 (nobody's fault) of the pods fail their slice, by a message that names the
    # rule; other exits, 76 among them, do so for BackoffLimitExceeded. No rule of the set matches that: a restart, and
    # it counts.
    rules = [
        {
            "name": "mistake",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": ["matching FailJob rule at index 0$"],
        },
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": ["matching FailJob rule at index [12]$"],
        },
    ]
    specification: Manifest = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": options.restarts, "rules": rules},
        "successPolicy": {"operator": "All"},
        "ttlSecondsAfterFinished": KEEP_SECONDS,
        "replicatedJobs": [
            {
                "name": SLICE,
                "replicas": rented.slices,
                "template": {
                    "metadata": {"labels": dict(labels)},
                    "spec": {
                        **_indexed(rented.hosts),
                        "backoffLimit": 0,
                        "podFailurePolicy": {"rules": failure_rules("FailJob", "FailJob")},
                        "template": template,
                    },
                },
            }
        ],
    }
    if options.queue:
        specification["suspend"] = True  # until Kueue admits it
    top = _top(job.name, labels, options)
    # All pods of a slice in one node pool, which is one slice of TPUs.
    top["annotations"] = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": top,
        "spec": specification,
    }


def _gpu_job(
    job: Job, rented: Rented, pods: PodOptions, options: JobOptions, labels: Mapping[str, str]
) -> Manifest:
    template = _template(job, rented, pods, options)
    if rented.hosts > 1:
        template["spec"]["subdomain"] = job.name
    specification: Manifest = {
        **_indexed(rented.hosts),
        "backoffLimitPerIndex": options.restarts,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {"rules": failure_rules("FailJob", "Ignore")},
        "ttlSecondsAfterFinished": KEEP_SECONDS,
        "template": template,
    }
    if options.queue:
        specification["suspend"] = True
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _top(job.name, labels, options),
        "spec": specification,
    }


def _service(name: str, labels: Mapping[str, str]) -> Manifest:
    """Headless: it gives every pod of the Job the name NAME-INDEX.NAME, and nothing is sent through it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "clusterIP": "None",
            # Processes look for each other before any is ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "coordinator", "port": COORDINATOR_PORT}],
        },
    }


def _indexed(pods: int) -> Manifest:
    return {"completionMode": "Indexed", "completions": pods, "parallelism": pods}


def _template(job: Job, rented: Rented, pods: PodOptions, options: JobOptions) -> Manifest:
    template = pod_template(job, rented, pods)
    if options.priority_class:
        template["spec"]["priorityClassName"] = options.priority_class
    return template


def to_yaml(documents: list[Manifest]) -> str:
    """Documents with `---` between them, as kubectl reads them."""
    import yaml

    return "---\n".join(
        yaml.safe_dump(document, sort_keys=False, width=1000) for document in documents
    )
