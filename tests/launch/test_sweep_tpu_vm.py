"""Sweeps on TPU VMs: real processes that ask a stand-in cloud for chips, killed and stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from tpu_cloud import TestCloud, git

from launch.job import Job
from launch.sweep import Status
from launch.tpu_end import run_until_asked
from launch.tpu_launches import Launches
from vitscale.cli import main, make_parser
from vitscale.cli_launch import tpu_vm_sweep
from vitscale.config_loading import to_json
from vitscale.errors import Preempted, UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
OPTIONS = [
    *("--topology", "v5e:2x2", "--zone", "us-west4-a", "--spot", "--own-disk", "--skip-plan"),
    *("--poll-seconds", "0.05"),
]


class SweepCloud(TestCloud):
    """A cloud, and a sweep of two runs on it; their workdirs are in its bucket."""

    def __init__(self, folder: Path, monkeypatch, config: str) -> None:
        super().__init__(folder, monkeypatch)
        self.bucket = self.folder / "bucket" / "lr"
        (folder / "config.py").write_text(
            f"import json\ndef get_config():\n    return json.loads({config!r})\n"
        )
        (folder / "sweep.py").write_text(
            "def get_sweep():\n    return [('a', {'seed': 1}), ('b', {'seed': 2})]\n"
        )
        monkeypatch.chdir(self.repository)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # not the repository's
        monkeypatch.setattr("launch.sweep.BACK_OFF", 0.0)
        self.state = self.repository / ".vitscale" / "launch" / "tpu-vm-sweeps" / "lr"
        self.started: list[subprocess.Popen] = []

    def words(self, *options: str) -> list[str]:
        return [
            *("launch", "tpu-vm", "--sweep", "../sweep.py", *OPTIONS, *options, "--"),
            *("train", "--config", "../config.py", "--workdir", str(self.bucket)),
        ]

    def start(self, *options: str) -> subprocess.Popen:
        """The sweep in a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "vitscale.cli", *self.words(*options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def hold(self, name: str, step: int) -> Path:
        """A run waits at this step until the file is gone."""
        file = self.bucket / name / f"wait-{step}"
        file.parent.mkdir(parents=True)
        file.touch()
        return file

    def await_step(self, name: str, step: int, process: subprocess.Popen) -> None:
        file, until = self.bucket / name / f"step-lr-{name}-0", time.monotonic() + 100
        while not file.exists() or file.read_text().strip() != str(step):
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)

    def states(self) -> dict[str, tuple[str, int | None]]:
        runs = json.loads((self.state / "sweep.json").read_text())["runs"]
        return {name: (run["state"], run["code"]) for name, run in runs.items()}

    def changed(self) -> list[str]:
        """create NAME and delete NAME, in order."""
        return [f"{w[1]} {w[2]}" for w in self.calls() if w[1] in ("create", "delete")]

    def log(self, name: str, stage: str = "train") -> str:
        return (self.state / name / stage / "log.txt").read_text()

    def processes(self, name: str) -> list[int]:
        """That launch a run: the sweep's, and the launcher that it started."""
        first = json.loads((self.state / name / "train" / ".lock").read_text())["pid"]
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]


@pytest.fixture
def cloud(tmp_path, monkeypatch, make_config):
    found = SweepCloud(tmp_path, monkeypatch, to_json(make_config()))
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen, code: int) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    return out


def test_every_run_has_chips_of_its_own(cloud, capsys):
    (cloud.bucket / "a").mkdir(parents=True)
    (cloud.bucket / "a" / "end-2").write_text("1")
    options = ["--concurrency", "2", "--env", "GREETING=hello"]
    assert main(cloud.words(*options)) == 0
    changed = cloud.changed()
    assert [changed.count(f"create {name}") for name in ("lr-a", "lr-b")] == [2, 1]  # a failed once
    assert cloud.resources() == {}
    assert Launches(cloud.repository).names() == []
    assert cloud.states() == {"a": ("finished", 0), "b": ("finished", 0)}
    assert "hello" in cloud.log("a")
    assert "start at 2" in cloud.log("a")
    assert "a: ended with code 1 (" in capsys.readouterr().out
    assert git(cloud.repository, "status", "--porcelain") == ""
    assert main(cloud.words(*options)) == 0
    assert cloud.changed() == changed


