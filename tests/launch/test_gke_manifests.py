"""Manifests for GKE: valid by the published schemas, one process a machine that finds the others, no secrets."""

import json
import re

import pytest
import yaml

from launch.chips import rent
from launch.gke import grace_of
from launch.job import Job, job_of
from launch.manifests import JobOptions, manifests, to_yaml
from launch.pods import (
    PodOptions,
    check_image,
    check_paths,
    parse_mount,
    parse_secrets,
)
from vitscale.errors import UserError
from vitscale.parallel.cluster import detect

COMMAND = ("train", "--config", "configs/pretrain_vit_b16.py", "--workdir", "/mnt/bucket/b16")
PLAIN = PodOptions("registry/vitscale:1")
FULL = PodOptions(
    "registry/vitscale@sha256:" + "a" * 64,
    mounts=(parse_mount("gs://my-bucket/runs=/mnt/bucket"), parse_mount("gs://data=/data:ro")),
    secrets=parse_secrets(["WANDB_API_KEY=wandb:key"]),
    service_account="trainer",
    cpu="100",
    memory="200Gi",
    zone="us-west4-a",
    spot=True,
    reservation="mine",
    host_network=True,
    as_root=True,
)
TOPOLOGIES = ("v5e:1x1", "v5e:2x4", "v5e:4x4", "4*v5e:16x16", "2*v5p:2x2x2", "h100:1", "h100:16")


def render(topology: str, pods: PodOptions = PLAIN, **options) -> list[dict]:
    job = Job("b16", COMMAND, COMMAND[-1], COMMAND[2], {"MY_VARIABLE": "yes"})
    return manifests(job, rent(topology), pods, JobOptions("b16-0123", **options))


def child_job(documents: list[dict]) -> dict:
    """The Job, or the template of the JobSet's Jobs."""
    top = documents[-1]
    if top["kind"] == "Job":
        return top
    template = top["spec"]["replicatedJobs"][0]["template"]
    return {"apiVersion": "batch/v1", "kind": "Job", **template}


