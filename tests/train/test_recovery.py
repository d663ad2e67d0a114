"""Steps that are not usable: counted in a window, answered by a return to the last good checkpoint, then by the end."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.config import SurvivalConfig
from vitscale.errors import UserError
from vitscale.train import loop
from vitscale.train.loop import train
from vitscale.train.metrics import read_events, read_metrics
from vitscale.train.recovery import SkipWatch


def test_too_many_in_a_window_name_the_last_good_step():
    watch = SkipWatch(SurvivalConfig(max_skipped=2, window=10), 0, 0)
    answers = [watch.check(step, skipped) for step, skipped in ((5, 0), (10, 1), (15, 2), (20, 4))]
    assert answers == [None, None, None, 10]  # three since step 10, where one was counted


def test_rare_ones_are_borne_for_ever():
    watch = SkipWatch(SurvivalConfig(max_skipped=2, window=10), 0, 0)
    assert [watch.check(step, step // 10) for step in range(5, 500, 5)] == [None] * 99


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 4), st.integers(1, 20))
def test_against_a_plain_count_when_every_step_is_read(bad, max_skipped, window):
    watch = SkipWatch(SurvivalConfig(max_skipped=max_skipped, window=window), 0, 0)
    for step in range(1, len(bad) + 1):
        found = watch.check(step, sum(bad[:step]))
        count = sum(bad[max(step - window, 0) : step])
        assert (found is not None) == (count > max_skipped)
        if found is not None:
            assert not any(bad[max(step - window, 0) : found])
            return


def test_returning_too_often_ends_the_run():
    watch = SkipWatch(SurvivalConfig(max_rollbacks=1), 0, 0)
    watch.rolled_back(5, 0)
    with pytest.raises(UserError, match=r"after 1 returns.*lower optim\.lr"):
        watch.rolled_back(5, 0)


@pytest.fixture
def poisoned(monkeypatch):
    """Batches whose labels weigh infinity: those that hold a draw within `bounds`."""
    real, bounds = loop.put_batch, [0, 0]

    def put(batch, mesh):
        if bounds[0] <= batch.position[0] < bounds[1]:
            weights = {name: w * np.float32(np.inf) for name, w in batch.weights.items()}
            batch = dataclasses.replace(batch, weights=weights)
        return real(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", put)
    return bounds


def test_a_bad_window_of_data_is_left_behind(make_config, tmp_path, poisoned):
    survival = {"max_skipped": 2, "window": 10}
    config = make_config(duration=20, checkpoint__every_steps=4, survival=survival)
    poisoned[:] = [16 * 8, 16 * 12]  # batches 9 - 12 of 16 examples
    state = train(config, tmp_path)
    # Step 9 was done again with batch 12, which is bad as well: a single one is borne.
    assert (int(state.step), int(state.skipped)) == (20, 1)
    events = read_events(tmp_path)
    assert [e["event"] for e in events] == ["start", "rollback", "end"]
    assert (events[1]["after"], events[1]["step"]) == (11, 8)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["train/skipped_steps"] for row in rows] == [0] * 8 + [1] * 12
    assert np.isfinite([row["train/loss"] for row in rows[9:]]).all()


def test_bad_data_without_end_stops_the_run_in_words(make_config, tmp_path, poisoned):
    survival = {"max_skipped": 1, "window": 10, "max_rollbacks": 1}
    config = make_config(duration=30, checkpoint__every_steps=4, survival=survival)
    poisoned[:] = [16 * 8, 10**9]
    with pytest.raises(UserError, match="not usable again after 1 returns"):
        train(config, tmp_path)
    assert [e["event"] for e in read_events(tmp_path)] == ["start", "rollback", "rollback"]


def test_bad_from_the_first_step_has_nothing_to_return_to(make_config, tmp_path, poisoned):
    poisoned[:] = [0, 10**9]
    with pytest.raises(UserError, match="no earlier checkpoint exists"):
        train(make_config(survival={"max_skipped": 1}), tmp_path)
