"""Learning rates at the corners of every schedule, and what holds for all of them."""

import dataclasses

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config import OptimConfig
from vitscale.errors import UserError
from vitscale.train.schedules import make_schedule


def rates(total, **changes):
    """The learning rate of every step, and of `total`, the one after the last."""
    schedule = make_schedule(OptimConfig(**{"lr": 1.0, "warmup": 0, **changes}), total)
    return np.asarray([schedule(step) for step in range(total + 1)])


def test_warmup_starts_at_a_step_of_it_and_peaks_at_its_last():
    for name in ("constant", "cosine", "rsqrt", "wsd"):
        cooldown = 2 if name == "wsd" else 0
        warm = rates(10, schedule=name, warmup=4, cooldown=cooldown)[:5]
        np.testing.assert_allclose(warm, [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "rsqrt"])
def test_one_step_of_warmup_or_none_begins_at_the_peak(name):
    assert rates(10, schedule=name, warmup=1)[:2].tolist() == [1.0, 1.0]
    assert rates(10, schedule=name)[0] == 1.0


def test_constant():
    assert set(rates(10, schedule="constant", lr=0.5).tolist()) == {0.5}


def test_cosine_halves_half_way_and_ends_at_the_final_fraction():
    values = rates(12, schedule="cosine", warmup=2, final_lr_fraction=0.2)
    progress = np.arange(11) / 10
    expected = 0.2 + 0.8 * (1 + np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(values[2:], expected, rtol=1e-5)


def test_cosine_is_what_it_was_before_there_were_others():
    warmup = optax.linear_schedule(1e-3 / 5, 1e-3, 4)
    theirs = optax.join_schedules([warmup, optax.cosine_decay_schedule(1e-3, 25, 0.1)], [5])
    ours = make_schedule(OptimConfig(lr=1e-3, warmup=5, final_lr_fraction=0.1), 30)
    assert [float(ours(step)) for step in range(31)] == [float(theirs(step)) for step in range(31)]


def big_vision_rsqrt(step, total, warmup, cooldown, timescale):
    """`create_learning_rate_schedule` of google-research/big_vision, whose warm-up begins at 0."""
    lr = 1 / np.sqrt(1 + (step - warmup) / timescale) if step >= warmup else 1.0
    if cooldown:
        lr *= min(1.0, (total - step) / cooldown)
    return lr


@pytest.mark.parametrize("cooldown", [0, 30])
def test_rsqrt_is_big_visions_after_the_warmup(cooldown):
    values = rates(100, schedule="rsqrt", warmup=10, cooldown=cooldown, timescale=20)
    expected = [big_vision_rsqrt(step, 100, 10, cooldown, 20) for step in range(10, 101)]
    np.testing.assert_allclose(values[10:], expected, rtol=1e-5, atol=1e-7)
    assert values[70] == pytest.approx(0.5)  # 60 steps after the warm-up: sqrt(1 + 60 / 20) = 2


def test_wsd_is_flat_and_then_linear():
    values = rates(20, schedule="wsd", warmup=2, cooldown=10, final_lr_fraction=0.5)
    np.testing.assert_allclose(values[1:11], 1.0)
    np.testing.assert_allclose(values[10:], np.linspace(1.0, 0.5, 11), rtol=1e-6)


def test_a_cooldown_may_fill_all_that_the_warmup_leaves():
    values = rates(10, schedule="wsd", warmup=5, cooldown=5)
    np.testing.assert_allclose(values[5:], [1.0, 0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-6)


def test_the_learning_rate_stays_at_its_end_beyond_the_last_step():
    for name, cooldown in (("cosine", 0), ("wsd", 4), ("rsqrt", 4)):
        config = OptimConfig(
            lr=1.0, schedule=name, warmup=0, cooldown=cooldown, final_lr_fraction=0.1
        )
        schedule = make_schedule(config, 10)
        assert float(schedule(10)) == pytest.approx(0.1)
        assert float(schedule(1000)) == pytest.approx(0.1)


@st.composite
def runs(draw):
    total = draw(st.integers(2, 60))
    warmup = draw(st.integers(0, total - 1))
    name = draw(st.sampled_from(["constant", "cosine", "rsqrt", "wsd"]))
    cooldown = 0
    if name in ("rsqrt", "wsd"):
        cooldown = draw(st.integers(int(name == "wsd"), total - warmup))
    if name == "wsd" and not cooldown:
        cooldown = 1
    timescale = draw(st.integers(1, 1000))
    fraction = 0.0
    if name == "cosine" or cooldown:
        lowest = (1 + (total - warmup) / timescale) ** -0.5 if name == "rsqrt" else 1.0
        fraction = draw(st.floats(0.0, lowest))
    lr = draw(st.floats(1e-6, 10.0))
    config = OptimConfig(
        lr=lr,
        schedule=name,
        warmup=warmup,
        cooldown=cooldown,
        timescale=timescale,
        final_lr_fraction=fraction,
    )
    return config, total


@settings(deadline=None, max_examples=40)
@given(runs())
def test_every_schedule_rises_to_the_peak_and_falls_to_its_end(run):
    config, total = run
    values = np.asarray(make_schedule(config, total)(np.arange(total + 1)))
    values = np.broadcast_to(values, total + 1)
    assert values.dtype == np.float32
    assert (values >= 0).all()
    assert (values <= config.lr * (1 + 1e-6)).all()
    assert values[max(config.warmup - 1, 0)] == pytest.approx(config.lr, rel=1e-5)
    assert (np.diff(values[: config.warmup]) > 0).all()
    assert (np.diff(values[config.warmup :]) <= 1e-6 * config.lr).all()
    if config.schedule == "cosine" or config.cooldown:
        end = config.final_lr_fraction * config.lr
        assert values[-1] == pytest.approx(end, rel=1e-5, abs=1e-6 * config.lr)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup": 100}, ["optim.warmup=100 steps", "below the run's 100 steps"]),
        (
            {"warmup": 60, "cooldown": 50, "schedule": "wsd"},
            ["optim.warmup=60", "optim.cooldown=50", "do not fit", "100 steps"],
        ),
        ({"schedule": "wsd"}, ["'wsd' needs optim.cooldown", "'20 percent'", "'constant'"]),
        ({"cooldown": 5}, ["optim.cooldown=5", "'rsqrt' and 'wsd'", "'cosine'"]),
        (
            {"schedule": "constant", "final_lr_fraction": 0.1},
            ["optim.final_lr_fraction=0.1", "'constant'", "set optim.cooldown"],
        ),
        ({"schedule": "rsqrt", "timescale": 0}, ["optim.timescale=0", "at least one step"]),
        (
            {"schedule": "rsqrt", "timescale": 1, "cooldown": 9, "final_lr_fraction": 0.5},
            ["optim.final_lr_fraction=0.5", "would rise at the end"],
        ),
    ],
)
def test_what_is_said_of_schedules_that_make_no_sense(changes, words):
    config = OptimConfig(**{"warmup": 10, **changes})
    with pytest.raises(UserError) as error:
        make_schedule(config, 100)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["warmup", "cooldown", "timescale"])
def test_durations_must_be_steps_by_now(name):
    config = dataclasses.replace(OptimConfig(), **{name: "5 percent"})
    with pytest.raises(ValueError, match=name):
        make_schedule(config, 100)
