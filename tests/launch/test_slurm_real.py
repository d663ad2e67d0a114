"""Jobs of a real Slurm, started for these tests: two tasks, cancelled, preempted, queued again, resumed."""

import json
import signal
import subprocess
import sys
import time

import pytest
from slurm_cluster import CannotStart, slurm_cluster
from xla_flags import QUICK

from launch import slurm_follow
from launch.job import Job
from launch.slurm import Launched, SlurmPlace, find_going, start, stop
from launch.slurm_commands import find_job, signal_steps
from launch.slurm_options import Options
from vitscale.config_loading import to_json
from vitscale.errors import EXIT_PREEMPTED, LaunchFailed, UserError
from vitscale.parallel.cluster import detect
from vitscale.train.metrics import read_metrics

# Stands in for a training run: counts to 100, saves on SIGTERM, which takes a second, and goes on where it was. Until
# it has saved once it is slow enough to be stopped.
COUNTER = """
import os, pathlib, signal, sys, time
rank, workdir = os.environ["SLURM_PROCID"], pathlib.Path(sys.argv[-1])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
saved = workdir / f"count-{rank}"
count = int(saved.read_text()) if saved.exists() else 0
pause = 0.01 if count else 0.3
print("starts at", count)
while count < 100 and not asked:
    (workdir / f"at-{rank}").touch()
    count += 1
    time.sleep(pause)
if count < 100:
    time.sleep(1)
    saved.write_text(str(count))
    print("saved at", count)
    sys.exit(75)
print("counted")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        with slurm_cluster(tmp_path_factory.mktemp("slurm")) as variables:
            yield variables
    except CannotStart as reason:
        pytest.skip(f"no Slurm here: {reason}")


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm_follow, "POLL", 0.3)
    monkeypatch.setattr(slurm_follow, "LOOK", 0.1)


@pytest.fixture
def program(tmp_path):
    """`program(text)`: an interpreter that runs `text` whatever it is asked to."""

    def write(text):
        (tmp_path / "program.py").write_text(text)
        path = tmp_path / "python stand-in"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -ISu "{tmp_path / "program.py"}" "$@"\n')
        path.chmod(0o755)
        return str(path)

    return write


def two(**changes):
    """Two tasks of the one node."""
    return Options(**{"processes_per_node": 2, "cpus_per_process": 1, **changes})


def await_start(launched):
    """Until both tasks of a counter count."""
    workdir = launched.folder.parents[1]
    await_that(lambda: all((workdir / f"at-{rank}").exists() for rank in range(2)), launched)


def await_that(condition, launched, seconds=90.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, logs(launched)
        time.sleep(0.05)


def preempt():
    """A job that needs all of the node and comes before those of partition `spot`."""
    words = ["sbatch", "--partition=urgent", "--ntasks=8", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(words, check=True, capture_output=True)


def logs(launched):
    return {path.name: path.read_text() for path in sorted(launched.folder.glob("*.log"))}


def test_two_tasks_find_each_other_and_nothing_else(on_cluster, program, tmp_path, monkeypatch):
    """Words, variables, GPUs, logs and codes on their way through sbatch, srun and back."""
    monkeypatch.setenv("NOT_YOURS", "of the submitter")
    python = program(
        "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)])); sys.exit(7)"
    )
    words = ("doctor", "a b", "it's", "$HOME", "", 'x"y', "%j\n*", "über")
    job = Job("shop", words, environment={"MINE": "a 'b' %t"})
    launched = start(job, two(python=python, gpus_per_node="h100:2"), tmp_path / "100% a b")
    with pytest.raises(LaunchFailed, match="FAILED with code 7"):
        slurm_follow.follow(launched, mine=True, grace=10)
    place = SlurmPlace(two())
    status = place.poll(launched.handle, launched.folder.parent)
    assert (status.running, status.code) == (False, 7)
    assert sorted(logs(launched)) == ["batch.log", "task-0.log", "task-1.log"]
    for rank in range(2):
        seen, environment = json.loads((launched.folder / f"task-{rank}.log").read_text())
        assert seen == ["-m", "vitscale.cli", *words]
        assert environment["MINE"] == "a 'b' %t"
        assert "NOT_YOURS" not in environment
        found = detect(environment)
        assert (found.kind, found.process_id, found.num_processes) == ("Slurm", rank, 2)
        assert found.local_device_ids == (rank,)  # its GPU of the node's two
    facts = json.loads((launched.folder / "launch.json").read_text())
    assert facts["command"] == str(job)


@pytest.mark.slow
def test_a_preempted_run_saves_is_queued_again_and_resumes(on_cluster, program, tmp_path):
    job = Job("count", ("train", "--workdir", str(tmp_path)))
    launched = start(job, two(python=program(COUNTER), partition="spot"), tmp_path / "launch")
    await_start(launched)
    preempt()
    slurm_follow.follow(launched, mine=False, grace=10)
    written = logs(launched)
    assert "queued again and goes on" in written["batch.log"]
    assert "queued again 1 times" in written["batch.log"]
    for rank in range(2):
        saved = int((tmp_path / f"count-{rank}").read_text())
        assert 0 < saved < 100
        own = [line for line in written[f"task-{rank}.log"].splitlines() if "slurm" not in line]
        expected = ["starts at 0", f"saved at {saved}", f"starts at {saved}", "counted"]
        assert own == expected


def test_a_cancelled_run_saves_and_is_not_queued_again(on_cluster, program, tmp_path):
    job = Job("count", ("train", "--workdir", str(tmp_path)))
    place = SlurmPlace(two(python=program(COUNTER)))
    base = tmp_path / "launch"
    handle = place.start(job, base, None)
    # A sweep that died before it wrote the handle down asks again.
    assert place.start(job, base, None) == handle
    (folder,) = (path for path in base.iterdir() if path.is_dir())
    await_start(Launched.of_handle(handle, base))
    assert place.poll(handle, base).running
    assert "was stopped and has saved" in slurm_follow.cancel_going(base, grace=30)
    status = place.poll(handle, base)
    assert (status.running, status.code) == (False, EXIT_PREEMPTED)
    assert int((tmp_path / "count-1").read_text()) > 0
    assert "queued again and goes on" not in (folder / "batch.log").read_text()


def test_jobs_of_others_are_left_alone(on_cluster, program, tmp_path):
    job = Job("count", ("train", "--workdir", str(tmp_path)))
    launched = start(job, two(python=program(COUNTER)), tmp_path / "launch")
    other = Launched(launched.job_id, tmp_path / "other")
    other.folder.mkdir()
    with pytest.raises(UserError, match="left alone"):
        stop(other)
    assert find_job(launched.job_id).going
    subprocess.run(["scancel", launched.job_id], check=True)
    with pytest.raises(LaunchFailed):
        slurm_follow.follow(launched, mine=False, grace=10)
    assert "queued again and goes on" not in str(logs(launched))


COMMAND = [sys.executable, "-m", "vitscale.cli", "launch", "slurm", "--processes-per-node", "2"]
COMMAND += ["--cpus-per-process", "1"]


@pytest.mark.slow
def test_ctrl_c_ends_what_the_command_submitted_and_nothing_else(on_cluster, program, tmp_path):
    """A second command that follows the same job lets it go on."""
    words = ["--follow", "--python", program(COUNTER), "--", "train", "--workdir", str(tmp_path)]
    first = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True)
    await_that(lambda: find_going(tmp_path / "launch"), None)
    launched = find_going(tmp_path / "launch")
    await_start(launched)
    second = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline() == f"[launch] job {launched.job_id}: RUNNING\n"
    second.send_signal(signal.SIGINT)
    said = second.communicate(timeout=60)[0]
    assert second.returncode == 130
    assert f"job {launched.job_id} goes on" in said
    assert find_job(launched.job_id).state == "RUNNING"
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130
    assert "[1] saved at" in said
    assert (launched.folder / "exit-code").read_text() == "75\n"
    assert not find_job(launched.job_id).going


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes on a machine that others use as well
def test_training_is_stopped_and_ends_as_if_it_had_not_been(on_cluster, make_config, tmp_path):
    """Two tasks train together through Slurm's own variables, are stopped, queued again, and go on."""
    config = make_config(duration=60, checkpoint__every_steps=1000)
    path = tmp_path / "config.py"
    path.write_text(f"import json\ndef get_config():\n    return json.loads({to_json(config)!r})\n")
    losses = {}
    for name in ("whole", "stopped"):
        workdir = tmp_path / name
        words = ("train", "--config", str(path), "--workdir", str(workdir))
        job = Job(name, words, workdir=str(workdir), environment={"XLA_FLAGS": QUICK})
        launched = start(job, two(devices=2), workdir / "launch")
        if name == "stopped":
            await_that(lambda at=workdir: any(row["step"] > 3 for row in rows(at)), launched)
            signal_steps(launched.job_id, "TERM")  # what Slurm does, at once
        slurm_follow.follow(launched, mine=False, grace=10)
        losses[name] = {row["step"]: row["train/loss"] for row in rows(workdir)}
        assert "Slurm: process 1 of 2" in logs(launched)["task-1.log"]
    assert "stopped by SIGTERM after step" in logs(launched)["task-0.log"]
    assert "queued again 1 times" in logs(launched)["batch.log"]
    assert losses["stopped"] == pytest.approx(losses["whole"], rel=1e-3)
    assert max(losses["stopped"]) == 60


def rows(workdir):
    return read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
