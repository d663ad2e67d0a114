import jax
import numpy as np
import pytest

from data_prep import kmeans
from data_prep.kmeans import VectorBlocks, lloyd, move_centres, nearest, nearest_several, round_up
from data_prep.kmeans_start import kmeans_parallel, kmeans_plus_plus, leaders


def units(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain_lloyd(
    vectors: np.ndarray, weights: np.ndarray, centres: np.ndarray, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iteration as the textbook has it."""
    assignment = (vectors @ centres.T).argmax(axis=1)
    for _ in range(iterations):
        similarity = (vectors * centres[assignment]).sum(axis=1)
        every = np.ones(len(centres), bool)
        centres = move_centres(vectors, weights, assignment, similarity, centres, every)
        assignment = (vectors @ centres.T).argmax(axis=1)
    return assignment, centres


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("size", "count", "block"), [(1500, 60, 64), (333, 7, 1024), (5, 5, 64)])
def test_the_search_finds_the_nearest_and_second(
    devices: int, size: int, count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "TILE", 16)
    vectors, centres = units(size, 8), units(count, 8, seed=1)
    blocks = VectorBlocks.put(vectors, block, jax.devices()[:devices])
    index, best, second = nearest(blocks, centres)
    product = np.sort(vectors @ centres.T, axis=1)
    np.testing.assert_array_equal(index, (vectors @ centres.T).argmax(axis=1))
    np.testing.assert_allclose(best, product[:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, product[:, -2], rtol=1e-5, atol=1e-6)


def test_equally_near_centres_give_the_first() -> None:
    vectors = np.eye(3, dtype=np.float32)
    centres = vectors[[2, 0, 0, 2]]
    index, best, second = nearest(VectorBlocks.put(vectors, 64), centres)
    assert index.tolist() == [1, 0, 0]
    assert best.tolist() == [1, 0, 1]
    assert second.tolist() == [1, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_skipping_changes_no_assignment(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "TILE", 8)
    draw = np.random.default_rng(seed)
    vectors = units(1200, 6, seed)
    weights = draw.integers(1, 9, 1200).astype(np.float32)
    start = vectors[draw.choice(1200, 70, replace=False)]
    expected, centres = plain_lloyd(vectors, weights, start, 12)
    found = lloyd(vectors, weights, start, 12, block_rows=32)
    np.testing.assert_array_equal(found.assignment, expected)
    np.testing.assert_allclose(found.centres, centres, atol=1e-5)
    assert found.products[-1] < 0.7 * 1200 * 70


def test_devices_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "TILE", 16)
    vectors, weights = units(3000, 8), np.ones(3000, np.float32)
    one, eight = jax.devices()[:1], jax.devices()
    assert len(eight) == 8
    starts = [
        kmeans_parallel(vectors, weights, 100, 0, block_rows=64, devices=chosen)
        for chosen in (one, eight)
    ]
    np.testing.assert_array_equal(*starts)
    alone, shared = (
        lloyd(vectors, weights, starts[0], 10, block_rows=64, devices=chosen)
        for chosen in (one, eight)
    )
    np.testing.assert_array_equal(alone.assignment, shared.assignment)
    np.testing.assert_array_equal(alone.centres, shared.centres)
    np.testing.assert_array_equal(alone.similarity, shared.similarity)


def test_empty_clusters_are_seeded_again() -> None:
    vectors = units(400, 5)
    start = np.concatenate([units(10, 5, seed=1), np.repeat(vectors[:1], 10, axis=0)])
    found = lloyd(vectors, np.ones(400, np.float32), start, 30, block_rows=64)
    assert len(np.unique(found.assignment)) == 20


def test_the_parallel_start_is_better_than_a_random_one() -> None:
    draw = np.random.default_rng(0)
    vectors = units(40, 16)[draw.integers(40, size=4000)] + 0.02 * units(4000, 16, seed=1)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    weights = np.ones(4000, np.float32)
    start = kmeans_parallel(vectors, weights, 40, seed=0)
    assert len(start) == 40
    again = kmeans_parallel(vectors, weights, 40, seed=0)
    np.testing.assert_array_equal(start, again)
    chosen = vectors[draw.choice(4000, 40, replace=False)]
    ours, theirs = ((vectors @ c.T).max(axis=1).mean() for c in (start, chosen))
    assert 1 - ours < 0.2 * (1 - theirs)  # a random start misses a third of the 40 groups


def test_k_means_plus_plus_stops_at_the_distinct_vectors() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    chosen = kmeans_plus_plus(vectors, np.ones(15, np.float32), 9, seed=0)
    assert sorted(chosen // 5) == [0, 1, 2]


def test_leaders_leave_no_phrase_outside_the_radius() -> None:
    vectors = units(700, 3)
    centres = leaders(vectors, np.arange(700.0), 0.3, 1000)
    assert (vectors @ centres.T).max(axis=1).min() >= 0.7 - 1e-5
    within = centres @ centres.T - 2 * np.eye(len(centres))
    assert within.max() < 0.7 + 1e-5
    assert len(leaders(vectors, np.arange(700.0), 0.01, 10)) == 10


def test_several_nearest_are_sorted() -> None:
    vectors, centres = units(70, 4), units(9, 4, seed=1)
    index, cosine = nearest_several(vectors, centres, 3, block_rows=16)
    order = np.argsort(-(vectors @ centres.T), axis=1)[:, :3]
    np.testing.assert_array_equal(index, order)
    expected = np.take_along_axis(vectors @ centres.T, order, axis=1)
    np.testing.assert_allclose(cosine, expected, rtol=1e-5, atol=1e-6)


def test_padding_is_at_most_a_quarter() -> None:
    for count in range(1, 3000):
        assert count <= round_up(count) <= max(1.25 * count, count + 1)
