"""Sweeps on GKE with the real kubectl, against a stand-in for the API server whose jobs end as told."""

import json
import shutil
from pathlib import Path

import pytest
from sweep_cluster import STATE, SWEEP, Killed, controlled, needs_kubectl, states, sweep, words_of

from launch import gke
from launch.kubectl import Unreachable
from launch.sweep_gke import RECORD_FILE
from launch.sweep_state import SweepState
from vitscale.cli import make_parser
from vitscale.cli_launch import gke as command_line
from vitscale.errors import UserError

pytestmark = needs_kubectl


@pytest.fixture
def controller(tmp_path, monkeypatch):
    with controlled(tmp_path, monkeypatch) as found:
        yield found


@pytest.mark.parametrize(
    ("concurrency", "topology"), [(1, "h100:16"), (2, "v5e:4x4")], ids=["one Job", "two JobSets"]
)
def test_every_run_is_a_job_of_its_own(controller, concurrency, topology, capsys):
    options = ["--concurrency", str(concurrency), "--then", "eval --workdir {workdir}"]
    assert sweep(*options, topology=topology) == 0
    assert sorted(controller.jobs()) == ["lr-a", "lr-a-then", "lr-b-x", "lr-b-x-then"]
    assert controller.most == concurrency
    assert states() == {"a": ("finished", 0), "b.X": ("finished", 0)}
    assert Path(".vitscale/.gitignore").read_text() == "*\n"
    if topology == "v5e:4x4":
        assert "/mnt/bucket/runs/lr/b.X" in words_of(controller, "lr-b-x")
        assert words_of(controller, "lr-a-then") == ["eval", "--workdir", "/mnt/bucket/runs/lr/a"]
    created = controller.asked("POST")
    assert sweep(*options, topology=topology) == 0  # what is done stays done
    assert controller.asked("POST") == created
    assert controller.asked("DELETE") == []


def test_a_crash_is_tried_again_after_its_own_job_is_deleted_and_a_mistake_is_not(
    controller, capsys
):
    controller.ends = {"lr-a": ["crash"], "lr-b-x": ["mistake"]}
    controller.api.add("jobsets", "lr", {"vitscale-launch": "lr-another"}, spec={}, status={})
    assert sweep("--concurrency", "2") == 1
    assert states() == {"a": ("finished", 0), "b.X": ("failed", 2)}
    assert controller.asked("DELETE") == ["lr-a"]
    out = capsys.readouterr().out
    assert "a: ended with code 1 (job lr-a: failed (too often); see vitscale launch gke logs" in out
    assert "b.X: failed: ended with code 2" in out
    assert sweep() == 0
    assert controller.asked("DELETE") == ["lr-a", "lr-b-x"]
    assert len(controller.asked("POST")) == 4


@pytest.mark.parametrize("ended", [False, True])
def test_a_killed_sweep_takes_its_jobs_over(controller, ended):
    controller.kill = True
    with pytest.raises(Killed):
        sweep()
    assert states() == {"a": ("running", None), "b.X": ("waiting", None)}
    if ended:
        controller.end("lr-a")
    # It is in this cluster, whichever is the kubeconfig's current one by now.
    config = Path("kubeconfig")
    here = config.read_text()
    config.write_text(here.replace('"current-context": "here"', '"current-context": "gone"'))
    assert sweep("--only", "a") == 0
    config.write_text(here)
    assert sweep() == 0
    assert len(controller.asked("POST")) == 2
    assert controller.asked("DELETE") == []


@pytest.mark.parametrize("end", ["wait", "done", "crash"])
def test_a_sweep_killed_before_it_noted_a_job_finds_that_by_its_name(controller, end, monkeypatch):
    def die(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SweepState, "save", lambda self: controller.jobs() and die(self))
        with pytest.raises(Killed):
            sweep()
    assert list(controller.jobs()) == ["lr-a"]
    assert not (STATE / "sweep.json").exists()
    controller.ends = {"lr-a": [end]}
    controller.end("lr-a")
    assert sweep("--only", "a") == 0
    # Only what failed was created again.
    assert len(controller.asked("POST")) == 1 + (end == "crash")
    assert controller.asked("DELETE") == ["lr-a"] * (end == "crash")


def test_a_create_that_nobody_answered_is_not_made_twice(controller, monkeypatch, capsys):
    def lose(*given):
        create(*given)
        raise Unreachable("nobody answers.")

    create = gke._create
    monkeypatch.setattr("launch.gke._create", lose)
    assert sweep() == 0
    assert capsys.readouterr().out.count("jobs go on meanwhile") == 2
    assert len(controller.asked("POST")) == 2


def test_a_cluster_that_does_not_answer_for_a_while(controller, monkeypatch, capsys):
    look, silent = gke.look, [True, True]

    def ask(record):
        if silent:
            silent.pop()
            raise Unreachable("the cluster cannot be reached.")
        return look(record)

    monkeypatch.setattr("launch.gke.look", ask)
    assert sweep() == 0
    assert capsys.readouterr().out.count("jobs go on meanwhile") == 1
    monkeypatch.setattr("launch.sweep_gke.SILENT_SECONDS", -1.0)
    Path("sweep.py").write_text("def get_sweep():\n    return [('c', {})]\n")
    silent += [True, True]
    assert sweep() == 2
    assert "the same command takes them over" in capsys.readouterr().err
    assert sweep() == 0
    assert len(controller.asked("POST")) == 3


