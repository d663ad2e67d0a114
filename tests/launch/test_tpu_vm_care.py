"""What a launch on TPU VMs must not do to a run that is well, nor leave unsaid about chips that cost."""

import json
import shutil

import pytest
from tpu_cloud import TestCloud, git

from launch.code_bundle import digest
from launch.gcloud import GcloudFailed
from launch.tpu_workers import Outcome, Status
from vitscale.cli import main
from vitscale.cli_launch import tpu_vm as command_line
from vitscale.errors import EXIT_PREEMPTED, LaunchFailed, UserError


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    return TestCloud(tmp_path, monkeypatch)


@pytest.mark.parametrize("health", ["HEALTHY", "UNHEALTHY_MAINTENANCE"])
def test_chips_are_not_deleted_because_ssh_is_blocked_here(cloud, monkeypatch, health):
    monkeypatch.setattr("launch.tpu_vm.SILENT_SECONDS", 100.0)
    (cloud.workdir / "wait-3").touch()
    cloud.plan({"on": "ssh", "nth": 4, "times": 99, "fail": "ssh", "set": {"health": health}})
    session = cloud.launch(recreate=0)
    if health == "HEALTHY":
        with pytest.raises(UserError, match=r"nothing was deleted; mend the connection"):
            session.run()
        assert cloud.calls("delete") == []
        assert cloud.resources()["b16"]["state"] == "ACTIVE"
        assert "its chips cost" in cloud.said[-1]
        (cloud.workdir / "wait-3").unlink()  # the run goes on, to its end
    else:  # the cloud says so too
        with pytest.raises(LaunchFailed, match="b16: UNHEALTHY_MAINTENANCE"):
            session.run()
        assert cloud.resources() == {}


def test_a_notice_that_came_to_nothing_is_no_failure_of_the_run(cloud, monkeypatch, capsys):
    monkeypatch.setattr("launch.tpu_vm.NOTICE_SECONDS", 2.0)
    (cloud.workdir / "end-2").write_text("75")
    session = cloud.launch(restart=0)
    session.run()
    assert cloud.steps() == {"step-b16-0": 6}
    assert len(cloud.calls("create")) == 1
    assert "start at 2" in capsys.readouterr().out
    assert session.launch.restarted == 0


def test_saving_and_stopping_again_and_again_has_an_end(cloud):
    session = cloud.launch(recreate=1)
    session._go_on_where_it_is()
    with pytest.raises(LaunchFailed, match="--recreate") as failed:
        session._go_on_where_it_is()
    assert failed.value.code == EXIT_PREEMPTED


def test_whatever_goes_wrong_what_stays_and_costs_is_said(cloud):
    session = cloud.launch()
    session.up()
    cloud.plan({"on": "describe", "times": 99, "fail": "unavailable"})
    with pytest.raises(GcloudFailed, match="UNAVAILABLE"):
        cloud.launch().run()
    assert "its chips cost" in cloud.said[-1]

    cloud.plan()
    session = cloud.launch()
    session.follow = lambda: Outcome("ended", 0)
    session.resource.delete = lambda: (_ for _ in ()).throw(RuntimeError("does not go"))
    with pytest.raises(RuntimeError):
        session.run()
    assert "its chips cost" in cloud.said[-1]


def test_an_answer_that_is_no_json_is_an_error_of_gcloud(cloud):
    session = cloud.launch()
    session.gcloud.call = lambda *words: "<html>"
    with pytest.raises(GcloudFailed, match="did not answer in JSON: '<html>'"):
        session.resource.look()


def test_a_stop_that_takes_longer_than_others_wait_is_still_a_stop(cloud):
    session = cloud.launch()
    session.workers.log = lambda run, offset: ("", offset)
    session.workers.statuses = lambda run: [
        Status("w0", "stopped", EXIT_PREEMPTED),
        Status("w1", "running"),
    ]
    session.gcloud.sleep = lambda seconds: setattr(cloud, "now", cloud.now + 100)
    assert session.follow() == Outcome("stopped", EXIT_PREEMPTED, "w0")


