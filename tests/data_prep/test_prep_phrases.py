from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

from data_prep.candidates import COUNTS_SCHEMA
from data_prep.cluster import apportion, cluster_phrases, name_clusters
from data_prep.cooccurrence import row_blocks, symmetric_counts
from data_prep.embed import embed_phrases, factorise, ppmi, specificity
from data_prep.phrases import fold_spellings
from data_prep.schema import ClusterConfig, EmbeddingConfig, PrepConfig, TextSourceConfig
from vitscale.errors import UserError

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


def folded(table: pa.Table, canonical: list[int], folder: Path, entries: int = 1000) -> np.ndarray:
    found = symmetric_counts(table.to_batches, np.array(canonical), folder, part_entries=entries)
    assert found.has_canonical_format
    return found.toarray()


def test_counts_become_symmetric_and_folded(tmp_path: Path) -> None:
    rows = [
        {"row": 0, "column": 0, "count": 4},
        {"row": 0, "column": 1, "count": 3},
        {"row": 1, "column": 2, "count": 1},
    ]
    table = pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)
    every = [[4, 3, 0], [3, 0, 1], [0, 1, 0]]
    assert folded(table, [0, 1, 2], tmp_path / "a").tolist() == every
    # Phrase 1 is a form of 0: their pairs with each other are pairs of 0 with itself.
    assert folded(table, [0, 0, 1], tmp_path / "b").tolist() == [[10, 1], [1, 0]]
    assert folded(table, [0, -1, 1], tmp_path / "c").tolist() == [[4, 0], [0, 0]]


def test_counts_come_out_the_same_in_many_parts(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    row, column = np.sort(draw.integers(0, 40, (2, 300)), axis=0)
    columns = {"row": row, "column": column, "count": draw.integers(1, 9, 300)}
    table = pa.table(columns).cast(COUNTS_SCHEMA)
    small = pa.Table.from_batches(table.to_batches(max_chunksize=7))
    canonical = (np.arange(40) // 2).tolist()
    whole = folded(table, canonical, tmp_path / "a")
    np.testing.assert_array_equal(folded(small, canonical, tmp_path / "b", entries=20), whole)
    np.testing.assert_array_equal(whole, whole.T)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["data", "indices"]
    sparse = scipy.sparse.csr_matrix(whole)
    blocks = list(row_blocks(sparse, 50))
    assert len(blocks) > 2
    assert (scipy.sparse.vstack([block for _, block in blocks]) != sparse).nnz == 0


def test_synonyms_share_a_vector_and_a_cluster(tmp_path: Path) -> None:
    vectors = embed_phrases(block_counts(), CONFIG, 0, tmp_path)
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


def test_ppmi_of_independent_phrases_is_zero(tmp_path: Path) -> None:
    share = np.array([1, 2, 4])
    counts = scipy.sparse.csr_matrix(np.outer(share, share))
    independent = ppmi(counts, EmbeddingConfig(context_smoothing=1.0), tmp_path)
    assert abs(independent).max() < 1e-12


def test_the_lanczos_way_agrees_with_the_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = scipy.sparse.random(60, 60, 0.3, random_state=0)
    matrix = scipy.sparse.csr_matrix(random + random.T)
    full = factorise(matrix, 5, 0.5)
    monkeypatch.setattr("data_prep.embed.DENSE_LIMIT", 0)
    np.testing.assert_allclose(factorise(matrix, 5, 0.5), full, atol=1e-8)


def test_phrases_without_context_stay_on_their_own(tmp_path: Path) -> None:
    nothing = scipy.sparse.csr_matrix((6, 6), dtype=np.int64)
    vectors = embed_phrases(nothing, EmbeddingConfig(dimension=64), 0, tmp_path / "a")
    assert np.isfinite(vectors).all()
    again = embed_phrases(nothing, EmbeddingConfig(dimension=64), 0, tmp_path / "b")
    np.testing.assert_array_equal(vectors, again)


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


def test_levels_make_as_many_clusters_nearly_as_tight() -> None:
    vectors = units(900, 5)
    flat, tree = (
        cluster_phrases(vectors, np.ones(900), ClusterConfig(count=30, levels=levels), seed=0)
        for levels in (1, 2)
    )
    assert len(flat.centres) == len(tree.centres) == 30
    assert flat.distance.mean() <= tree.distance.mean() < 1.2 * flat.distance.mean()
    np.testing.assert_allclose(
        (vectors * tree.centres[tree.assignment]).sum(axis=1), 1 - tree.distance, atol=1e-5
    )
    with pytest.raises(UserError, match=r"clusters.levels=2 must be 1, or more with"):
        ClusterConfig(levels=2)


def test_seats_follow_the_sizes() -> None:
    assert apportion(np.array([60, 30, 9, 1, 0]), 10).tolist() == [6, 3, 1, 1, 0]
    assert apportion(np.array([2, 2]), 10).tolist() == [2, 2]


def test_names_are_the_central_frequent_phrases() -> None:
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    found = cluster_phrases(vectors, np.array([5.0, 50.0, 9.0]), ClusterConfig(count=2), seed=0)
    assert name_clusters(["couch", "sofa", "mug"], np.array([5, 50, 9]), found) == (
        ["sofa / couch", "mug"],
        [2, 1],
    )


def test_frequent_near_spellings_fold_by_context(tmp_path: Path) -> None:
    counts = block_counts()
    config = PrepConfig(sources=(TextSourceConfig("title"),))
    frequency = np.array([500, 20, 9, 500, 9, 9, 9])
    # "sofaa" is used like "sofa"; "skirt" is not used like "shirt", which it is an edit away from.
    phrases = ["sofa", "sofaa", "skirt", "shirt", "mug", "cup", "sale"]
    assert fold_spellings(phrases, frequency, counts, config, tmp_path).tolist() == [
        0,
        0,
        2,
        3,
        4,
        5,
        6,
    ]
