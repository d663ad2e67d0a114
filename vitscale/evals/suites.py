"""The three kinds of measurement, each a function of embedded arrays: retrieval, heads, kNN probe.

They know nothing of files, sources or models; `evaluate` feeds them and writes what they return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from vitscale.config import KnnConfig, RetrievalConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.evals import metrics
from vitscale.evals.index import ExactIndex, Index, build_index, recall_against_exact
from vitscale.evals.metrics import PAD
from vitscale.evals.probes import l2_normalise, weighted_knn
from vitscale.evals.stats import Estimate, bootstrap_mean, bootstrap_statistic

DEPTH = 10  # ranks that the retrieval metrics look at


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    samples: int = 1000
    seed: int = 0

    def mean(self, values: Float[np.ndarray, " N"]) -> Estimate:
        return bootstrap_mean(values, samples=self.samples, seed=self.seed)

    def statistic(self, function: Callable[[np.ndarray], float], n: int) -> Estimate:
        return bootstrap_statistic(function, n, samples=self.samples, seed=self.seed)


@dataclass(frozen=True)
class Ranking:
    """Hits of every query, best first. Rows of -1 are ranks without a hit."""

    query_ids: Sequence[str]
    index_ids: Sequence[str]
    rows: Int[np.ndarray, "Q k"]
    scores: Float[np.ndarray, "Q k"]
    relevant: Bool[np.ndarray, "Q k"]
    num_relevant: Int[np.ndarray, " Q"]


@dataclass(frozen=True)
class SuiteResult:
    """What one suite measured. Metric names are without the suite's own."""

    name: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    ids: Sequence[str] = ()  # of the queries or examples
    per_query: dict[str, Float[np.ndarray, " Q"]] = field(default_factory=dict)  # aligned with ids
    ranking: Ranking | None = None


def retrieval(
    suite: RetrievalConfig,
    query_ids: Sequence[str],
    queries: Float[np.ndarray, "Q D"],
    query_labels: Int[np.ndarray, "Q K"],
    index_ids: Sequence[str],
    vectors: Float[np.ndarray, "N D"],
    index_labels: Int[np.ndarray, "N L"],
    bootstrap: Bootstrap,
) -> SuiteResult:
    """Searches queries in vectors, both normalised, by the suite's search and the exact oracle.

    `<metric>` is of the suite's search, `exact_<metric>` of the oracle where they differ.
    """
    vectors, queries = l2_normalise(vectors), l2_normalise(queries)
    exact = ExactIndex(index_ids, vectors)
    itself = (
        _own_rows(query_ids, index_ids) if suite.exclude_same_id else np.full(len(queries), PAD)
    )
    num_relevant = metrics.count_relevant(query_labels, index_labels)
    own_label = metrics.relevance(itself[:, None], query_labels, index_labels)[:, 0]
    num_relevant = num_relevant - own_label

    def rank(index: Index) -> Ranking:
        rows, scores = _search(index, queries, itself, max(DEPTH, suite.neighbours))
        relevant = metrics.relevance(rows, query_labels, index_labels)
        return Ranking(query_ids, index_ids, rows, scores, relevant, num_relevant)

    oracle = rank(exact)
    chosen = oracle
    extra: dict[str, np.ndarray] = {}
    if suite.search != "exact":
        chosen = rank(build_index(suite.search, index_ids, vectors))
        extra = {f"exact_{name}": v for name, v in _ranking_metrics(oracle).items()}
        extra[f"{suite.search}_recall@{suite.neighbours}"] = recall_against_exact(
            *(array[:, : suite.neighbours] for array in (chosen.rows, chosen.scores)),
            *(array[:, : suite.neighbours] for array in (oracle.rows, oracle.scores)),
        )
    per_query = _ranking_metrics(chosen) | extra
    estimates = {name: bootstrap.mean(values) for name, values in per_query.items()}
    without = int((num_relevant == 0).sum())
    estimates["queries_without_relevant"] = Estimate.count(without, len(queries))
    return SuiteResult(suite.name, estimates, query_ids, per_query, chosen)


def _ranking_metrics(ranking: Ranking) -> dict[str, Float[np.ndarray, " Q"]]:
    relevant, number = ranking.relevant, ranking.num_relevant
    return {
        "P@1": metrics.precision_at(relevant, number, 1),
        f"R@{DEPTH}": metrics.recall_at(relevant, number, DEPTH),
        f"hit@{DEPTH}": metrics.hit_at(relevant, number, DEPTH),
        f"mAP@{DEPTH}": metrics.average_precision_at(relevant, number, DEPTH),
        f"MRR@{DEPTH}": metrics.reciprocal_rank_at(relevant, number, DEPTH),
    }


def _own_rows(query_ids: Sequence[str], index_ids: Sequence[str]) -> Int[np.ndarray, " Q"]:
    row_of = {name: row for row, name in enumerate(index_ids)}
    return np.array([row_of.get(name, PAD) for name in query_ids], np.int64)


