"""Scores the phrases of a record: who says it, does anybody agree, and does it say anything.

    score(r, p) = quality(p) * (1 - prod over sources s of (1 - prior_s * e(r, s, p)))

The second factor is a noisy-or: each source is right on its own with probability `prior`. Evidence e is
support(r, s, p) ** support_power where s holds p itself, and AGREEMENT times the same of p's cluster where s says it
in other words. support: share of the source's weight (texts, clicks) behind it.

    quality(p) = min(1, idf / idf_scale) * specificity / (specificity + specificity_scale)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from data_prep.matching import list_offsets
from data_prep.schema import ScoringConfig

AGREEMENT = 0.9  # of a source that names another phrase of the same cluster
ANNOTATIONS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("phrase_id", pa.int32()),
        ("phrase", pa.string()),
        ("score", pa.float32()),
        ("sources", pa.list_(pa.string())),
        (
            "language",
            pa.string(),
        ),  # of the first source that holds the phrase, or its first evidence
        # phrases of the record that it was inferred from; empty without learnt associations
        ("evidence", pa.list_(pa.string())),
    ]
)
SCORES_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),
        ("phrase_id", pa.int32()),
        ("score", pa.float32()),
        ("sources", pa.int64()),  # bit s: source s holds the phrase
        ("language", pa.string()),  # of the first source that holds it
        ("evidence", pa.list_(pa.int32())),  # phrases of the record that it was inferred from
    ]
)


def _unknown() -> np.ndarray:
    return np.zeros(0)


def _no_vectors() -> np.ndarray:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class PhraseTable:
    """What scoring knows of each of P phrases. Global state: its size is the vocabulary's.

    What has a default may be unknown: an empty array, whose features are 0.
    """

    phrases: tuple[str, ...]
    canonical: np.ndarray  # [P] int32: the phrase that it is a form of
    cluster: np.ndarray  # [P] int32
    quality: np.ndarray  # [P] float64, 0..1
    idf: np.ndarray = field(default_factory=_unknown)  # [P] float64, nats
    specificity: np.ndarray = field(default_factory=_unknown)  # [P] float64, nats
    category_entropy: np.ndarray = field(
        default_factory=_unknown
    )  # [P] float64, 0..1; NaN: unknown
    query_frequency: np.ndarray = field(default_factory=_unknown)  # [P] records with it in a query
    is_label: np.ndarray = field(default_factory=_unknown)  # [P] bool; False: evidence alone
    vectors: np.ndarray = field(default_factory=_no_vectors)  # [K, D] float32, unit rows
    vector_row: np.ndarray = field(default_factory=_unknown)  # [P] int32: row of its canonical form

    @cached_property
    def texts(self) -> pa.Array:
        """`[P] string`: the phrases."""
        return pa.array(self.phrases, pa.string())


def phrase_quality(idf: np.ndarray, specificity: np.ndarray, config: ScoringConfig) -> np.ndarray:
    """How much a phrase says about an image, `[P]` in 0..1; formula above."""
    told = specificity / (specificity + config.specificity_scale)
    return np.minimum(1.0, idf / config.idf_scale) * told


def noisy_or(
    own: np.ndarray, cluster: np.ndarray, quality: np.ndarray, priors: np.ndarray, power: float
) -> np.ndarray:
    """The score by hand-set weights, `[M]` in 0..1; formula above.

    Args:
      own, cluster: `[M, S]` support of the phrase, and of its cluster, in each source.
      quality: `[M]` of the phrase; priors: `[S]`; power: `ScoringConfig.support_power`.
    """
    evidence = np.maximum(own**power, AGREEMENT * cluster**power)
    return quality * (1.0 - np.prod(1.0 - priors * evidence, axis=1))


def least_scores(languages: pa.Array, config: ScoringConfig) -> np.ndarray:
    """The score that a label needs in each language, `[n] float32`: of its BCP 47 tag, "de-AT" or else "de"."""
    encoded = languages.dictionary_encode()
    least = [
        threshold_of(tag, config.min_scores, config.min_score)
        for tag in encoded.dictionary.to_pylist()
    ]
    return np.array([*least, config.min_score], np.float32)[encoded.indices.fill_null(len(least))]


def threshold_of(language: str, by_language: Mapping[str, float], default: float) -> float:
    return by_language.get(language, by_language.get(language.split("-")[0], default))


def annotate(
    scores: pa.RecordBatch, ids: pa.Array, table: PhraseTable, source_names: tuple[str, ...]
) -> pa.RecordBatch:
    """Scores with names in place of numbers (`ANNOTATIONS_SCHEMA`)."""
    phrase_id = scores.column("phrase_id")
    bits = scores.column("sources").to_numpy()[:, None] >> np.arange(len(source_names)) & 1
    named = pa.array(source_names, pa.string()).take(pa.array(np.nonzero(bits)[1]))
    offsets = np.concatenate([[0], np.cumsum(bits.sum(axis=1))]).astype(np.int32)
    evidence = scores.column("evidence")
    told = pa.ListArray.from_arrays(
        pa.array(list_offsets(evidence), pa.int32()), table.texts.take(evidence.flatten())
    )
    return pa.RecordBatch.from_arrays(
        [
            ids.take(scores.column("record")),
            phrase_id,
            table.texts.take(phrase_id),
            scores.column("score"),
            pa.ListArray.from_arrays(pa.array(offsets), named),
            scores.column("language"),
            told,
        ],
        schema=ANNOTATIONS_SCHEMA,
    )
