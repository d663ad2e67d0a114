"""`vitscale launch gke` with the real kubectl, against a stand-in for the cluster's API server."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes_server import cluster
from tpu_cloud import make_repository

from launch import gke
from launch.kubectl import AlreadyThere, _translate
from launch.locks import held
from vitscale.cli import main
from vitscale.errors import UserError

RUN = ["launch", "gke", "--image", "registry/vitscale:1", "--bucket", "my-bucket", "--skip-plan"]
TRAIN = ["--", "train", "--config", "configs/small/multitask.py", "--workdir", "/mnt/bucket/first"]
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The repository's configs, and nobody's kubeconfig."""
    (tmp_path / "configs").symlink_to(Path("configs").absolute())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl caches what it discovers
    return tmp_path


@pytest.fixture
def api(here):
    with cluster() as found:
        (here / "kubeconfig").write_text(found.kubeconfig())
        yield found


def label_of(api, kinds: str) -> str:
    return api.objects[kinds, "first"]["metadata"]["labels"]["vitscale-launch"]


def add_pod(api, kinds: str, index: int, phase: str = "Running", **status) -> None:
    labels = {
        "vitscale-launch": label_of(api, kinds),
        "batch.kubernetes.io/job-completion-index": str(index % 4),
        "jobset.sigs.k8s.io/job-index": str(index // 4),
    }
    name = f"first-slice-{index // 4}-{index % 4}-abcde"
    containers = {"containers": [{"name": "train"}]}
    api.add("pods", name, labels, spec=containers, status={"phase": phase, **status})
    api.logs[name] = f"step {index}\n"


@needs_kubectl
def test_a_launch_from_its_creation_to_its_end(api, here, capfd):
    assert main([*RUN, "--topology", "2*v5e:4x4", *TRAIN]) == 0
    assert "8 machines ct5lp-hightpu-4t in here" in capfd.readouterr().out
    assert api.names() == ["jobsets/first"]
    # By the record: neither --context nor --namespace is said again.
    (here / "kubeconfig").write_text(
        api.kubeconfig().replace('"current-context": "here"', '"current-context": "too"')
    )
    for index in range(8):
        add_pod(api, "jobsets", index)
    assert main(["launch", "gke", "status", "--name", "first"]) == 0
    said = capfd.readouterr().out
    assert "first: running" in said
    assert "8 pods running" in said

    capfd.readouterr()
    assert main(["launch", "gke", "logs", "--name", "first", "--process", "6"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines() == ["[pod/first-slice-1-2-abcde/train] step 6"]

    assert main(["launch", "gke", "delete", "--name", "first"]) == 0
    assert not [name for name in api.names() if name.startswith("jobsets")]
    assert main(["launch", "gke", "status", "--name", "first"]) == 2
    assert "no launch 'first'" in capfd.readouterr().err


@needs_kubectl
def test_nothing_is_deleted_that_this_launch_did_not_create(api, capsys):
    # Somebody else's, by the same name and by the label of another launch.
    api.add("jobs", "first", {"vitscale-launch": "first-another"}, spec={})
    api.add("services", "other", {}, spec={})
    assert main([*RUN, "--topology", "h100:16", *TRAIN]) == 2
    assert "take another --name" in capsys.readouterr().err
    # The service had been created before the job failed: it is gone again, and the others are not.
    assert api.names() == ["jobs/first", "services/other"]

    del api.objects["jobs", "first"]
    assert main([*RUN, "--topology", "h100:16", *TRAIN]) == 0
    assert api.names() == ["jobs/first", "services/first", "services/other"]
    # Deleted and made anew by somebody else, under the same name.
    api.add("jobs", "first", {"vitscale-launch": "first-another"}, spec={})
    api.objects["services", "first"]["metadata"]["labels"] = {}
    assert main(["launch", "gke", "delete", "--name", "first"]) == 2
    assert "was not created by this launch" in capsys.readouterr().err
    assert api.names() == ["jobs/first", "services/first", "services/other"]
    assert not [url for method, url in api.requests[-5:] if method == "DELETE"]


@needs_kubectl
def test_the_same_name_twice(api, capsys):
    assert main([*RUN, "--topology", "h100:16", *TRAIN]) == 0
    first = label_of(api, "jobs")
    assert main([*RUN, "--topology", "h100:16", *TRAIN]) == 2
    said = capsys.readouterr().err
    assert "is still there" in said
    assert "--restarts 0: when one machine is lost" in said
    assert label_of(api, "jobs") == first
    assert main(["launch", "gke", "delete", "--name", "first"]) == 0
    assert api.names() == []


@needs_kubectl
@pytest.mark.parametrize("topology", ["h100:16", "v5e:4x4"])
def test_what_is_being_deleted_saves_before_another_takes_its_workdir(api, here, capsys, topology):
    words = [*RUN, "--topology", topology, *TRAIN]
    record = here / ".vitscale" / "launch" / "gke" / "first.json"
    assert main(words) == 0
    api.saving = True
    assert main(["launch", "gke", "delete", "--name", "first"]) == 0
    assert record.is_file()
    created = api.names()
    assert main(words) == 2
    assert "is being deleted (context here), and its pods save first" in capsys.readouterr().err
    assert api.names() == created
    api.let_go()
    api.saving = False
    assert main(words) == 0
    assert api.names() == created


@needs_kubectl
def test_a_launch_from_another_machine_is_found_by_its_id(api, here, capsys):
    assert main([*RUN, "--topology", "h100:16", *TRAIN]) == 0
    (here / ".vitscale" / "launch" / "gke" / "first.json").unlink()
    words = ["--name", "first", "--launch-id", label_of(api, "jobs")]
    assert main(["launch", "gke", "status", *words]) == 0
    assert main(["launch", "gke", "delete", "--dry-run", *words]) == 0
    assert "kubectl --context=here --namespace=default delete" in capsys.readouterr().out
    assert main(["launch", "gke", "delete", *words]) == 0
    assert api.names() == []


@needs_kubectl
def test_deleting_a_launch_by_its_id_forgets_no_other_of_the_name(api, here, capsys):
    assert main([*RUN, "--topology", "h100:16", *TRAIN]) == 0
    record = here / ".vitscale" / "launch" / "gke" / "first.json"
    api.add("jobs", "second", {"vitscale-launch": "first-another"}, spec={})
    words = ["--name", "first", "--launch-id", "first-another"]
    assert main(["launch", "gke", "delete", *words]) == 0
    assert record.is_file()
    assert main(["launch", "gke", "delete", "--name", "first"]) == 0
    assert not record.exists()


def test_two_at_once_do_not_take_each_others_record(tmp_path):
    record = gke.Record("first", "first-0", "here", "default", True, 4)
    with (
        held(tmp_path / "first.lock", "the folder", busy=None),
        pytest.raises(UserError, match="another process on this machine launches 'first'"),
    ):
        gke.create(record, [], tmp_path)
    assert not (tmp_path / "first.json").exists()


def test_a_launch_is_remembered_once_for_a_whole_checkout(tmp_path):
    repository = make_repository(tmp_path / "repository")
    below = repository / "vitscale"
    assert gke.find_folder(below) == gke.find_folder(repository)
    assert gke.find_folder(tmp_path) == tmp_path / ".vitscale" / "launch" / "gke"


def test_an_output_that_cannot_be_written(here, capsys):
    words = ["--dry-run", "--topology", "v5e:4x4", "--output", "no/such/f.yaml"]
    assert main([*RUN, *words, *TRAIN]) == 2
    assert "--output no/such/f.yaml cannot be written" in capsys.readouterr().err


@needs_kubectl
def test_status_says_what_is_wrong(api, capsys):
    assert main([*RUN, "--topology", "v5e:4x4", *TRAIN]) == 0
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
    }
    add_pod(api, "jobsets", 0, "Pending", conditions=[unscheduled])
    ended = {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    add_pod(api, "jobsets", 1, "Failed", containerStatuses=[ended])
    capsys.readouterr()
    assert main(["launch", "gke", "status", "--name", "first"]) == 0
    said = capsys.readouterr().out
    assert "first-slice-0-0-abcde: Unschedulable: 0/3 nodes are available" in said
    assert "first-slice-0-1-abcde: exit code 137 (OOMKilled)" in said

    conditions = [{"type": "FailureTarget", "status": "True", "message": "pods still end"}]
    api.objects["jobsets", "first"]["status"] = {"restarts": 2, "conditions": conditions}
    assert main(["launch", "gke", "status", "--name", "first"]) == 0
    assert "first: failing (pods still end)" in capsys.readouterr().out
    condition = {"type": "Failed", "status": "True", "message": "jobset failed"}
    api.objects["jobsets", "first"]["status"] = {
        "restarts": 2,
        "conditions": [*conditions, condition],
    }
    assert main(["launch", "gke", "status", "--name", "first"]) == 1
    assert "first: failed (jobset failed)" in (error := capsys.readouterr().err)
    assert "2 restarts of which 0 count" in error


@needs_kubectl
def test_a_cluster_without_jobset_says_how_to_install_it(here, capsys):
    with cluster(jobset=False) as found:
        (here / "kubeconfig").write_text(found.kubeconfig())
        assert main([*RUN, "--topology", "v5e:4x4", *TRAIN]) == 2
        assert "kubectl apply --server-side" in capsys.readouterr().err
        assert found.names() == []
    assert not list((here / ".vitscale").rglob("first.json"))


@needs_kubectl
def test_no_cluster(here, capsys):
    assert main([*RUN, "--topology", "v5e:4x4", *TRAIN]) == 2
    assert "get-credentials" in capsys.readouterr().err


def test_a_dry_run_prints_the_manifest_and_asks_nobody(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no kubectl
    secret = "correct-horse-battery"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    words = ["--secret", "WANDB_API_KEY=wandb:key", "--output", "job.yaml", "--dry-run"]
    assert main([*RUN, "--topology", "v5e:4x4", *words, *TRAIN]) == 0
    captured = capsys.readouterr()
    (document,) = yaml.safe_load_all(captured.out)
    assert document["kind"] == "JobSet"
    assert (here / "job.yaml").read_text() == captured.out
    assert secret not in captured.out + captured.err
    assert not (here / ".vitscale").exists()


@needs_kubectl
@pytest.mark.parametrize(
    ("topology", "names"),
    [
        ("2*v5e:4x4", ["jobset.jobset.x-k8s.io/first"]),
        ("a100-80gb:16", ["service/first", "job.batch/first"]),
    ],
)
def test_kubectl_takes_a_printed_manifest(api, here, capsys, topology, names):
    words = ["--dry-run", "--output", "job.yaml", "--topology", topology]
    assert main([*RUN, *words, *TRAIN]) == 0
    dry = ["kubectl", "create", "--dry-run=client", "--output=name", "--filename=job.yaml"]
    # The stand-in publishes no schemas; tests/launch/test_gke_manifests.py holds the manifests against them.
    made = subprocess.run([*dry, "--validate=false"], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert [line.split(" ")[0] for line in made.stdout.splitlines()] == names
    assert api.names() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology", "v5e:3x3"], "v5e:4x4, v5e:4x8"),
        (["--topology", "v5e:4x4", "--zone", "us-west4-b"], "us-west4-a"),
        (["--topology", "v5e:4x4", "--env", "HF_TOKEN=abc"], "--secret VARIABLE=SECRET:KEY"),
        (["--topology", "v5e:4x4", "--env", "A=correct-horse-battery"], "WANDB_API_KEY"),
        (["--topology", "v5e:4x4", "--image", "vitscale"], "names no fixed version"),
        (["--topology", "v5e:4x4", "--name", "Two_Words"], "no name for gke"),
        (["--topology", "v5e:4x4", "--grace", "0"], "--grace=0"),
        ([], "--topology is missing"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(here, capsys, monkeypatch, words, said):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")
    assert main([*RUN, "--dry-run", *words, *TRAIN]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "horse" not in error
    assert "=abc" not in error


def test_a_plan_that_does_not_fit_is_not_launched(here, capsys, monkeypatch):
    def refuse(command, topology, *, skip):
        assert (command[0], topology, skip) == ("train", "v5e:4x4", False)
        raise UserError("does not fit")

    monkeypatch.setattr("launch.preflight.check_plan", refuse)
    words = [word for word in RUN if word != "--skip-plan"]
    assert main([*words, "--context", "here", "--topology", "v5e:4x4", *TRAIN]) == 2
    assert "does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ('error: context "x" does not exist', "get-credentials"),
        ("error: You must be logged in to the server (Unauthorized)", "gcloud auth login"),
        ("exec: executable gke-gcloud-auth-plugin not found", "gcloud auth login"),
        ('jobs is forbidden: User "me" cannot create', "container.developer"),
        ("E1 memcache.go\nUnable to connect to the server: dial tcp: i/o timeout", "reached"),
        ("Error from server (ServiceUnavailable): overloaded", "trouble of its own"),
        ("Error from server: etcdserver: request timed out", "trouble of its own"),
        ('error: error validating data: unknown field "spec.x"', "does not take the manifest"),
    ],
)
def test_what_kubectl_says_in_words(stderr, said):
    error = _translate(stderr, "create")
    assert isinstance(error, UserError)
    assert said in str(error)


def test_what_kubectl_says_else():
    assert isinstance(_translate("Error (AlreadyExists): jobs", "create"), AlreadyThere)
    assert isinstance(_translate("out of cheese", "create"), RuntimeError)


def test_a_broken_record_is_named(here, capsys):
    folder = here / ".vitscale" / "launch" / "gke"
    folder.mkdir(parents=True)
    (folder / "first.json").write_text(json.dumps({"name": "first"}))
    assert main(["launch", "gke", "status", "--name", "first"]) == 2
    assert "is not a launch's record" in capsys.readouterr().err
