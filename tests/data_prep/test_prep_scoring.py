import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from data_prep.balance import count_labels, pick_labels, rarest_label, sampling_weights, split_of
from data_prep.candidates import HITS_SCHEMA
from data_prep.schema import PrepConfig, ScoringConfig, TextSourceConfig
from data_prep.scoring import AGREEMENT, PhraseTable, annotate, phrase_quality, score_batch

CONFIG = PrepConfig(
    sources=(TextSourceConfig("title"), TextSourceConfig("tags", kind="list")),
    scoring=ScoringConfig(min_score=0.3, relative_min_score=0.5),
    labels_per_image=2,
)
PRIORS = np.array([0.7, 0.5])
TABLE = PhraseTable(  # sofa, couch (one cluster), red, sale (says nothing)
    ("sofa", "couch", "red", "sale"),
    np.arange(4, dtype=np.int32),
    np.array([0, 0, 1, 2], np.int32),
    np.array([1.0, 1.0, 0.8, 0.0]),
)


def hits(rows: list[tuple[int, int, int, float]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [dict(zip(HITS_SCHEMA.names, row, strict=True)) for row in rows], schema=HITS_SCHEMA
    )


def test_scores_follow_the_formula() -> None:
    batch = hits([(0, 0, 0, 1.0), (0, 1, 1, 0.25), (0, 1, 2, 1.0), (0, 0, 3, 1.0)])
    scores = score_batch(batch, TABLE, PRIORS, CONFIG.scoring)
    found = {row["phrase_id"]: row for row in scores.to_pylist()}
    assert found[0]["score"] == pytest.approx(1 - 0.3 * (1 - 0.5 * AGREEMENT * 0.5))
    assert found[1]["score"] == pytest.approx(1 - (1 - 0.7 * AGREEMENT) * (1 - 0.5 * 0.5))
    assert found[2]["score"] == pytest.approx(0.8 * 0.5)
    assert 3 not in found
    assert scores.column("score").to_pylist() == sorted(
        scores.column("score").to_pylist(), reverse=True
    )


def test_annotations_name_the_sources() -> None:
    batch = hits([(0, 0, 0, 1.0), (0, 1, 0, 1.0), (1, 1, 2, 1.0)])
    scores = score_batch(batch, TABLE, PRIORS, CONFIG.scoring)
    rows = annotate(scores, pa.array(["x", "y"]), TABLE, ("title", "tags")).to_pylist()
    assert [(r["id"], r["phrase"], r["sources"]) for r in rows] == [
        ("x", "sofa", ["title", "tags"]),
        ("y", "red", ["tags"]),
    ]


def test_quality_needs_both_rarity_and_a_context() -> None:
    quality = phrase_quality(np.array([4.0, 0.1, 4.0]), np.array([5.0, 5.0, 0.0]), ScoringConfig())
    assert quality[0] > 0.9
    assert quality[1] < 0.1
    assert quality[2] == 0.0


def picked(config: PrepConfig) -> list[dict[str, object]]:
    rows = [(0, 0, 0, 1.0), (0, 1, 1, 1.0), (0, 1, 2, 1.0), (1, 0, 3, 1.0), (2, 1, 2, 0.1)]
    scores = score_batch(hits(rows), TABLE, PRIORS, config.scoring)
    records = pa.RecordBatch.from_pydict({"id": ["a", "b", "c"], "group": ["a", "b", "c"]})
    return pick_labels(scores, records, TABLE, config).to_pylist()


def test_labels_need_a_score_and_are_cut_best_first() -> None:
    config = dataclasses.replace(
        CONFIG, scoring=ScoringConfig(min_score=0.3, relative_min_score=0.4)
    )
    (row,) = picked(config)
    assert (row["id"], row["labels"]) == ("a", [0, 1])
    (row,) = picked(dataclasses.replace(config, labels_per_image=1))
    assert row["labels"] == [0]
    (row,) = picked(dataclasses.replace(config, label_space="phrases"))
    assert row["labels"] == [0, 1]  # phrases now: "red" is the third best


def test_rare_labels_weigh_more_and_the_mean_is_one() -> None:
    frequency = np.array([8, 2, 1])
    schema = pa.schema([("labels", pa.list_(pa.int32()))])
    batch = pa.RecordBatch.from_pydict({"labels": [[0], [0, 1], [1, 2], [0]]}, schema=schema)
    assert count_labels(batch).column("count").to_pylist() == [3, 2, 1]
    for part in (batch, batch.slice(1, 2)):
        rarest = rarest_label(part, frequency)
        assert rarest.tolist() == ([8, 2, 1, 8] if part is batch else [2, 1])
    rarest = rarest_label(batch, frequency)
    weights = sampling_weights(rarest, {8: 2, 2: 1, 1: 1}, 0.5)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[2] / weights[0] == pytest.approx(np.sqrt(8))
    assert sampling_weights(rarest, {8: 2, 2: 1, 1: 1}, 0.0).tolist() == [1, 1, 1, 1]


def test_the_split_depends_on_the_id_alone() -> None:
    ids = [f"r{i}" for i in range(2000)]
    splits = [split_of(i, 0.1) for i in ids]
    assert splits == [split_of(i, 0.1) for i in ids]
    assert 0.07 < splits.count("validation") / 2000 < 0.13
    # A larger fraction only adds to the validation split.
    assert all(
        split_of(i, 0.2) == "validation"
        for i, s in zip(ids, splits, strict=True)
        if s == "validation"
    )
    assert {split_of(i, 0.0) for i in ids} == {"train"}