def pod_of(documents: list[dict]) -> dict:
    return child_job(documents)["spec"]["template"]["spec"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("pods", [PLAIN, FULL], ids=["plain", "full"])
def test_manifests_hold_by_the_published_schemas(topology, pods):
    validate = pytest.importorskip("kubernetes_validate").validate
    models = pytest.importorskip("kubeflow_trainer_api.models")
    documents = render(topology, pods, restarts=3, queue="team", priority_class="high")
    for document in documents:
        if document["kind"] == "JobSet":
            parsed = models.JobsetV1alpha2JobSet.from_dict(document)
            # Fields that JobSet does not have are dropped, and so is a misspelt one.
            assert json.loads(parsed.to_json()) == document
        else:
            validate(document, "1.33", strict=True)
    validate({**child_job(documents), "metadata": {"name": "child"}}, "1.33", strict=True)
    assert list(yaml.safe_load_all(to_yaml(documents))) == documents


def test_the_schemas_would_find_a_misspelt_field():
    validate = pytest.importorskip("kubernetes_validate")
    (document,) = render("h100:1")
    pod_of([document])["terminationGracePeriod"] = 5
    with pytest.raises(validate.ValidationError):
        validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_pod_finds_its_place_among_all(topology):
    """What Kubernetes, JobSet and GKE's webhook add to a pod's environment, and what the process makes of it."""
    documents, rented = render(topology), rent(topology)
    assert child_job(documents)["spec"]["completions"] == rented.hosts
    assert child_job(documents)["spec"]["completionMode"] == "Indexed"
    given = {v["name"]: v["value"] for v in pod_of(documents)["containers"][0]["env"]}
    found = []
    for slice_id in range(rented.slices):
        for host in range(rented.hosts):
            added = {"JOB_COMPLETION_INDEX": str(host), "HOSTNAME": f"b16-{host}"}
            if rented.is_tpu and rented.hosts > 1:
                names = [f"b16-slice-{slice_id}-{i}.b16" for i in range(rented.hosts)]
                added |= {"TPU_WORKER_ID": str(host), "TPU_WORKER_HOSTNAMES": ",".join(names)}
            if rented.slices > 1:
                added |= {
                    "MEGASCALE_NUM_SLICES": str(rented.slices),
                    "MEGASCALE_SLICE_ID": str(slice_id),
                    "MEGASCALE_COORDINATOR_ADDRESS": "b16-slice-0-0.b16",
                }
            found.append(detect({**given, **added}))
    if rented.processes == 1:
        assert found == [None]  # alone
        return
    assert [cluster.process_id for cluster in found] == list(range(rented.processes))
    assert {cluster.num_processes for cluster in found} == {rented.processes}
    (coordinator,) = {cluster.coordinator.rpartition(":")[0] for cluster in found}
    assert coordinator == ("b16-slice-0-0.b16" if rented.is_tpu else "b16-0.b16")


def test_the_headless_service_is_the_one_that_pods_are_named_by():
    service, job = render("h100:16")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    name = service["metadata"]["name"]
    assert pod_of([job])["subdomain"] == name
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    environment = {v["name"]: v.get("value") for v in pod_of([job])["containers"][0]["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"] == f"{job['metadata']['name']}-0.{name}"


def decide(documents: list[dict], exit_code: int, *, disrupted: bool = False) -> str:
    """What the Job controller, and JobSet's above it, do with a pod that ended so: fail, again or count.

    The rules of kubernetes.io/docs/concepts/workloads/controllers/job (pod failure policy: the first that matches) and
    jobset.sigs.k8s.io (failure policy), and the words of Kubernetes' pkg/controller/job/pod_failure_policy.go.
    """
    action, message = "Count", ""
    rules = child_job(documents)["spec"]["podFailurePolicy"]["rules"]
    for index, rule in enumerate(rules):
        codes = rule.get("onExitCodes", {}).get("values", [])
        conditions = [c["type"] for c in rule.get("onPodConditions", [])]
        if exit_code in codes or (disrupted and "DisruptionTarget" in conditions):
            action = rule["action"]
            message = f"Container train for pod default/b16-0 failed with exit code {exit_code} "
            message += f"matching {action} rule at index {index}"
            break
    if documents[-1]["kind"] == "Job":
        return {"FailJob": "fail", "Ignore": "again", "Count": "count"}[action]
    reason = "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
    for rule in documents[-1]["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"] and any(
            re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]
        ):
            return {"FailJobSet": "fail", "RestartJobSetAndIgnoreMaxRestarts": "again"}[
                rule["action"]
            ]
    return "count"


@pytest.mark.parametrize("topology", ["2*v5e:4x4", "h100:16"])
@pytest.mark.parametrize(
    ("exit_code", "disrupted", "answer"),
    [
        (2, False, "fail"),  # the user's mistake
        (75, False, "again"),  # stopped and saved
        (76, False, "count"),  # another process was lost: perhaps it hangs, and will again
        (137, True, "again"),  # its node went away
        (75, True, "again"),
        (1, False, "count"),
        (137, False, "count"),  # out of memory
    ],
)
def test_what_an_exit_code_means(topology, exit_code, disrupted, answer):
    assert decide(render(topology, restarts=1), exit_code, disrupted=disrupted) == answer


@pytest.mark.parametrize("restarts", [0, 3])
def test_failures_are_counted_against_restarts(restarts):
    jobset = render("v5e:4x4", restarts=restarts)[0]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == restarts
    assert child_job([jobset])["spec"]["backoffLimit"] == 0
    job = render("h100:16", restarts=restarts)[-1]["spec"]
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"]) == (restarts, 0)


@pytest.mark.parametrize(
    ("topology", "labels", "chips"),
    [
        (
            "4*v5e:16x16",
            {
                "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
                "cloud.google.com/gke-tpu-topology": "16x16",
            },
            {"google.com/tpu": "4"},
        ),
        (
            "v6e:2x4",
            {
                "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
                "cloud.google.com/gke-tpu-topology": "2x4",
                "node.kubernetes.io/instance-type": "ct6e-standard-8t",
            },
            {"google.com/tpu": "8"},
        ),
        (
            "h100:16",
            {
                "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
                "node.kubernetes.io/instance-type": "a3-highgpu-8g",
            },
            {"nvidia.com/gpu": "8"},
        ),
    ],
)
def test_pods_are_put_on_the_right_nodes(topology, labels, chips):
    documents = render(topology)
    assert pod_of(documents)["nodeSelector"] == labels
    resources = pod_of(documents)["containers"][0]["resources"]
    assert resources == {"requests": chips, "limits": chips}
    if topology.startswith("4*"):
        (replicated,) = documents[0]["spec"]["replicatedJobs"]
        assert replicated["replicas"] == 4
        (annotation,) = documents[0]["metadata"]["annotations"].items()
        assert annotation == (
            "alpha.jobset.sigs.k8s.io/exclusive-topology",
            "cloud.google.com/gke-nodepool",
        )


def test_buckets_disks_and_rights():
    pod = pod_of(render("v5e:4x4", FULL))
    first, second = (v["csi"] for v in pod["volumes"] if "csi" in v)
    assert first["volumeAttributes"]["bucketName"] == "my-bucket"
    assert "only-dir=runs" in first["volumeAttributes"]["mountOptions"].split(",")
    assert (first["readOnly"], second["readOnly"]) == (False, True)
    assert first["volumeAttributes"]["hostNetworkPodKSA"] == "true"
    template = child_job(render("v5e:4x4", FULL))["spec"]["template"]
    assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    plain = pod_of(render("v5e:4x4"))
    assert plain["securityContext"]["runAsNonRoot"]
    assert "annotations" not in child_job(render("v5e:4x4"))["spec"]["template"]["metadata"]
    disks = pod_of(render("h100:8", PodOptions("a:1", local_ssd="/scratch")))
    assert disks["nodeSelector"]["cloud.google.com/gke-ephemeral-storage-local-ssd"] == "true"
    for topology in ("v5e:4x4", "a100-40gb:8"):
        with pytest.raises(UserError, match="without local SSDs"):
            render(topology, PodOptions("a:1", local_ssd="/scratch"))


def test_all_that_is_created_has_the_label_of_the_launch():
    for topology in ("v5e:4x4", "h100:16"):
        documents = render(topology)
        for thing in (*documents, child_job(documents), child_job(documents)["spec"]["template"]):
            assert thing["metadata"]["labels"]["vitscale-launch"] == "b16-0123"


def test_secrets_are_references():
    secret = next(
        v for v in pod_of(render("v5e:4x4", FULL))["containers"][0]["env"] if "valueFrom" in v
    )
    assert secret == {
        "name": "WANDB_API_KEY",
        "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}},
    }
    assert parse_secrets(["HF_TOKEN=hf"])[0].key == "HF_TOKEN"
    with pytest.raises(UserError, match="no name of a Kubernetes secret"):
        parse_secrets(["HF_TOKEN=Hf"])
    twice = Job("b16", COMMAND, environment={"WANDB_API_KEY": "x"})
    with pytest.raises(UserError, match="--env and by --secret"):
        manifests(twice, rent("v5e:4x4"), FULL, JobOptions("i"))


def test_words_survive_yaml():
    command = ("train", '--config.name=it\'s "odd"\n: yes', "1e3", "on", "~", "--a=$(HOME)")
    documents = manifests(
        Job("b16", command, environment={"A": "off", "B": "0x1"}),
        rent("v5e:4x4"),
        PLAIN,
        JobOptions("i"),
    )
    (read,) = yaml.safe_load_all(to_yaml(documents))
    container = pod_of([read])["containers"][0]
    assert container["args"] == [word.replace("$(", "$$(") for word in command]
    values = {v["name"]: v["value"] for v in container["env"]}
    assert (values["A"], values["B"]) == ("off", "0x1")


@pytest.mark.parametrize(
    ("name", "topology", "fits"),
    [
        ("a" * 46, "4*v5e:16x16", True),  # aaa-slice-3-63-abcde
        ("a" * 47, "4*v5e:16x16", False),
        ("a" * 55, "h100:16", True),
        ("a" * 56, "h100:16", False),
        ("Upper", "v5e:4x4", False),
        ("1st", "h100:16", False),
    ],
)
def test_names_leave_room_for_those_of_the_pods(name, topology, fits):
    job = Job(name, COMMAND)
    if fits:
        manifests(job, rent(topology), PLAIN, JobOptions("i"))
    else:
        with pytest.raises(UserError, match="is no name for gke"):
            manifests(job, rent(topology), PLAIN, JobOptions("i"))


def test_slices_of_one_machine_are_not_joined():
    with pytest.raises(UserError, match=r"such as 4\*v5e:4x4"):
        render("4*v5e:2x4")
    with pytest.raises(UserError, match="at least 0"):
        render("v5e:4x4", restarts=-1)


@pytest.mark.parametrize(
    "text", ["bucket=/runs", "gs://b=runs", "gs://bucket=/", "gs://bucket=/a/../b", "gs://bucket"]
)
def test_mounts_that_are_none(text):
    with pytest.raises(UserError, match="is not gs://BUCKET"):
        parse_mount(text)


@pytest.mark.parametrize("image", ["vitscale", "vitscale:latest", "host:5000/vitscale", ":1"])
def test_images_have_a_version(image):
    with pytest.raises(UserError, match="names no fixed version"):
        check_image(image)
    check_image("host:5000/vitscale:1")


def test_a_workdir_outlives_its_pod():
    check_paths("/mnt/bucket/b16", FULL.mounts, None)
    check_paths(None, (), None)
    for workdir in ("runs/b16", "/runs", "/data/run", "/mnt/bucket/../b", "gs://my-bucket/b16"):
        with pytest.raises(UserError, match="lost with the pod"):
            check_paths(workdir, FULL.mounts, None)
    with pytest.raises(UserError, match="two volumes"):
        check_paths(None, FULL.mounts, "/data")


def test_grace_is_longer_than_the_wait_for_another_process():
    config = "configs/small/multitask.py"
    job = job_of(["train", "--config", config, "--workdir", "/w"], "gke")
    assert grace_of(job) == 100 + 120
    words = ["train", "--config", config, "--workdir", "/w", "--config.survival.peer_timeout", "7"]
    assert grace_of(job_of(words, "gke")) == 7 + 120
    assert grace_of(job_of(["doctor"], "gke")) == 100 + 120
