"""`vitscale launch local` with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import Processes, launch_local
from vitscale.cli import main
from vitscale.errors import LaunchFailed, UserError


@pytest.fixture
def program(monkeypatch):
    """Replaces `vitscale` by a few lines of Python, which find their number in `rank`."""

    def use(text):
        head = (
            "import os, signal, sys, time\nrank = int(os.environ.get('VITSCALE_PROCESS_ID', 0))\n"
        )
        monkeypatch.setattr("launch.local.PROGRAM", (sys.executable, "-uc", head + text))

    return use


def test_one_failing_process_is_an_error_with_its_words(program, capfd):
    program("print('before'); sys.exit('no such file' if rank == 1 else 0)")
    with pytest.raises(
        LaunchFailed, match=r"process 1 ended with code 1(?s:.*)\[1\] no such file"
    ) as failure:
        launch_local(["train"], processes=2, devices=1)
    assert failure.value.code == 1
    out = capfd.readouterr().out
    assert "[0] before" in out
    assert "[1] no such file" in out


def test_only_the_last_lines_are_repeated(program):
    program("[print('line', i) for i in range(100)]; sys.exit(3)")
    with pytest.raises(LaunchFailed) as failure:
        launch_local(["train"], processes=1)
    assert failure.value.code == 3
    assert str(failure.value).splitlines()[1:] == [f"  [0] line {i}" for i in range(80, 100)]


def test_all_well_is_silent(program, capfd):
    program("print(sys.argv[1:])")
    launch_local(["train", "--config", "x"], processes=2)
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines == [f"[{rank}] ['train', '--config', 'x']" for rank in range(2)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sys.exit(75)", 75),
        ("sys.exit(76)", 76),
        # The one that was killed, not the one that lost it.
        ("sys.exit(76) if rank == 0 else os.kill(os.getpid(), 9)", 137),
        ("os.kill(os.getpid(), 11)", 139),
    ],
)
def test_exit_codes_are_passed_on(program, text, code):
    program(text)
    with pytest.raises(LaunchFailed) as failure:
        launch_local(["train"], processes=2)
    assert failure.value.code == code


def test_the_others_are_stopped_after_a_grace(program, monkeypatch):
    monkeypatch.setattr("launch.local.STOP_GRACE", 1.0)
    monkeypatch.setattr("launch.local.TERM_GRACE", 1.0)
    program(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1 if rank else 100); sys.exit(4)"
    )
    started = time.monotonic()
    with pytest.raises(LaunchFailed, match="process 1 ended with code 4"):
        launch_local(["train"], processes=2)
    assert 2 < time.monotonic() - started < 10


def test_a_worker_that_holds_the_output_open_is_ended(program):
    program("os.fork() or time.sleep(100)")
    started = time.monotonic()
    launch_local(["train"], processes=1)
    assert time.monotonic() - started < 8


# Where the suite itself runs under `nohup`, SIGHUP is ignored in all that it starts, and a launch leaves that so.
LAUNCHER = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it
import launch.local
launch.local.PROGRAM = (sys.executable, "-uc", sys.argv[1])
try:
    launch.local.launch_local(["train"], processes=2)
except KeyboardInterrupt:
    sys.exit(130)
except launch.local.LaunchFailed as failure:
    print(failure)
    sys.exit(failure.code)
"""


