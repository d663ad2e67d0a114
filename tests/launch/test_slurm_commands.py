"""What is done when Slurm's controller is slow, away, or speaks of somebody else's job; with stand-ins on PATH."""

import json
import os
import sys
import threading

import pytest

from launch import slurm, slurm_commands, slurm_follow
from launch.job import Job
from launch.slurm import Launched, SlurmPlace, base_folder, find_going, start
from launch.slurm_options import Options
from vitscale.cli import main
from vitscale.errors import LaunchFailed, UserError

STAND_IN = f"""#!{sys.executable} -IS
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
name = pathlib.Path(__file__).name
with (folder / "calls.jsonl").open("a") as log:
    print(json.dumps([[name, *sys.argv[1:]], sorted(os.environ)]), file=log)
answers = folder / (name + ".json")
left = json.loads(answers.read_text())
code, out, err = left[0]
if len(left) > 1:
    answers.write_text(json.dumps(left[1:]))
print(out, end="")
print(err, end="", file=sys.stderr)
sys.exit(code)
"""
BUSY = (1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv")
JOB = Job("shop", ("train", "--config", "x.py"))


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """`slurm_says(squeue=[(code, out, err), ...])`: answers one after the other, the last for ever.

    Gives a function that returns the calls so far.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(slurm_commands, "RETRY_EVERY", 0.01)
    monkeypatch.setattr(slurm, "FILES_DELAY", 0.3)
    monkeypatch.setattr(slurm_follow, "POLL", 0.0)
    monkeypatch.setattr(slurm_follow, "LOOK", 0.01)
    monkeypatch.chdir(tmp_path)

    def say(**answers):
        for name in ("sbatch", "squeue", "scancel"):
            (programs / name).write_text(STAND_IN)
            (programs / name).chmod(0o755)
            (programs / f"{name}.json").write_text(json.dumps(answers.get(name, [(0, "", "")])))

        def calls():
            log = programs / "calls.jsonl"
            return [json.loads(line)[0] for line in log.read_text().splitlines()]

        return calls

    return say


@pytest.fixture
def launched(tmp_path):
    """A launch that was submitted as job 12."""
    folder = tmp_path / "launch" / "mine"
    folder.mkdir(parents=True)
    (folder / slurm.SCRIPT).touch()
    return Launched("12", folder)


def job(state, label="mine", reason="None"):
    return (0, f"12|{state}|vitscale-launch={label}|{reason}\n", "")


def test_the_callers_allocation_is_not_the_new_jobs(slurm_says, tmp_path, monkeypatch):
    slurm_says(sbatch=[(0, "12;cluster\n", "")])
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    assert start(JOB, Options(), tmp_path / "runs").job_id == "12"
    seen = json.loads((tmp_path / "bin" / "calls.jsonl").read_text())[1]
    assert "SLURM_CONF" in seen
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION"} & set(seen)


def test_what_was_launched_is_written_down(slurm_says, tmp_path, monkeypatch):
    slurm_says(sbatch=[(0, "12\n", "")])
    monkeypatch.setenv("MY_TOKEN", "sesame-open")
    folder = start(JOB, Options(), tmp_path / "runs").folder
    facts = json.loads((folder / "launch.json").read_text())
    assert facts["command"] == "vitscale train --config x.py"
    assert facts["directory"] == str(tmp_path)
    assert json.loads((folder / "submitted.json").read_text()) == {
        "job": "12",
        "label": folder.name,
    }
    assert any(
        line.startswith("jax==") for line in (folder / "packages.txt").read_text().splitlines()
    )
    assert not any("sesame-open" in path.read_text() for path in folder.iterdir())


def test_changes_that_are_not_committed_are_kept_without_secrets(slurm_says, tmp_path, monkeypatch):
    slurm_says(sbatch=[(0, "12\n", "")])
    monkeypatch.setenv("MY_TOKEN", "sesame-open")
    git = "git -c user.name=n -c user.email=e"
    file = tmp_path / "code.py"
    file.write_text("a = 1\n")
    assert os.system(f"git init -q . && git add code.py && {git} commit -q -m first") == 0
    file.write_text("a = 'sesame-open'\n")
    folder = start(JOB, Options(), tmp_path / "runs").folder
    patch = (folder / "changes.patch").read_text()
    assert "+a = '***'" in patch
    facts = json.loads((folder / "launch.json").read_text())
    assert len(facts["commit"]) == 40
    assert " M code.py" in facts["not_committed"]


def test_a_job_that_was_taken_without_an_answer_is_not_submitted_twice(
    slurm_says, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm, "new_launch", lambda base: base / "mine")
    calls = slurm_says(sbatch=[BUSY], squeue=[job("RUNNING")])
    assert start(JOB, Options(), tmp_path / "launch").job_id == "12"
    assert [call[0] for call in calls()] == ["sbatch", "squeue"]


def test_a_busy_controller_is_asked_again(slurm_says, tmp_path):
    calls = slurm_says(sbatch=[BUSY, BUSY, (0, "12\n", "")], squeue=[BUSY, job("RUNNING", "other")])
    assert start(JOB, Options(), tmp_path / "launch").job_id == "12"
    assert [call[0] for call in calls()].count("sbatch") == 3


def test_what_slurm_refuses_is_said(slurm_says, tmp_path):
    slurm_says(sbatch=[(1, "", "sbatch: error: invalid partition specified: x\n")])
    with pytest.raises(UserError, match="invalid partition specified: x"):
        start(JOB, Options(), tmp_path / "launch")


def test_a_machine_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on PATH"):
        start(JOB, Options(), tmp_path / "launch")


@pytest.mark.parametrize("end", [slurm.stop, slurm.kill])
def test_only_what_this_launch_submitted_is_ended(slurm_says, launched, end):
    """Numbers of jobs start again: 12 may be somebody else's by now."""
    for label in ("other", ""):
        calls = slurm_says(squeue=[job("RUNNING", label)])
        with pytest.raises(UserError, match="it is left alone"):
            end(launched)
    assert not [call for call in calls() if call[0] == "scancel"]


@pytest.mark.parametrize(
    ("state", "words"),
    [("RUNNING", ["--signal=TERM", "12"]), ("PENDING", ["12"]), ("COMPLETED", None)],
)
def test_a_running_job_is_asked_and_a_waiting_one_is_cancelled(slurm_says, launched, state, words):
    calls = slurm_says(squeue=[job(state)])
    slurm.stop(launched)
    assert [call[1:] for call in calls() if call[0] == "scancel"] == ([words] if words else [])
    assert (launched.folder / "stop").exists()


def test_a_running_job_is_found_by_its_label(slurm_says, launched):
    slurm_says(squeue=[(0, "11|RUNNING|(null)|None\n12|RUNNING|vitscale-launch=mine|None\n", "")])
    assert find_going(launched.folder.parent) == launched
    slurm_says(squeue=[job("COMPLETED")])
    assert find_going(launched.folder.parent) is None
    assert find_going(launched.folder / "none") is None


def test_codes_of_ended_jobs(slurm_says, launched):
    base = launched.folder.parent
    gone = (1, "", "slurm_load_jobs error: Invalid job id specified\n")
    place = SlurmPlace(Options())

    def poll(*answers):
        slurm_says(squeue=answers)
        status = place.poll(launched.handle, base)
        return status.running, status.code

    assert poll(job("PENDING")) == (True, None)
    assert poll(job("COMPLETED")) == (False, 0)
    assert poll(job("NODE_FAIL")) == (False, None)
    assert poll(gone) == (False, None)
    assert poll(job("RUNNING", "other")) == (False, None)
    (launched.folder / "exit-code").write_text("76\n")
    assert poll(gone) == (False, 76)
    assert poll(job("RUNNING")) == (True, None)  # of an earlier start
    assert poll(job("FAILED")) == (False, 76)


def test_following_shows_states_and_logs_until_the_end(slurm_says, launched, capsys):
    (launched.folder / "batch.log").write_text("[slurm] started\n")
    (launched.folder / "task-0.log").write_text("step 1\nstep 2")
    (launched.folder / "task-10.log").write_text("ten\n")
    (launched.folder / "task-2.log").write_text("two\n")
    (launched.folder / "exit-code").write_text("3\n")
    slurm_says(squeue=[job("PENDING", reason="Priority"), job("RUNNING"), job("FAILED")])
    with pytest.raises(LaunchFailed, match="job 12 ended as FAILED with code 3") as failed:
        slurm_follow.follow(launched, mine=True, grace=1)
    assert failed.value.code == 3
    assert capsys.readouterr().out.splitlines() == [
        "[launch] job 12: PENDING (Priority)",
        "[slurm] started",
        "[0] step 1",
        "[2] two",
        "[10] ten",
        "[launch] job 12: RUNNING",
        "[launch] job 12: FAILED",
        "[0] step 2",
    ]


def test_a_job_that_does_not_save_in_time_is_cancelled(slurm_says, launched):
    calls = slurm_says(squeue=[job("RUNNING")])
    slurm_follow.cancel_going(launched.folder.parent, grace=0.1)
    assert [call[1:] for call in calls() if call[0] == "scancel"] == [
        ["--signal=TERM", "12"],
        ["12"],
    ]


def test_launches_are_in_the_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_folder(Job("n", (), workdir="runs/a")) == tmp_path / "runs" / "a" / "launch"
    assert base_folder(Job("n", ())) == tmp_path / ".vitscale" / "launch" / "n"
    assert base_folder(Job("n", (), workdir="gs://b/a")).parent.name == "launch"
    (tmp_path / ".git").mkdir()
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    assert base_folder(Job("n", ())) == tmp_path / ".vitscale" / "launch" / "n"


def test_two_shells_at_once_submit_one_job(slurm_says, tmp_path, monkeypatch):
    """The second waits until the first has submitted, and then finds its job."""
    monkeypatch.setattr(slurm, "new_launch", lambda base: base / "mine")
    calls = slurm_says(sbatch=[(0, "12\n", "")], squeue=[job("PENDING")])
    second, asked = [], threading.Event()
    look = slurm.find_going

    def find(base):
        asked.set()
        return look(base)

    def again():
        second.append(slurm.find_or_start(JOB, Options(), tmp_path / "launch"))

    def submit(folder):
        monkeypatch.setattr(slurm, "find_going", find)
        thread.start()
        assert not asked.wait(0.3)
        return submitted(folder)

    submitted, thread = slurm._submit, threading.Thread(target=again)
    monkeypatch.setattr(slurm, "_submit", submit)
    first, mine = slurm.find_or_start(JOB, Options(), tmp_path / "launch")
    thread.join(timeout=30)
    assert (mine, second) == (True, [(first, False)])
    assert [call[0] for call in calls()] == ["sbatch", "squeue"]


def test_a_workdir_that_cannot_be_written(slurm_says, tmp_path):
    slurm_says()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"script and logs .*file/launch cannot be written"):
        slurm.find_or_start(JOB, Options(), tmp_path / "file" / "launch")


