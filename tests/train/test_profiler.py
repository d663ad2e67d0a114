import gzip
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from vitscale.config import LogConfig
from vitscale.train.profiler import ProfileWindow, annotate


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO, logger="vitscale.train.profiler")


def run(workdir, log, steps, **options):
    step_fn = jax.jit(lambda x: jnp.tanh(x @ x))
    state = jnp.ones((64, 64))
    with ProfileWindow(workdir, log, **options) as window:
        for step in steps:
            window.before_step(step, state)
            with annotate(step):
                state = step_fn(state)
            window.after_step(step, state)


def test_the_window_holds_its_steps_and_no_others(tmp_path):
    run(tmp_path, LogConfig(profile_start=3, profile_steps=3), range(1, 8))
    (xplane,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert xplane.stat().st_size > 0
    with gzip.open(xplane.parent / "perfetto_trace.json.gz") as file:
        trace = json.load(file)
    steps = [
        int(event["args"]["step_num"])
        for event in trace["traceEvents"]
        if event.get("name") == "train"
    ]
    assert sorted(set(steps)) == [3, 4, 5]


def test_xprof_reads_the_steps(tmp_path):
    run(tmp_path, LogConfig(profile_start=1, profile_steps=2), range(1, 4))
    (xplane,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(xplane))
    names = {event.name for plane in data.planes for line in plane.lines for event in line.events}
    assert "train" in names


def test_the_end_of_the_run_closes_the_window(tmp_path):
    run(tmp_path, LogConfig(profile_start=2, profile_steps=100), range(1, 4))
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    jax.profiler.start_trace(str(tmp_path / "next"))  # would fail if one were open
    jax.profiler.stop_trace()


@pytest.mark.parametrize(
    ("log", "steps", "message"),
    [
        (LogConfig(profile_start=3), range(10, 12), "begins at step 3, and this start at step 10"),
        (LogConfig(profile_start=30), range(1, 4), "the run ended before step 30"),
        (LogConfig(), range(1, 4), None),
        (LogConfig(profile_start=2, profile_steps=0), range(1, 4), None),
    ],
)
def test_a_window_that_the_run_does_not_reach_is_skipped(tmp_path, caplog, log, steps, message):
    run(tmp_path, log, steps)
    assert not list(tmp_path.iterdir())
    assert [r.message for r in caplog.records if message and message in r.message] == [
        r.message for r in caplog.records
    ]
    assert len(caplog.records) == (message is not None)


def test_other_processes_take_no_trace(tmp_path):
    run(tmp_path, LogConfig(profile_start=1, profile_steps=1), range(1, 3), enabled=False)
    assert not list(tmp_path.iterdir())


def test_a_profiler_that_is_busy_does_not_stop_the_run(tmp_path, caplog):
    jax.profiler.start_trace(str(tmp_path / "other"))
    try:
        run(tmp_path, LogConfig(profile_start=1, profile_steps=1), range(1, 3))
    finally:
        jax.profiler.stop_trace()
    assert "no profile: Profile has already been started" in caplog.text
