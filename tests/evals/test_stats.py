"""Intervals and tests against theory and against exhaustive enumeration."""

import itertools
import json
import math
import time

import numpy as np
import pytest

from vitscale.evals.stats import (
    Estimate,
    bootstrap_mean,
    bootstrap_statistic,
    paired_difference,
)


def test_the_interval_is_that_of_theory():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=2000)
    estimate = bootstrap_mean(values, samples=4000, seed=1)
    error = values.std() / math.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert estimate.n == 2000


def test_undefined_queries_are_left_out_not_counted_as_zero():
    values = np.array([1.0, np.nan, 0.5, np.nan])
    estimate = bootstrap_mean(values)
    assert (estimate.value, estimate.n) == (0.75, 2)
    nothing = bootstrap_mean(np.array([np.nan, np.nan]))
    assert nothing.n == 0
    assert json.dumps(nothing.to_json(), allow_nan=False) == (
        '{"value": null, "low": null, "high": null, "n": 0}'
    )


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_views_of_one_product_widen_the_interval():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=100), 10)
    groups = np.repeat([f"product {i}" for i in range(100)], 10)
    alone = bootstrap_mean(values)
    grouped = bootstrap_mean(values, groups=groups)
    assert grouped.value == pytest.approx(alone.value)
    # Ten copies of each value: the honest interval is sqrt(10) times as wide.
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)


def test_groups_of_different_size_keep_the_mean_of_queries():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    estimate = bootstrap_mean(values, groups=np.array(["a", "a", "a", "b"]))
    assert (estimate.value, estimate.n) == (0.75, 4)


def test_a_statistic_of_multiplicities():
    values = np.random.default_rng(0).random(200)
    mean = bootstrap_mean(values, samples=3000)
    same = bootstrap_statistic(lambda w: float(w @ values / w.sum()), 200, samples=3000)
    assert same.value == pytest.approx(mean.value)
    assert same.low == pytest.approx(mean.low, abs=0.004)
    assert same.high == pytest.approx(mean.high, abs=0.004)


def test_the_p_value_is_that_of_all_sign_flips():
    difference = np.array([0.2, 0.5, -0.1, 0.4, 0.3, 0.1, 0.6, -0.2])
    a = np.zeros(8)
    result = paired_difference(a, difference, permutations=20_000)
    sums = [abs(np.dot(s, difference)) for s in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(sums) >= abs(difference.sum()) - 1e-9)
    assert result.p_value == pytest.approx(exact, abs=0.01)
    assert result.low > 0


def test_equal_runs_show_no_difference():
    a = np.random.default_rng(0).random(100)
    result = paired_difference(a, a)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_pairs_with_an_undefined_side_are_left_out():
    a, b = np.array([1.0, np.nan, 0.0]), np.array([0.0, 1.0, np.nan])
    result = paired_difference(a, b)
    assert (result.n, result.a, result.b, result.difference) == (1, 1.0, 0.0, -1.0)
    empty = paired_difference(np.array([np.nan]), np.array([1.0]))
    assert empty.n == 0
    assert math.isnan(empty.p_value)


def test_a_clear_difference_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    a = rng.random(300)
    assert paired_difference(a, a + rng.normal(0.05, 0.2, 300)).p_value < 0.01
    p_values = [
        paired_difference(a, a + rng.normal(0, 0.2, 300), permutations=200, seed=i).p_value
        for i in range(60)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.15


def test_ten_thousand_queries_take_under_two_seconds():
    values = np.random.default_rng(0).random(10_000)
    start = time.perf_counter()
    bootstrap_mean(values, samples=1000)
    assert time.perf_counter() - start < 2


def test_a_count_has_no_interval():
    assert Estimate.count(3, 10).to_json() == {"value": 3.0, "low": None, "high": None, "n": 10}
