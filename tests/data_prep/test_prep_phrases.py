import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

from data_prep.candidates import COUNTS_SCHEMA
from data_prep.cluster import assign, cluster_phrases, kmeans_plus_plus, leaders, name_clusters
from data_prep.embed import embed_phrases, factorise, ppmi, specificity, symmetric_counts
from data_prep.phrases import fold_spellings
from data_prep.schema import ClusterConfig, EmbeddingConfig, PrepConfig, TextSourceConfig

CONFIG = EmbeddingConfig(dimension=8)


def block_counts() -> scipy.sparse.csr_matrix:
    """Two concepts of three synonyms each, and a seventh phrase that is said of everything."""
    counts = np.full((7, 7), 2)
    counts[:3, :3] = counts[3:6, 3:6] = 30
    counts[6, :] = counts[:, 6] = 20
    return scipy.sparse.csr_matrix(counts)


def units(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_counts_become_symmetric_and_folded() -> None:
    rows = [
        {"row": 0, "column": 0, "count": 4},
        {"row": 0, "column": 1, "count": 3},
        {"row": 1, "column": 2, "count": 1},
    ]
    table = pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)
    assert symmetric_counts(table, np.arange(3)).toarray().tolist() == [
        [4, 3, 0],
        [3, 0, 1],
        [0, 1, 0],
    ]
    # Phrase 1 is a form of 0: their pairs with each other are pairs of 0 with itself.
    assert symmetric_counts(table, np.array([0, 0, 2])).toarray().tolist() == [
        [10, 0, 1],
        [0, 0, 0],
        [1, 0, 0],
    ]


def test_synonyms_share_a_vector_and_a_cluster() -> None:
    vectors = embed_phrases(block_counts(), CONFIG, seed=0)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    found = cluster_phrases(vectors, np.arange(7, 0, -1.0), ClusterConfig(), seed=0)
    assert found.assignment[0] == found.assignment[1] == found.assignment[2] == 0
    assert found.assignment[3] == found.assignment[4] == found.assignment[5]
    assert found.assignment[3] != found.assignment[0]


def test_what_is_said_of_everything_is_not_specific() -> None:
    values = specificity(block_counts(), prior=0.1)
    assert values[6] < 0.05 < values[0]
    nothing = specificity(scipy.sparse.csr_matrix((2, 2), dtype=np.int64), prior=0.1)
    np.testing.assert_allclose(nothing, 0.1)


def test_ppmi_of_independent_phrases_is_zero() -> None:
    share = np.array([1, 2, 4])
    independent = ppmi(
        scipy.sparse.csr_matrix(np.outer(share, share)), EmbeddingConfig(context_smoothing=1.0)
    )
    assert abs(independent).max() < 1e-12


def test_the_lanczos_way_agrees_with_the_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = scipy.sparse.random(60, 60, 0.3, random_state=0)
    matrix = scipy.sparse.csr_matrix(random + random.T)
    full = factorise(matrix, 5, 0.5)
    monkeypatch.setattr("data_prep.embed.DENSE_LIMIT", 0)
    np.testing.assert_allclose(factorise(matrix, 5, 0.5), full, atol=1e-8)


def test_phrases_without_context_stay_on_their_own() -> None:
    vectors = embed_phrases(
        scipy.sparse.csr_matrix((6, 6), dtype=np.int64), EmbeddingConfig(dimension=64), seed=0
    )
    assert np.isfinite(vectors).all()
    again = embed_phrases(
        scipy.sparse.csr_matrix((6, 6), dtype=np.int64), EmbeddingConfig(dimension=64), seed=0
    )
    np.testing.assert_array_equal(vectors, again)


def test_blocks_do_not_change_the_assignment() -> None:
    vectors, centres = units(50, 4), units(5, 4, seed=1)
    nearest, similarity = assign(vectors, centres, 7)
    product = vectors @ centres.T
    np.testing.assert_array_equal(nearest, product.argmax(axis=1))
    np.testing.assert_allclose(similarity, product.max(axis=1), rtol=1e-6)


def test_k_means_never_gets_worse_and_uses_every_cluster() -> None:
    vectors = units(300, 6)
    weights = np.ones(300)
    costs = []
    for iterations in (0, 1, 5, 25):
        config = ClusterConfig(count=12, iterations=iterations)
        found = cluster_phrases(vectors, weights, config, seed=3)
        costs.append(found.distance.sum())
        assert sorted(set(found.assignment.tolist())) == list(range(len(found.centres)))
    assert costs == sorted(costs, reverse=True)


def test_leaders_leave_no_phrase_outside_the_radius() -> None:
    vectors = units(700, 3)
    centres = leaders(vectors, np.arange(700.0), 0.3, 1000)
    assert assign(vectors, centres, 64)[1].min() >= 0.7 - 1e-5
    within = centres @ centres.T - 2 * np.eye(len(centres))
    assert within.max() < 0.7 + 1e-5
    assert len(leaders(vectors, np.arange(700.0), 0.01, 10)) == 10


def test_k_means_plus_plus_stops_at_the_distinct_vectors() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    assert len(kmeans_plus_plus(vectors, np.ones(15, np.float32), 9, seed=0)) == 3


def test_names_are_the_central_frequent_phrases() -> None:
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    found = cluster_phrases(vectors, np.array([5.0, 50.0, 9.0]), ClusterConfig(count=2), seed=0)
    assert name_clusters(["couch", "sofa", "mug"], np.array([5, 50, 9]), found) == (
        ["sofa / couch", "mug"],
        [2, 1],
    )


def test_frequent_near_spellings_fold_by_context() -> None:
    counts = block_counts()
    config = PrepConfig(sources=(TextSourceConfig("title"),))
    frequency = np.array([500, 20, 9, 500, 9, 9, 9])
    # "sofaa" is used like "sofa"; "skirt" is not used like "shirt", which it is an edit away from.
    phrases = ["sofa", "sofaa", "skirt", "shirt", "mug", "cup", "sale"]
    assert fold_spellings(phrases, frequency, counts, config).tolist() == [0, 0, 2, 3, 4, 5, 6]