def _search(
    index: Index, queries: np.ndarray, itself: Int[np.ndarray, " Q"], depth: int
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """The first `depth` hits without the query itself; a small index may give fewer."""
    spare = int((itself != PAD).any())
    size = len(index.ids)
    if size <= spare:
        raise UserError("the index holds nothing but the query itself; there is nothing to find.")
    rows, scores = index.search(queries, min(depth + spare, size))
    return metrics.drop_rows(rows, scores, itself) if spare else (rows, scores)


def classification(
    name: str,
    tasks: Sequence[TaskConfig],
    ids: Sequence[str],
    outputs: Mapping[str, Float[np.ndarray, "N C"]],
    labels: Mapping[str, Int[np.ndarray, "N K"]],
    num_unknown: Mapping[str, int],
    bootstrap: Bootstrap,
) -> SuiteResult:
    """Judges every task's head. `labels[field]` are ids of the model's own classes, padded with -1.

    `num_unknown[field]` labels are of classes that the model does not have: no head could be right.
    """
    estimates: dict[str, Estimate] = {}
    per_query: dict[str, np.ndarray] = {}
    for task in tasks:
        scores, target = outputs[task.name], labels[task.label_field]
        if not (target != PAD).any():
            raise UserError(
                f"suite {name!r}: no example has a label of field {task.label_field!r} that the "
                f"head {task.name!r} knows; leave the task out or check the column."
            )
        judge = _judge_multi_label if task.kind == "multi_label" else _judge_single
        values, figures = judge(task, scores, target, bootstrap)
        per_query |= {f"{task.name}/{metric}": v for metric, v in values.items()}
        estimates |= {
            f"{task.name}/{metric}": e
            for metric, e in ({m: bootstrap.mean(v) for m, v in values.items()} | figures).items()
        }
        estimates[f"{task.name}/unknown_labels"] = Estimate.count(
            num_unknown.get(task.label_field, 0), len(ids)
        )
    return SuiteResult(name, estimates, ids, per_query)


_Judged = tuple[dict[str, np.ndarray], dict[str, Estimate]]  # per example; figures that are no mean


def _judge_single(
    task: TaskConfig,
    scores: Float[np.ndarray, "N C"],
    target: Int[np.ndarray, "N K"],
    bootstrap: Bootstrap,
) -> _Judged:
    label = target[:, 0]
    predicted = scores.argmax(axis=1)
    values = {"accuracy": metrics.correct(predicted, label)}
    if task.kind == "ordinal":
        median = metrics.ordinal_median(scores)
        values["mae"] = metrics.absolute_error(median, label)
    known = label != PAD
    balanced = bootstrap.statistic(
        lambda w: metrics.balanced_accuracy(predicted[known], label[known], w), int(known.sum())
    )
    return values, {"balanced_accuracy": balanced}


def _judge_multi_label(
    task: TaskConfig,
    scores: Float[np.ndarray, "N C"],
    target: Int[np.ndarray, "N K"],
    bootstrap: Bootstrap,
) -> _Judged:
    """mAP over classes, and P@1: is the best-scored class a label? Unlabelled rows are out."""
    known = (target != PAD).any(axis=1)
    multi_hot = np.zeros((len(target), scores.shape[1]), bool)
    rows, columns = np.nonzero(target != PAD)
    multi_hot[rows, target[rows, columns]] = True
    first = multi_hot[np.arange(len(target)), scores.argmax(axis=1)].astype(np.float64)
    ap = metrics.MultiLabelAP(scores[known], multi_hot[known])
    # Each draw costs a pass over all scores; a big head gets fewer draws rather than minutes.
    draws = min(bootstrap.samples, max(50, 400_000_000 // max(scores.size, 1)))
    figure = Bootstrap(draws, bootstrap.seed).statistic(ap.mean, int(known.sum()))
    return {"P@1": np.where(known, first, np.nan)}, {"mAP": figure}


def knn(
    suite: KnnConfig,
    train: Float[np.ndarray, "N D"],
    train_labels: Int[np.ndarray, "N K"],
    test_ids: Sequence[str],
    test: Float[np.ndarray, "T D"],
    test_labels: Int[np.ndarray, "T L"],
    bootstrap: Bootstrap,
) -> SuiteResult:
    """Accuracy of the weighted kNN probe; examples without a label take no part on either side."""
    known = train_labels[:, 0] != PAD
    if not known.any():
        raise UserError(f"suite {suite.name!r}: no training example has a {suite.field!r} label.")
    if known.sum() < suite.k:
        raise UserError(
            f"suite {suite.name!r}: k={suite.k} neighbours of {int(known.sum())} labelled training "
            f"examples; lower k."
        )
    label = test_labels[:, 0]
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    votes = weighted_knn(
        train[known],
        train_labels[known, 0],
        test,
        num_classes=num_classes,
        k=suite.k,
        temperature=suite.temperature,
    )
    accuracy = metrics.correct(votes.argmax(axis=1), label)
    estimate = bootstrap.mean(accuracy)
    if math.isnan(estimate.value):
        raise UserError(f"suite {suite.name!r}: no test example has a {suite.field!r} label.")
    unlabelled = Estimate.count(int((label == PAD).sum()), len(label))
    return SuiteResult(
        suite.name,
        {"accuracy": estimate, "unlabelled": unlabelled},
        test_ids,
        {"accuracy": accuracy},
    )