COMMAND = ["launch", "slurm", "--name", "shop", "--cpus-per-process", "2"]


def test_the_command_line(slurm_says, tmp_path, capsys, monkeypatch):
    calls = slurm_says(sbatch=[(0, "12\n", "")])
    words = ["--", "doctor", "--workdir", "runs/a b"]
    assert main([*COMMAND, "--dry-run", *words]) == 0
    assert "#SBATCH --cpus-per-task=2\n" in capsys.readouterr().out
    assert not (tmp_path / "bin" / "calls.jsonl").exists()
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(slurm, "new_launch", lambda base: base / "mine")
    assert main([*COMMAND, *words]) == 0
    assert "submitted job 12, shop" in capsys.readouterr().out
    # The same command again: not a second job on one workdir.
    slurm_says(squeue=[job("RUNNING")])
    assert main([*COMMAND, *words]) == 2
    assert "with --follow shows it, with --cancel ends it" in capsys.readouterr().err
    slurm_says(squeue=[job("RUNNING"), job("RUNNING"), job("COMPLETED")])
    assert main([*COMMAND, "--cancel", *words]) == 0
    assert [call for call in calls() if call[0] == "scancel"] == [
        ["scancel", "--signal=TERM", "12"]
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes-per-node", "all"], "neither a number nor `gpus`"),
        (["--name", "a b"], "no name for slurm"),
        (["--env", "HF_TOKEN=x"], "--secret"),
        (["--container-mount", "/a:/b"], "--container-image"),
    ],
)
def test_mistakes_are_the_users(slurm_says, capsys, words, said):
    slurm_says()
    assert main([*COMMAND, *words, "--", "doctor"]) == 2
    assert said in capsys.readouterr().err