@pytest.mark.slow
def test_one_after_another_each_with_what_follows_it(cloud):
    assert main(cloud.words("--then", "eval --workdir {workdir}", "--retries", "0")) == 0
    names = ["lr-a", "lr-a-then", "lr-b", "lr-b-then"]
    assert cloud.changed() == [f"{what} {name}" for name in names for what in ("create", "delete")]


def test_a_killed_sweep_takes_over_what_goes_on_without_it(cloud):
    held = cloud.hold("a", 2)
    sweep = cloud.start("--only", "a")
    cloud.await_step("a", 2, sweep)
    sweep.kill()
    sweep.wait()
    again = cloud.start("--only", "a")
    time.sleep(0.5)
    held.unlink()
    finish(again, 0)
    assert cloud.changed() == ["create lr-a", "delete lr-a"]
    assert cloud.log("a").count("start at") == 1


def test_killed_with_its_launchers_it_takes_over_the_chips(cloud):
    held = cloud.hold("a", 2)
    sweep = cloud.start("--only", "a")
    cloud.await_step("a", 2, sweep)
    sweep.kill()
    sweep.wait()
    # As a machine that loses its power: nobody gets a signal, nobody writes a last word.
    first, second = cloud.processes("a")
    os.kill(second, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    assert cloud.resources()["lr-a"]["state"] == "ACTIVE"
    held.unlink()
    assert main(cloud.words("--only", "a")) == 0
    assert cloud.changed() == ["create lr-a", "delete lr-a"]
    assert cloud.log("a").count("start at") == 1


def test_what_ended_while_no_sweep_was_there_is_not_done_again(cloud, monkeypatch):
    started = []
    monkeypatch.setattr(
        "launch.sweep_local.LocalPlace.start", lambda *given: started.append(given) or "8"
    )
    arguments = make_parser().parse_args(cloud.words()[:-6])
    place, job = tpu_vm_sweep.place_of(arguments), Job("lr-a", ("doctor",))
    folder = cloud.state / "a" / "train"
    folder.mkdir(parents=True)
    command = tpu_vm_sweep.run_words(arguments, "lr-a", job.command)
    (folder / "job.json").write_text(json.dumps({"command": command}))
    (folder / "ended.json").write_text(json.dumps({"pid": 7, "code": 1, "words": "no"}))
    assert place.start(job, folder, None) == "7"  # the sweep was killed before it wrote that down
    assert started == []
    assert place.poll("7", folder) == Status(running=False, code=1, words="no")
    # Chips of a launch that is still there are not forgotten.
    (cloud.repository / ".vitscale" / "launch" / "lr-a.json").write_text("{}")
    assert "its chips cost until" in place.poll("7", folder).words
    assert place.start(job, folder, "7") == "8"  # it failed, and that is known
    assert place.start(Job("lr-a", ("eval",)), folder, None) == "8"


def test_a_stopped_sweep_saves_and_deletes_its_chips(cloud):
    cloud.hold("a", 2)
    sweep = cloud.start("--only", "a")
    cloud.await_step("a", 2, sweep)
    sweep.send_signal(signal.SIGTERM)
    finish(sweep, 75)
    assert cloud.states() == {"a": ("waiting", 75)}
    assert cloud.resources() == {}
    assert cloud.changed() == ["create lr-a", "delete lr-a"]
    assert "saves, then its chips are deleted" in cloud.log("a")
    assert Launches(cloud.repository).names() == []


@pytest.mark.parametrize("when", ["waiting", "running", "deleting"])
def test_asked_to_end_no_chips_stay(cloud, monkeypatch, when):
    monkeypatch.setattr("launch.tpu_end.on_termination", lambda: nullcontext(asked))
    (cloud.workdir / "wait-2").touch()
    session = cloud.launch()
    asked = Asked(cloud, when)
    session.gcloud.sleep = asked.sleep
    if when == "deleting":  # the end that it was at is not an end that was asked for
        (cloud.workdir / "wait-2").unlink()
        run_until_asked(session, keep=False)
    else:
        with pytest.raises(Preempted, match="its chips are deleted"):
            run_until_asked(session, keep=False)
    assert cloud.resources() == {}
    assert Launches(cloud.repository).names() == []
    assert list(cloud.steps().values()) == {"waiting": [], "running": [2], "deleting": [6]}[when]


class Asked:
    """The event that a signal sets: when the chips are waited for, when the run is at a step, when they go."""

    def __init__(self, cloud, when: str) -> None:
        self.cloud, self.when = cloud, when

    def wait(self, seconds: float) -> bool:
        self.sleep(seconds)
        return {
            "waiting": True,
            "running": list(self.cloud.steps().values()) == [2],
            "deleting": bool(self.cloud.calls("delete")),
        }[self.when]

    def sleep(self, seconds: float) -> None:
        self.cloud.sleep(seconds)


def test_a_run_that_cannot_be_asked_to_save_keeps_its_chips(cloud, monkeypatch):
    monkeypatch.setattr("launch.tpu_end.on_termination", lambda: nullcontext(asked))
    (cloud.workdir / "wait-2").touch()
    session = cloud.launch()
    asked = Asked(cloud, "running")
    session.gcloud.sleep = asked.sleep

    def refuse():
        raise UserError("sign in again")

    session.stop = refuse
    with pytest.raises(UserError, match="sign in"):
        run_until_asked(session, keep=False)
    assert "its chips cost" in cloud.said[-1]
    assert cloud.resources()["b16"]["state"] == "ACTIVE"
    (cloud.workdir / "wait-2").unlink()  # and the run comes to its end


def test_what_is_wrong_is_found_before_anything_is_asked(cloud, capsys, monkeypatch):
    for options, words in [
        (("--name", "x" * 63), "run a: 'xxx"),
        (("--name", "Two_Words"), "is no name for tpu-vm"),
        (("--keep",), "leave out --keep"),
        (("stop",), "stop is of one launch"),
        (("--recreate", "-1"), "--recreate must be at least 0"),
        (("--topology", "v5e:3x3"), "v5e:4x4"),
        (("--zone", "us-west4-b"), "us-west4-a"),
        (("--env", "HF_TOKEN=abc"), "--secret VARIABLE=NAME"),
    ]:
        assert main(cloud.words(*options)) == 2
        assert words in capsys.readouterr().err
    words = [word for word in cloud.words() if word != "--own-disk"]
    assert main(words) == 2
    assert "is not below /mnt/bucket" in capsys.readouterr().err
    (cloud.repository / "new.py").write_text("")
    assert main(cloud.words()) == 2
    assert "1 files are not committed (new.py)" in capsys.readouterr().err
    (cloud.repository / "new.py").unlink()
    assert main(cloud.words("--dry-run")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2

    def refuse(command, topology, *, skip):
        raise UserError("does not fit")

    monkeypatch.setattr("launch.sweep_tpu_vm.check_plan", refuse)
    assert main(cloud.words()) == 2
    assert "run a: does not fit" in capsys.readouterr().err
    assert cloud.calls() == []


def test_a_run_is_launched_with_the_options_of_the_sweep():
    """Every option of `run` is told to the run's launch, or named here with the reason why not."""
    parser = make_parser()
    left_out = {
        *("command", "handler", "place", "action", "inner_command", "takes_overrides", "debug"),
        *("name", "skip_plan", "stop_on_sigterm", "dry_run"),  # the sweep says them itself
        *("keep", "follow", "lines"),  # refused, and of other actions
        *("sweep", "only", "concurrency", "retries", "then", "redo"),
    }
    words = [
        *("launch", "tpu-vm", "--topology", "v5e:4x4", "--zone", "z", "--any-zone", "--spot"),
        *("--project", "p", "--valid-until", "6h", "--runtime", "r", "--network", "n"),
        *("--subnetwork", "s", "--internal-ips", "--service-account", "e", "--bucket", "b"),
        *("--own-disk", "--secret", "A=b", "--secret", "C=d", "--env-file", "f"),
        *("--env", "E=1 2", "--with-uncommitted", "--recreate", "3", "--restarts", "4"),
        *("--poll-seconds", "5"),
    ]
    for tier in ("--spot", "--reserved"):
        given = parser.parse_args([tier if word == "--spot" else word for word in words])
        told = parser.parse_args(tpu_vm_sweep.run_words(given, "lr-a", [])[:-1])
        assert vars(given).keys() - left_out == set(tpu_vm_sweep.OPTIONS)
        for option in tpu_vm_sweep.OPTIONS:
            assert getattr(told, option) == getattr(given, option), option
        assert (told.name, told.skip_plan, told.stop_on_sigterm) == ("lr-a", True, True)
