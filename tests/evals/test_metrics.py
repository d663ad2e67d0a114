"""Metrics against scikit-learn and against plain Python, on random and tie-laden rankings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from vitscale.evals import metrics
from vitscale.evals.metrics import PAD

RANKINGS = st.lists(
    st.tuples(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 5)),
    min_size=1,
    max_size=8,
)
DEPTHS = st.integers(1, 12)


def plain_retrieval(flags: list[bool], total: int, k: int) -> dict[str, float]:
    """One query, written from the definitions, without numpy."""
    found = [rank for rank, flag in enumerate(flags, 1) if flag and rank <= k]
    precisions = [(i + 1) / rank for i, rank in enumerate(found)]
    return {
        "precision": len(found) / k,
        "recall": len(found) / total,
        "hit": float(bool(found)),
        "ap": sum(precisions) / min(k, total),
        "rr": 1 / found[0] if found else 0.0,
    }


@given(RANKINGS, DEPTHS)
@settings(deadline=None)
def test_retrieval_metrics_follow_their_definitions(rankings, k):
    relevant = np.array([flags for flags, _ in rankings])
    # `extra` relevant items that no rank shows.
    total = np.array([sum(flags) + extra for flags, extra in rankings])
    got = {
        "precision": metrics.precision_at(relevant, total, k),
        "recall": metrics.recall_at(relevant, total, k),
        "hit": metrics.hit_at(relevant, total, k),
        "ap": metrics.average_precision_at(relevant, total, k),
        "rr": metrics.reciprocal_rank_at(relevant, total, k),
    }
    for query, (flags, _) in enumerate(rankings):
        for name, values in got.items():
            if total[query] == 0:
                assert np.isnan(values[query])
            else:
                expected = plain_retrieval(flags, int(total[query]), k)[name]
                assert values[query] == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
@settings(deadline=None)
def test_average_precision_of_a_whole_ranking_is_scikit_learns(flags):
    relevant = np.array([flags])
    k = len(flags)
    got = metrics.average_precision_at(relevant, relevant.sum(axis=1), k)[0]
    assert got == pytest.approx(average_precision_score(flags, -np.arange(k)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_relevance_counts_agree_with_sets(seed, width):
    rng = np.random.default_rng(seed)
    queries = rng.integers(-1, 5, size=(6, width))
    index = rng.integers(-1, 5, size=(9, rng.integers(1, 4)))
    rows = rng.integers(-1, 9, size=(6, 4))
    relevant = metrics.relevance(rows, queries, index)
    counts = metrics.count_relevant(queries, index)
    for q in range(6):
        shared = [bool(({*queries[q]} & {*item}) - {PAD}) for item in index]
        assert counts[q] == sum(shared)
        assert [r >= 0 and shared[r] for r in rows[q]] == relevant[q].tolist()


def test_the_query_is_dropped_wherever_it_ranks():
    rows = np.array([[3, 1, 2], [1, 3, 2], [1, 2, 3], [1, 2, 4], [5, 6, 7]])
    scores = np.tile([0.9, 0.8, 0.7], (5, 1))
    kept, kept_scores = metrics.drop_rows(rows, scores, np.array([3, 3, 3, 3, PAD]))
    assert kept.tolist() == [[1, 2], [1, 2], [1, 2], [1, 2], [5, 6]]
    assert kept_scores.tolist() == [[0.8, 0.7], [0.9, 0.7], [0.9, 0.8], [0.9, 0.8], [0.9, 0.8]]


def test_unfilled_ranks_are_not_relevant():
    relevant = metrics.relevance(np.array([[0, PAD]]), np.array([[1]]), np.array([[0], [1]]))
    assert relevant.tolist() == [[False, False]]  # row -1 must not read the last item


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_multi_label_ap_is_scikit_learns_with_ties_and_weights(seed, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(25, 3)).astype(np.float64)
    targets = rng.random((25, 3)) < 0.3
    weights = rng.integers(0, 4, size=25).astype(np.float64)
    judge = metrics.MultiLabelAP(scores, targets)
    for weighted in (None, weights):
        got = judge.per_class(weighted)
        for c in range(3):
            positives = targets[:, c] if weighted is None else targets[:, c] * weighted
            if positives.sum() == 0:
                assert np.isnan(got[c])
            else:
                expected = average_precision_score(
                    targets[:, c], scores[:, c], sample_weight=weighted
                )
                assert got[c] == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_balanced_accuracy_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=30)
    # Only classes that occur: scikit-learn warns about others.
    predicted = rng.permutation(labels)
    weights = rng.integers(1, 4, size=30).astype(np.float64)
    got = metrics.balanced_accuracy(predicted, labels, weights)
    assert got == pytest.approx(balanced_accuracy_score(labels, predicted, sample_weight=weights))


def test_unlabelled_examples_have_no_accuracy():
    predicted, labels = np.array([1, 2, 3]), np.array([1, 0, PAD])
    assert metrics.correct(predicted, labels)[:2].tolist() == [1.0, 0.0]
    assert metrics.absolute_error(predicted, labels)[:2].tolist() == [0.0, 2.0]
    assert np.isnan(metrics.correct(predicted, labels)[2])
    assert np.isnan(metrics.absolute_error(predicted, labels)[2])
    assert metrics.balanced_accuracy(predicted, labels) == 0.5


def test_the_ordinal_prediction_is_the_median():
    probs = np.array([[0.4, 0.2, 0.4], [0.05, 0.05, 0.9], [0.5, 0.25, 0.25]])
    assert metrics.ordinal_median(np.log(probs)).tolist() == [1, 2, 0]
