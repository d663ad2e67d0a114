"""The order of draws: permutations, proportional weights, steady mixtures."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config import DataConfig, SourceConfig
from vitscale.data.mixture import (
    EpochOrder,
    build_mixture,
    interleave,
    interleaved,
    mixture_shares,
)
from vitscale.data.sampling import running_sum
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


def mixed(kind: str, *weights: float | None, **changes: object) -> DataConfig:
    sources = tuple(SourceConfig("csv", f"{i}.csv", weight=w) for i, w in enumerate(weights))
    return DataConfig(sources, mixture=kind, **changes)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_counts_of_draws_are_those_of_the_draws(shares: list[int], start: int) -> None:
    before, count = interleaved(start, shares), 100
    drawn = [interleave(k, shares)[0] for k in range(start, start + count)]
    found = np.array(interleaved(start + count, shares)) - before
    np.testing.assert_array_equal(found, np.bincount(drawn, minlength=len(shares)))


def test_an_epoch_of_a_mixture_draws_each_example_once() -> None:
    mixture = build_mixture([30, 70], mixed("proportional", None, None), seed=3)
    drawn = [mixture[k] for k in range(100)]
    assert len(set(drawn)) == 100
    assert mixture.drawn(100) == [30, 70]


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (mixed("proportional", None, None), [1 / 101, 100 / 101]),
        (mixed("balanced", None, None), [0.5, 0.5]),
        (mixed("round_robin", None, None), [0.5, 0.5]),
        (mixed("temperature", None, None, mixture_temperature=2.0), [1 / 11, 10 / 11]),
        (mixed("temperature", None, None, mixture_temperature=1.0), [1 / 101, 100 / 101]),
        (mixed("weights", 3.0, 1.0), [0.75, 0.25]),
    ],
)
def test_shares_of_every_kind(config: DataConfig, shares: list[float]) -> None:
    assert mixture_shares([10, 1000], config) == pytest.approx(shares)
    mixture = build_mixture([10, 1000], config, seed=0)
    sources = [mixture[k][0] for k in range(256 * 22)]
    assert np.mean(np.equal(sources, 0)) == pytest.approx(shares[0], abs=1e-3)
    assert mixture.drawn(len(sources)) == [sources.count(0), sources.count(1)]


def test_weights_must_be_positive() -> None:
    with pytest.raises(UserError, match="positive"):
        mixture_shares([1, 3], mixed("weights", 0.0, 1.0))


def test_round_robin_takes_whole_batches_in_turn_and_misses_nothing() -> None:
    config = mixed("round_robin", None, None, None, global_batch_size=4)
    mixture = build_mixture([6, 8, 4], config, seed=0)
    drawn = [mixture[k] for k in range(72)]
    assert [source for source, _ in drawn] == [i // 4 % 3 for i in range(72)]
    for source, size in enumerate([6, 8, 4]):
        examples = [example for s, example in drawn if s == source]
        for epoch in range(24 // size):
            assert sorted(examples[epoch * size : (epoch + 1) * size]) == list(range(size))
    for k in (0, 1, 4, 7, 13, 72):
        assert mixture.drawn(k) == [sum(s == i for s, _ in drawn[:k]) for i in range(3)]


def test_epochs_are_unequal_when_shares_are() -> None:
    """A small source begins again while a large one is still in its first epoch, which misses nothing."""
    mixture = build_mixture([10, 100], mixed("balanced", None, None), seed=0)
    drawn = [mixture[k] for k in range(200)]
    for source, times in ((0, 10), (1, 1)):
        counts = np.bincount([example for s, example in drawn if s == source])
        assert (counts == times).all()


def test_a_draw_far_away_costs_nothing() -> None:
    mixture = build_mixture([10**9, 10**8], mixed("proportional", None, None), seed=1)
    assert mixture[10**15] == mixture[10**15]


def test_replacements_are_spread_like_draws() -> None:
    order = EpochOrder.of(4, 7, 0, np.array([0, 1, 1, 2], np.float32))
    found = np.bincount([order.replacement(d, 1) for d in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(found, [0, 0.25, 0.25, 0.5], atol=0.03)
    uniform = EpochOrder.of(100, 7)
    tries = [uniform.replacement(5, attempt) for attempt in range(20)]
    assert len(set(tries)) > 10
    assert all(0 <= i < 100 for i in tries)


def test_weights_in_a_file_stay_there(tmp_path: Path) -> None:
    """A copy in another process opens the running sum; it is not sent, nor summed again."""
    weights = np.random.default_rng(0).random(3_000_000, np.float32)
    path = tmp_path / "weights.npy"
    np.save(path, weights)
    mapped = np.load(path, mmap_mode="r")
    order = EpochOrder.of(len(weights), 1, 0, mapped)
    assert isinstance(order.cumulative, np.memmap)
    (file,) = tmp_path.glob("*.cumulative.npy")
    written = file.stat().st_mtime_ns
    message = pickle.dumps(order)
    assert len(message) < 1000
    copy = pickle.loads(message)  # noqa: S301 - our own
    assert isinstance(copy.cumulative, np.memmap)
    held = EpochOrder.of(len(weights), 1, 0, weights)
    assert isinstance(held.cumulative, np.ndarray)
    for j in range(0, 6_000_000, 300_000):
        assert order[j] == copy[j] == held[j]
    EpochOrder.of(len(weights), 1, 0, mapped)
    assert file.stat().st_mtime_ns == written
    # Other weights in the same place: the old sum is of no use.
    np.save(path, weights[::-1].copy())
    other = EpochOrder.of(len(weights), 1, 0, np.load(path, mmap_mode="r"))
    assert other.cumulative is not None
    assert other.cumulative[0] == weights[-1]
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_a_torn_sum_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.npy"
    np.save(path, np.ones(100, np.float32))
    mapped = np.load(path, mmap_mode="r")
    Path(f"{path}.cumulative.npy").write_bytes(b"\x93NUMPY")
    assert running_sum(mapped).tolist() == list(range(1, 101))
