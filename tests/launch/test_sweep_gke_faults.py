"""Sweeps on GKE while the cluster, the network or the sweep itself is not well."""

import json
import shutil
from pathlib import Path

import pytest
from sweep_cluster import STATE, Killed, controlled, needs_kubectl, states, sweep

from launch import gke
from launch.kubectl import Kubectl, Unreachable

pytestmark = needs_kubectl
RECORD = Path(".vitscale/launch/gke/lr-a.json")


@pytest.fixture
def controller(tmp_path, monkeypatch):
    with controlled(tmp_path, monkeypatch) as found:
        yield found


def test_a_failed_job_of_kubernetes_is_seen_as_ended(controller, capsys):
    """FailureTarget stays true beside Failed."""
    controller.ends = {"lr-a": ["crash"], "lr-b-x": ["mistake"]}
    assert sweep(topology="h100:16") == 1
    assert states() == {"a": ("finished", 0), "b.X": ("failed", 2)}
    assert "a: ended with code 1 (job lr-a: failed (too often)" in capsys.readouterr().out


def test_a_job_whose_pods_still_end_has_not_ended(controller):
    controller.kill = True
    with pytest.raises(Killed):
        sweep("--only", "a", topology="h100:16")
    controller.ends = {"lr-a": ["ending"]}
    controller.end("lr-a")
    standing = gke.look(gke.read(RECORD))
    assert (standing.state, standing.ended) == ("failing", False)


def test_a_workdir_is_of_one_sweep(controller, capsys):
    controller.kill = True
    with pytest.raises(Killed):
        sweep("--only", "a")
    assert sweep("--only", "a", "--name", "lr2") == 2
    assert "start it by the --name that it began with (lr)" in capsys.readouterr().err
    assert list(controller.jobs()) == ["lr-a"]
    assert sweep("--only", "a", "--name", "lr") == 0
    assert len(controller.asked("POST")) == 1


TROUBLE = [
    (429, "TooManyRequests", "too many requests"),
    (500, "InternalError", "Internal error occurred: etcdserver: leader changed"),
    (500, "", "etcdserver: request timed out"),
    (503, "ServiceUnavailable", "the server is currently unable to handle the request"),
    (504, "Timeout", "Timeout: request did not complete within the allotted timeout"),
]


@pytest.mark.parametrize("trouble", TROUBLE, ids=[f"{each[0]}-{each[1]}" for each in TROUBLE])
def test_an_api_server_in_trouble_is_asked_again(controller, capsys, trouble):
    """While a job runs, and when one is to start."""
    controller.ends = {"lr-a": ["wait"] * 4}
    wait, times = controller.wait, []

    def stumble(seconds):
        times.append(seconds)
        controller.api.trouble = trouble if len(times) == 2 else None
        return wait(seconds)

    controller.wait = stumble
    controller.api.trouble = trouble
    assert sweep() == 0
    assert capsys.readouterr().out.count("jobs go on meanwhile") == 2
    assert len(controller.asked("POST")) == 3  # of which the first was refused


def test_a_cluster_that_stays_away_when_a_job_is_to_start(controller, capsys, monkeypatch):
    monkeypatch.setattr("launch.sweep_gke.SILENT_SECONDS", -1.0)
    controller.api.trouble = TROUBLE[1]
    assert sweep() == 2
    assert "the same command takes them over" in capsys.readouterr().err
    assert states()["a"] == ("waiting", None)


def test_a_refused_connection_is_no_mistake_of_ours(controller):
    config = Path("kubeconfig")
    config.write_text(config.read_text().replace(controller.api.url, "http://127.0.0.1:1"))
    with pytest.raises(Unreachable):
        Kubectl("here", "default").get("jobs", "a=b")


@pytest.mark.parametrize("topology", ["v5e:4x4", "h100:16"])
def test_a_create_that_lands_after_its_sweep_was_killed(controller, monkeypatch, topology):
    run, late = Kubectl.run, []

    def slow(self, *words, given=None):
        if words[0] == "create" and not late:
            late.append((self, words, given))
            raise Killed
        if words[0] == "create":  # now it arrives, just before the second
            run(late[0][0], *late[0][1], given=late[0][2])
        return run(self, *words, given=given)

    with monkeypatch.context() as patch:
        patch.setattr(Kubectl, "run", slow)
        with pytest.raises(Killed):
            sweep("--only", "a", topology=topology)
        assert sweep("--only", "a", topology=topology) == 0
    assert list(controller.jobs()) == ["lr-a"]
    label = controller.jobs()["lr-a"]["metadata"]["labels"]["vitscale-launch"]
    assert gke.read(RECORD).launch_id == label
    assert controller.asked("DELETE") == []


def test_a_late_create_of_another_command_is_not_forgotten(controller, monkeypatch, capsys):
    run, late = Kubectl.run, []

    def slow(self, *words, given=None):
        if words[0] == "create" and not late:
            late.append((self, words, given))
            raise Killed
        if words[0] == "create":
            run(late[0][0], *late[0][1], given=late[0][2])
        return run(self, *words, given=given)

    with monkeypatch.context() as patch:
        patch.setattr(Kubectl, "run", slow)
        with pytest.raises(Killed):
            sweep("--only", "a")
        shutil.rmtree(STATE.parent)
        assert sweep("--only", "a", workdir="/mnt/bucket/other/lr") == 2
    label = controller.jobs()["lr-a"]["metadata"]["labels"]["vitscale-launch"]
    assert gke.read(RECORD).launch_id == label


def test_a_record_of_a_cluster_that_is_gone_says_the_way_out(controller, capsys):
    assert sweep("--only", "a") == 0
    shutil.rmtree(STATE)
    document = json.loads(RECORD.read_text())
    RECORD.write_text(json.dumps({**document, "context": "old-cluster"}))
    assert sweep("--only", "a") == 2
    said = capsys.readouterr().err
    assert "If its cluster is gone, remove " in said
    assert str(RECORD) in said
    RECORD.unlink()
    del controller.api.objects["jobsets", "lr-a"]
    assert sweep("--only", "a") == 0


def test_a_job_that_somebody_deletes_is_waited_for(controller, monkeypatch):
    """Its pods save in the workdir until they are gone."""
    controller.kill = True
    with pytest.raises(Killed):
        sweep("--only", "a")
    shutil.rmtree(STATE)
    controller.api.saving = True
    record, run = gke.read(RECORD), Kubectl.run
    gke.delete(record, RECORD.parent.absolute())
    assert RECORD.exists()

    def wait(self, *words, given=None):
        if words[0] == "delete":
            assert "--cascade=foreground" in words
            assert "--wait=false" not in words
            controller.api.let_go()
            controller.api.saving = False
            return ""
        return run(self, *words, given=given)

    monkeypatch.setattr(Kubectl, "run", wait)
    assert sweep("--only", "a") == 0
    assert len(controller.asked("POST")) == 2
    assert gke.read(RECORD).launch_id != record.launch_id
