"""The order of draws: permutations, proportional weights, steady mixtures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.mixture import EpochOrder, build_mixture, interleave, mixture_shares
from vitscale.errors import UserError


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_every_epoch_is_a_permutation(size: int, seed: int) -> None:
    order = EpochOrder.of(size, seed)
    for epoch in (0, 1, 1000):
        drawn = [order[epoch * size + i] for i in range(size)]
        assert sorted(drawn) == list(range(size))


def test_epochs_seeds_and_sources_differ() -> None:
    def epoch(number: int, seed: int, source: int = 0) -> list[int]:
        order = EpochOrder.of(500, seed, source)
        return [order[number * 500 + i] for i in range(500)]

    orders = [epoch(0, 0), epoch(1, 0), epoch(0, 1), epoch(0, 0, 1), epoch(1, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert epoch(0, 0) == orders[0]
    # Sorted input must not leave neighbours together.
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.15


@given(
    st.lists(st.floats(0, 10, width=32), min_size=1, max_size=60).filter(lambda w: sum(w) > 1e-3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_weighted_epoch_is_floor_or_ceil(weights: list[float], seed: int) -> None:
    w = np.array(weights, np.float32)
    order = EpochOrder.of(len(w), seed, 0, w)
    expected = w.astype(float) / w.astype(float).sum() * len(w)
    for epoch in (0, 3):
        drawn = np.bincount([order[epoch * len(w) + i] for i in range(len(w))], minlength=len(w))
        assert len(drawn) == len(w)
        assert (np.abs(drawn - expected) < 1 + 1e-6).all()
        assert (drawn[w == 0] == 0).all()


def test_weights_are_exact_on_average() -> None:
    w = np.array([1, 2, 3.5, 0.25, 0], np.float32)
    order = EpochOrder.of(5, 11, 0, w)
    drawn = np.bincount([order[i] for i in range(20_000)], minlength=5) / 20_000
    np.testing.assert_allclose(drawn, w / w.sum(), atol=2e-3)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, np.nan], [1, np.inf], [1]])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights"):
        EpochOrder.of(2, 0, 0, np.array(weights, np.float32))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10**12))
@settings(max_examples=80, deadline=None)
def test_interleave_counts_up_in_each_source(shares: list[int], start: int) -> None:
    seen: dict[int, int] = {}
    window = 200
    for k in range(start, start + window):
        source, j = interleave(k, shares)
        assert seen.get(source, j - 1) == j - 1  # nothing skipped, nothing repeated
        seen[source] = j
    if start == 0:
        assert all(j < window for j in seen.values())


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_every_batch_holds_each_sources_share(shares: list[int], batch: int) -> None:
    size = 256
    sources = [interleave(k, shares)[0] for k in range(batch * size, (batch + 1) * size)]
    counts = np.bincount(sources, minlength=len(shares))
    assert (np.abs(counts - size * np.array(shares) / sum(shares)) <= len(shares)).all()


def test_an_epoch_of_a_mixture_draws_each_example_once() -> None:
    mixture = build_mixture([30, 70], seed=3)
    drawn = [mixture[k] for k in range(100)]
    assert len(set(drawn)) == 100


def test_set_weights_override_sizes() -> None:
    mixture = build_mixture([10, 1000], seed=0, weights=[3.0, 1.0])
    sources = [mixture[k][0] for k in range(4000)]
    assert abs(np.mean(sources) - 0.25) < 0.01


def test_shares() -> None:
    assert mixture_shares([1, 3], [None, None]) == [0.25, 0.75]
    assert mixture_shares([1, 3], [2.0, 2.0]) == [0.5, 0.5]
    assert mixture_shares([5, 1, 3], [0.2, None, None]) == pytest.approx([0.2, 0.2, 0.6])
    with pytest.raises(UserError, match="leave nothing"):
        mixture_shares([1, 3], [1.0, None])
    with pytest.raises(UserError, match="positive"):
        mixture_shares([1, 3], [0.0, None])


def test_a_draw_far_away_costs_nothing() -> None:
    mixture = build_mixture([10**9, 10**8], seed=1)
    assert mixture[10**15] == mixture[10**15]
