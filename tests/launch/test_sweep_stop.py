"""What a sweep notes of the runs that it asks to save and stop."""

import json
from contextlib import nullcontext

import pytest

from launch.job import Job
from launch.sweep import Status, Sweep
from launch.sweep_plan import Planned
from launch.sweep_state import RunState, load_state
from vitscale.errors import Preempted


class Place:
    """Jobs run until they are cancelled, but for those that `codes` names; `impatient` is a second Ctrl-C."""

    outlives = sees_workdirs = False
    name_suffix, poll_seconds, log_words = "", 0.0, "its log"

    def __init__(self, codes=None, saved=75, impatient=False):
        self.codes, self.saved, self.impatient = codes or {}, saved, impatient
        self.started, self.cancelled = [], False

    def check(self, job): ...

    def start(self, job, folder, known):
        self.started.append(job.name)
        return job.name

    def poll(self, handle, folder):
        if handle in self.codes:
            return Status(running=False, code=self.codes[handle])
        if self.cancelled and self.impatient:
            raise KeyboardInterrupt
        return Status(running=not self.cancelled, code=self.saved if self.cancelled else None)

    def cancel(self, handle, folder):
        self.cancelled = True


class Asked:
    """The event of a signal: it comes after the third look."""

    looks = 0

    def wait(self, seconds):
        self.looks += 1
        return self.is_set()

    def is_set(self):
        return self.looks >= 3


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.sweep.BACK_OFF", 0.0)

    def start(place, *, stopped, then=True, retries=0):
        event = Asked()
        if not stopped:
            event.is_set = lambda: False
        monkeypatch.setattr("launch.sweep.on_termination", lambda: nullcontext(event))
        follows = Job("a-then", ("eval",)) if then else None
        job = Job("a", ("embed",))
        planned = {"a": Planned("a", "/x/a", None, tmp_path / "a", job, follows, {}, None)}
        state = load_state(tmp_path, [])
        state.runs.setdefault("a", RunState({}))
        try:
            Sweep(state, planned, place, retries=retries).run()
        finally:
            state.runs.update(load_state(tmp_path, []).runs)
        return json.loads((tmp_path / "sweep.json").read_text())["runs"]["a"]

    start.state = lambda: load_state(tmp_path, []).runs["a"]
    return start


def test_what_follows_and_ends_well_during_a_stop_is_not_done_again(sweep):
    place = Place({"a": 0}, saved=0)
    with pytest.raises(Preempted):
        sweep(place, stopped=True)
    assert place.started == ["a", "a-then"]
    place = Place()
    assert sweep(place, stopped=False)["state"] == "finished"
    assert place.started == []


def test_a_second_ctrl_c_loses_nothing(sweep):
    place = Place(impatient=True)
    with pytest.raises(KeyboardInterrupt):
        sweep(place, stopped=True, then=False)
    assert (sweep.state().handle, sweep.state().stopped) == ("a", True)
    # It has saved after that: no failure, though none is allowed.
    codes = {"a": 75}
    place = Place(codes)
    place.start = lambda *given: codes.update(a=0) or place.started.append("a") or "a"
    run = sweep(place, stopped=False, then=False)
    assert (run["state"], run["complaint"], place.started) == ("finished", "", ["a"])


def test_an_end_that_nobody_asked_for_is_a_failure(sweep):
    run = sweep(Place({"a": 75}), stopped=False, then=False)
    assert (run["state"], run["code"]) == ("failed", 75)