def test_a_job_that_somebody_deleted_is_a_failure_like_others(controller, capsys):
    controller.ends = {"lr-a": ["wait"] * 9}
    end = controller.end

    def vanish(name):
        if controller.ends["lr-a"].count("wait") == 8:
            del controller.api.objects["jobsets", "lr-a"]
            controller.ends["lr-a"].clear()
        else:
            end(name)

    controller.end = vanish
    assert sweep("--only", "a") == 0
    assert "a: ended, nobody knows how (job lr-a was deleted)" in capsys.readouterr().out
    assert len(controller.asked("POST")) == 2


def test_what_a_deleted_job_has_left_is_deleted_before_another_is_created(controller):
    controller.kill = True
    with pytest.raises(Killed):
        sweep("--only", "a", topology="h100:16")
    del controller.api.objects["jobs", "lr-a"]
    assert controller.api.names() == ["services/lr-a"]
    controller.ends = {"lr-a": ["crash"]}
    assert sweep("--only", "a", "--retries", "0", topology="h100:16") == 1
    assert sweep("--only", "a", "--retries", "0", topology="h100:16") == 1
    assert controller.api.names() == ["jobs/lr-a", "services/lr-a"]
    assert states()["a"] == ("failed", 1)


def test_what_is_wrong_is_found_before_anything_is_asked(controller, capsys, monkeypatch):
    assert sweep("--name", "x" * 46) == 2
    said = capsys.readouterr().err
    assert f"run a: '{'x' * 46}-a' is no name for gke: at most 47 characters" in said
    assert "Give the run a shorter name, or a sweep that has not begun yet a shorter --name" in said
    assert sweep("--name", "x" * 42, "--then", "eval") == 2
    assert "-a-then' is no name for gke" in capsys.readouterr().err
    Path("sweep.py").write_text("def get_sweep():\n    return [('b.x', {}), ('b_x', {})]\n")
    assert sweep() == 2
    assert "b.x and b_x would both have a job 'lr-b-x'" in capsys.readouterr().err
    Path("sweep.py").write_text(SWEEP % 1)
    for options, words in [
        (("--name", "Two_Words"), "no name for gke"),
        (("--output", "x"), "leave out --output"),
        (("status",), "status is of one launch"),
        (("--image", "vitscale"), "names no fixed version"),
        (("--mount", "gs://another=/mnt/bucket"), "two volumes"),
    ]:
        assert sweep(*options) == 2
        assert words in capsys.readouterr().err
    assert sweep(workdir="/elsewhere/lr") == 2
    assert (
        "run a: --workdir /elsewhere/lr/a is not in a writable --mount" in capsys.readouterr().err
    )
    assert sweep("--dry-run") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2

    def refuse(command, topology, *, skip):
        if "--config.seed=2" in command:
            raise UserError("does not fit")
        return "fits"

    assert controller.api.requests == []
    monkeypatch.setattr("launch.sweep_gke.check_plan", refuse)
    assert sweep() == 2
    assert "run b.X: does not fit" in capsys.readouterr().err
    assert controller.api.objects == {}
    assert controller.asked("POST") == []


def test_another_workdir_and_another_command_of_the_same_name(controller, capsys):
    assert sweep("--only", "a") == 0
    assert sweep(workdir="/mnt/bucket/other/lr") == 2
    assert "is of the sweep in --workdir /mnt/bucket/runs/lr" in capsys.readouterr().err
    shutil.rmtree(STATE)
    assert sweep(workdir="/mnt/bucket/other/lr") == 2
    assert "launch 'lr-a' (context here) is there with another command" in capsys.readouterr().err
    assert sweep("--name", "lr2", workdir="/mnt/bucket/other/lr2") == 0
    assert sorted(controller.jobs()) == ["lr-a", "lr2-a", "lr2-b-x"]


def test_what_has_changed_is_done_again_in_a_folder_of_its_own(controller, capsys):
    assert sweep() == 0
    Path("sweep.py").write_text(SWEEP % 3)
    assert sweep() == 2
    assert "1 runs are there with other settings (a: overrides of seed)" in capsys.readouterr().err
    assert sweep("--redo") == 0
    assert controller.asked("DELETE") == ["lr-a"]
    assert "/mnt/bucket/runs/lr/a.redo-1" in words_of(controller, "lr-a")
    assert len(controller.asked("POST")) == 3
    assert sweep() == 0
    assert len(controller.asked("POST")) == 3


def test_cancel_deletes_only_what_the_sweep_has_created(controller, monkeypatch):
    controller.kill = True
    with pytest.raises(Killed):
        sweep()
    folder = STATE / "a" / "train"
    handle = json.loads((STATE / "sweep.json").read_text())["runs"]["a"]["handle"]
    assert handle == controller.jobs()["lr-a"]["metadata"]["labels"]["vitscale-launch"]
    assert gke.read(folder / RECORD_FILE).launch_id == handle
    words = ["launch", "gke", "--image", "i:1", "--topology", "v5e:4x4", "--sweep", "sweep.py"]
    arguments = make_parser().parse_args(words)
    place = command_line.sweep_place(arguments)
    controller.api.add("jobsets", "other", {"vitscale-launch": "lr-a-another"}, spec={})
    place.cancel("lr-a-another", folder)  # not the job of this folder
    assert sorted(controller.jobs()) == ["lr-a", "other"]
    place.cancel(handle, folder)
    assert list(controller.jobs()) == ["other"]
    place.cancel(handle, folder)  # gone already
    # Somebody else's, by the same name.
    controller.api.add("jobsets", "lr-a", {"vitscale-launch": "lr-a-another"}, spec={})
    place.cancel(handle, folder)
    assert sorted(controller.jobs()) == ["lr-a", "other"]