@pytest.mark.parametrize(
    ("sent", "inside", "code"),
    [
        (signal.SIGTERM, "SIGTERM", 75),
        (signal.SIGHUP, "SIGTERM", 75),
        (signal.SIGINT, "SIGINT", 130),
    ],
)
def test_signals_reach_every_process(sent, inside, code):
    child = f"""
import signal, sys, time
def end(*_):
    print("got {inside}")
    sys.exit(75)
signal.signal(signal.{inside}, end)
print("ready")
time.sleep(100)
"""
    with subprocess.Popen(
        [sys.executable, "-uc", LAUNCHER, child], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        seen = [launcher.stdout.readline() for _ in range(2)]
        assert sorted(seen) == ["[0] ready\n", "[1] ready\n"]
        launcher.send_signal(sent)
        rest = launcher.stdout.read()
        assert launcher.wait(timeout=30) == code, rest
    assert f"[0] got {inside}" in rest
    assert f"[1] got {inside}" in rest


@pytest.mark.parametrize(
    "arguments",
    [
        {"command": []},
        {"processes": 0},
        {"devices": 0},
        {"devices": 1, "gpus": 1},
        {"restarts": -1},
    ],
)
def test_nonsense_is_refused(arguments):
    with pytest.raises(UserError):
        launch_local(**{"command": ["train"], "processes": 1} | arguments)


def counts(folder, *codes):
    """A program that ends with the next of `codes` each time it is started; process 0 counts."""
    return f"""
starts = {str(folder)!r} + f"/{{rank}}"
seen = os.path.exists(starts) and os.path.getsize(starts) or 0
open(starts, "a").write("x")
print("start", seen)
code = {codes}[seen] if rank == 0 else 0
os.kill(os.getpid(), 9) if code < 0 else sys.exit(code)
"""


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("launch.local.BACK_OFF", 0.0)


def test_a_failed_run_is_started_again(program, at_once, tmp_path, capfd):
    program(counts(tmp_path, -9, 76, 0))
    launch_local(["train"], processes=2, restarts=3, logs=tmp_path / "logs")
    assert [len((tmp_path / name).read_text()) for name in "01"] == [3, 3]
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[launch]")]
    assert said == [
        "[launch] process 0 was ended by signal 9: restart 1 of 3 in 0 s",
        "[launch] process 0 ended with code 76 (another process was lost; the same command goes on from the last "
        "checkpoint): restart 2 of 3 in 0 s",
    ]
    log = (tmp_path / "logs" / "process-1.log").read_text().splitlines()
    assert [line for line in log if not line.startswith("---")] == ["start 0", "start 1", "start 2"]
    assert [line.rpartition(" ")[2] for line in log if line.startswith("---")] == ["1", "2", "3"]


def test_restarts_are_limited(program, at_once, tmp_path):
    program(counts(tmp_path, 1, 1, 0))
    with pytest.raises(LaunchFailed, match="after 1 restarts, process 0 ended with code 1"):
        launch_local(["train"], processes=1, restarts=1)


@pytest.mark.parametrize(("code", "asked"), [(2, True), (75, False), (130, True)])
def test_what_would_end_the_same_way_is_not_started_again(program, at_once, tmp_path, code, asked):
    program(counts(tmp_path, code, 0))
    with pytest.raises(LaunchFailed) as failure:
        launch_local(["train"], processes=1, restarts=5, restart_preempted=asked)
    assert failure.value.code == code
    assert len((tmp_path / "0").read_text()) == 1


def test_a_preempted_run_is_started_again_when_asked(program, at_once, tmp_path):
    program(counts(tmp_path, 75, 0))
    launch_local(["train"], processes=1, restarts=1, restart_preempted=True)
    assert len((tmp_path / "0").read_text()) == 2


def test_pauses_stay_finite(monkeypatch):
    """Of more restarts than a float has powers of two."""
    starts = []

    def fail(*_):
        starts.append(1)
        raise LaunchFailed("no", 1)

    monkeypatch.setattr("launch.local._run_once", fail)
    monkeypatch.setattr("launch.local.LONGEST_BACK_OFF", 0.0)
    with pytest.raises(LaunchFailed, match="after 1100 restarts"):
        launch_local(["train"], processes=1, restarts=1100)
    assert len(starts) == 1101


def test_sigterm_while_waiting_for_a_restart_ends_it():
    launcher = LAUNCHER.replace("processes=2", "processes=1, restarts=5").replace(
        "import launch.local\n", "import launch.local\nlaunch.local.BACK_OFF = 100.0\n"
    )
    launcher += "except launch.local.Preempted:\n    sys.exit(75)\n"
    with subprocess.Popen(
        [sys.executable, "-uc", launcher, "raise SystemExit(1)"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "restart 1 of 5 in 60 s" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its starter died"
)
def test_processes_end_with_a_launcher_that_was_killed(tmp_path):
    child = f"""
import os, signal, sys, time
def end(*_):
    open({str(tmp_path)!r} + "/ended" + os.environ["VITSCALE_PROCESS_ID"], "w")
    os._exit(75)
signal.signal(signal.SIGTERM, end)
print("ready")
time.sleep(100)
"""
    with subprocess.Popen(
        [sys.executable, "-uc", LAUNCHER, child], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        for _ in range(2):
            launcher.stdout.readline()
        launcher.kill()
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_own_variables_are_merged(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_a=1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    variables = Processes(("train",), 2, 3, environment={"A": "b"}).variables(1, 99)
    assert variables == {
        "A": "b",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=3",
        "VITSCALE_COORDINATOR": "127.0.0.1:99",
        "VITSCALE_NUM_PROCESSES": "2",
        "VITSCALE_PROCESS_ID": "1",
    }
    own = Processes(("train",), 1, 3, environment={"XLA_FLAGS": "--xla_b=2"}).variables(0, 99)
    assert own["XLA_FLAGS"] == "--xla_b=2 --xla_force_host_platform_device_count=3"
    assert Processes(("train",), 2, gpus=2).variables(1, 9)["CUDA_VISIBLE_DEVICES"] == "6,7"
    with pytest.raises(UserError, match="need 6, and this one may see 4"):
        Processes(("train",), 2, gpus=3).variables(1, 9)


def test_the_command_line(program, at_once, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    inner = ["--", "train", "--config", "x.py", "--workdir", "runs/a"]
    assert main(["launch", "local", "--dry-run", "--devices", "2", "--env", "A=b c", *inner]) == 0
    assert capfd.readouterr().out == (
        "A='b c' JAX_PLATFORMS=cpu XLA_FLAGS="
        f"{_quoted('--xla_force_host_platform_device_count=2')} vitscale train --config x.py --workdir runs/a\n"
    )
    assert not Path("runs").exists()
    assert main(["launch", "local", "--dry-run", "--env", "HF_TOKEN=abc", *inner]) == 0
    assert capfd.readouterr().out.startswith("HF_TOKEN=*** vitscale")
    program(counts(tmp_path, 1, 0) + "\n")
    assert main(["launch", "local", "--restarts", "1", *inner]) == 0
    assert "start 1" in Path("runs/a/logs/process-0.log").read_text()
    assert main(["launch", "local", "--name", "a/b", *inner]) == 2
    assert main(["launch", "local", "--then", "eval", *inner]) == 2
    Path("file").write_text("")
    assert main(["launch", "local", "--logs", "file", *inner]) == 2
    assert "--logs=file cannot be written" in capfd.readouterr().err


def _quoted(flag):
    own = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    return f"'{' '.join([*own, flag])}'" if own else flag
