"""A stuck step shows every thread's stack, once."""

import subprocess
import sys
import threading
import time

import pytest

from vitscale.train.watchdog import Watchdog


@pytest.fixture
def report(tmp_path):
    with (tmp_path / "stderr").open("w+") as file:
        yield file


def read(file):
    file.flush()
    file.seek(0)
    return file.read()


def test_a_stuck_step_shows_all_threads_once(report):
    release = threading.Event()

    def stuck_in_a_worker():
        release.wait()

    worker = threading.Thread(target=stuck_in_a_worker)
    worker.start()
    stalls: list[int] = []
    with Watchdog(0.2, on_stall=stalls.append, stream=report) as dog:
        time.sleep(0.4)  # the compile of the first step
        assert stalls == []
        dog.beat(7)
        time.sleep(0.8)  # step 8 hangs
        assert stalls == [8]
        dog.beat(8)
        time.sleep(0.4)
        assert stalls == [8, 9]
    release.set()
    worker.join()
    text = read(report)
    assert text.count("step 8 has taken more than 0.2 s") == 1
    assert "stuck_in_a_worker" in text
    assert "test_a_stuck_step_shows_all_threads_once" in text


def test_steps_in_time_and_known_long_work_are_silent(report):
    with Watchdog(0.3, stream=report) as dog:
        for step in range(1, 9):
            dog.beat(step)
            time.sleep(0.05)
        with dog.pause(), dog.pause():
            time.sleep(0.6)
        time.sleep(0.1)
    assert read(report) == ""


def test_zero_is_off(report):
    with Watchdog(0, stream=report) as dog:
        dog.beat(1)
        time.sleep(0.1)
    assert read(report) == ""


@pytest.mark.parametrize("holds_gil", [False, True])
def test_a_main_thread_stuck_in_c_is_shown(holds_gil):
    """`PyDLL` keeps the GIL during the call, so that no Python thread can run; `CDLL` gives it back."""
    library = "PyDLL" if holds_gil else "CDLL"
    script = f"""
import ctypes
from vitscale.train.watchdog import Watchdog
def stuck_in_c():
    ctypes.{library}(None).usleep(900_000)
with Watchdog(0.3) as dog:
    dog.beat(1)
    stuck_in_c()
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "stuck_in_c" in result.stderr
