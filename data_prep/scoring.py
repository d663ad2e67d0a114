"""Scores the phrases of a record: who says it, does anybody agree, and does it say anything.

    score(r, p) = quality(p) * (1 - prod over sources s of (1 - prior_s * e(r, s, p)))

The second factor is a noisy-or: each source is right on its own with probability `prior`. Evidence e is
support(r, s, p) ** support_power where s holds p itself, and AGREEMENT times the same of p's cluster where s says it
in other words. support: share of the source's weight (texts, clicks) behind it.

    quality(p) = min(1, idf / idf_scale) * specificity / (specificity + specificity_scale)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_prep.schema import ScoringConfig

AGREEMENT = 0.9  # of a source that names another phrase of the same cluster
ANNOTATIONS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("phrase_id", pa.int32()),
        ("phrase", pa.string()),
        ("score", pa.float32()),
        ("sources", pa.list_(pa.string())),
        ("language", pa.string()),  # of the first source that holds the phrase
    ]
)
SCORES_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),
        ("phrase_id", pa.int32()),
        ("score", pa.float32()),
        ("sources", pa.int64()),  # bit s: source s holds the phrase
        ("language", pa.string()),  # of the first source that holds it
    ]
)


@dataclass(frozen=True)
class PhraseTable:
    """What scoring knows of each of P phrases. Global state: its size is the vocabulary's."""

    phrases: tuple[str, ...]
    canonical: np.ndarray  # [P] int32: the phrase that it is a form of
    cluster: np.ndarray  # [P] int32
    quality: np.ndarray  # [P] float64, 0..1


def phrase_quality(idf: np.ndarray, specificity: np.ndarray, config: ScoringConfig) -> np.ndarray:
    """How much a phrase says about an image, `[P]` in 0..1; formula above."""
    told = specificity / (specificity + config.specificity_scale)
    return np.minimum(1.0, idf / config.idf_scale) * told


def score_batch(
    hits: pa.RecordBatch, table: PhraseTable, priors: np.ndarray, config: ScoringConfig
) -> pa.RecordBatch:
    """Scores of a `HITS_SCHEMA` batch (`SCORES_SCHEMA`): a row a (record, phrase), a record's best first."""
    record = hits.column("record").to_numpy().astype(np.int64)
    source = hits.column("source").to_numpy().astype(np.int64)
    phrase = table.canonical[hits.column("phrase_id").to_numpy()].astype(np.int64)
    support = hits.column("support").to_numpy().astype(np.float64)

    size = max(len(table.phrases), 1)
    pairs, first, row = np.unique(record * size + phrase, return_index=True, return_inverse=True)
    own = _support(row, source, support, len(pairs), len(priors))
    pair_record, pair_phrase = pairs // size, pairs % size
    groups, group = np.unique(pair_record * size + table.cluster[pair_phrase], return_inverse=True)
    shared = _support(group[row], source, support, len(groups), len(priors))

    evidence = np.maximum(
        own**config.support_power, AGREEMENT * shared[group] ** config.support_power
    )
    score = table.quality[pair_phrase] * (1.0 - np.prod(1.0 - priors * evidence, axis=1))
    bits = ((own > 0) << np.arange(len(priors))).sum(axis=1)
    score = score.astype(np.float32)
    order = np.lexsort((pair_phrase, -score, pair_record))
    order = order[score[order] > 0]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(pair_record[order], pa.int32()),
            pa.array(pair_phrase[order], pa.int32()),
            pa.array(score[order]),
            pa.array(bits[order], pa.int64()),
            hits.column("language").take(pa.array(first[order])).cast(pa.string()),
        ],
        schema=SCORES_SCHEMA,
    )


def annotate(
    scores: pa.RecordBatch, ids: pa.Array, table: PhraseTable, source_names: tuple[str, ...]
) -> pa.RecordBatch:
    """Scores with names in place of numbers (`ANNOTATIONS_SCHEMA`)."""
    phrase_id = scores.column("phrase_id")
    bits = scores.column("sources").to_numpy()[:, None] >> np.arange(len(source_names)) & 1
    named = pa.array(source_names, pa.string()).take(pa.array(np.nonzero(bits)[1]))
    offsets = np.concatenate([[0], np.cumsum(bits.sum(axis=1))]).astype(np.int32)
    return pa.RecordBatch.from_arrays(
        [
            ids.take(scores.column("record")),
            phrase_id,
            pa.array(table.phrases, pa.string()).take(phrase_id),
            scores.column("score"),
            pa.ListArray.from_arrays(pa.array(offsets), named),
            scores.column("language"),
        ],
        schema=ANNOTATIONS_SCHEMA,
    )


def _support(
    row: np.ndarray, source: np.ndarray, support: np.ndarray, rows: int, sources: int
) -> np.ndarray:
    """Support summed by row and source, at most 1: `[rows, sources] float64`."""
    flat = np.bincount(row * sources + source, support, minlength=rows * sources)
    return np.minimum(flat, 1.0).reshape(rows, sources)