def test_a_run_is_started_on_chips_that_know_nothing_of_the_last_one(cloud, monkeypatch):
    session = cloud.launch()
    session.up()
    session.start()
    (cloud.folder / "resources.json").unlink()  # taken, with its disks
    shutil.rmtree(cloud.folder / "workers")
    session = cloud.launch()
    session.up()
    assert session.status() == [("b16", "ACTIVE")]
    assert session.stop() == Outcome("absent")
    session.start_anew()
    assert session.launch.run == 2
    # An update of vitscale on this machine, while the run goes on there.
    monkeypatch.setattr("launch.tpu_workers.script_name", lambda: "tpu_worker-new.sh")
    assert len(cloud.launch().status()) == 2


def test_code_and_commit_are_of_one_launch_whenever_it_dies(cloud):
    session = cloud.launch()
    first = session._bundle(False)
    content = digest(first.path)
    git(cloud.repository, "commit", "--quiet", "--allow-empty", "-m", "second")
    session = cloud.launch()
    session._save = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        session._bundle(True)
    again = cloud.launch()._bundle(False)
    assert (again.commit, digest(again.path)) == (first.commit, content)

    newest = cloud.launch()._bundle(True)
    assert newest.commit != first.commit
    assert [path.name for path in newest.path.parent.iterdir()] == [newest.path.name]


WORDS = ["train", "--config", "c.py", "--workdir", "/mnt/bucket/w"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--spot", "--", *WORDS], "tier 'on-demand', and not 'spot'"),
        (["--valid-until", "6h", "--", *WORDS], "with valid_until"),
        (["--runtime", "x", "--", *WORDS], "with runtime"),
        (["--service-account", "a@b", "--", *WORDS], "with service_account"),
        (["--internal-ips", "--", *WORDS], "with internal_ips False, and not True"),
        (["--env", "A=2", "--", *WORDS], "with environment {'A': '1'}, and not {'A': '2'}"),
        (["--secret", "K=wandb", "--", *WORDS], "with secrets"),
        (["--env", "A=2"], "belong to a command"),
        (["--env-file", "/e"], "belong to a command"),
    ],
)
def test_words_that_would_be_ignored_are_refused(cloud, monkeypatch, capsys, words, said):
    monkeypatch.chdir(cloud.repository)
    session = cloud.launch(tier="on-demand")
    session.launch.command, session.launch.environment = tuple(WORDS), {"A": "1"}
    session.launch.bucket = "data"
    session._save()
    assert main(["launch", "tpu-vm", "--name", "b16", *words]) == 2
    assert said in capsys.readouterr().err
    assert cloud.calls() == []
    assert cloud.launch().launch == session.launch


def test_another_command_on_the_same_chips_is_planned_too(cloud, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "launch.preflight.check_plan", lambda command, *_, skip: asked.append(command[-1])
    )
    arguments = type("Arguments", (), {"dry_run": False, "skip_plan": False})
    session = cloud.launch()
    for workdir, run in (("a", 0), ("a", 1), ("b", 2), ("b", 3)):
        session.launch.command, session.launch.run = ("train", "--workdir", workdir), run
        command_line._check_plan(arguments, session)
        session._save()
        session = cloud.launch()
    assert asked == ["a", "b"]


def test_what_an_older_version_has_written_is_read(cloud):
    session = cloud.launch()
    session._save()
    path = session.launches.path("b16")
    document = json.loads(path.read_text())
    del document["planned"], document["script"]
    path.write_text(json.dumps(document))
    assert session.launches.read("b16") == session.launch


@pytest.mark.parametrize("going", [True, False])
def test_what_fails_beside_a_run_that_is_going_does_not_cost_its_chips(cloud, monkeypatch, going):
    session = cloud.launch()
    state = "running" if going else "absent"
    monkeypatch.setattr(session, "_known_statuses", lambda: [Status("b16-0", state)])
    monkeypatch.setattr(session, "_check_capacity", lambda failed, since: None)
    expected = UserError if going else LaunchFailed
    with pytest.raises(expected, match="pip install"):
        session._check_capacity_or_fail(GcloudFailed("other", "pip install: no space"))
