"""`vitscale launch local` with real processes."""

import signal
import subprocess
import sys
import time

import pytest

from launch.local import launch_local
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


def test_all_well_is_silent(program):
    program("print(rank, sys.argv[1:])")
    launch_local(["train", "--config", "x"], processes=2)


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


LAUNCHER = """
import sys
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


@pytest.mark.parametrize(("command", "processes"), [([], 1), (["train"], 0)])
def test_nonsense_is_refused(command, processes):
    with pytest.raises(UserError):
        launch_local(command, processes=processes)
