"""From corpus counts to everything that is known of a phrase: form, frequency, vector, cluster, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse

from data_prep.canonical import near_spellings, resolve
from data_prep.cluster import Clustering, cluster_phrases, name_clusters
from data_prep.embed import embed_phrases, ppmi, specificity, symmetric_counts
from data_prep.schema import PrepConfig
from data_prep.scoring import PhraseTable, phrase_quality
from data_prep.vocabulary import inverse_document_frequency

VOCABULARY_SCHEMA = pa.schema(
    [
        ("phrase_id", pa.int32()),
        ("phrase", pa.string()),
        ("canonical", pa.string()),
        ("language", pa.string()),
        ("document_frequency", pa.int64()),
        ("idf", pa.float32()),
    ]
)
CLUSTERS_SCHEMA = pa.schema(
    [("phrase_id", pa.int32()), ("cluster_id", pa.int32()), ("distance", pa.float32())]
)
CLUSTER_NAMES_SCHEMA = pa.schema(
    [("cluster_id", pa.int32()), ("name", pa.string()), ("size", pa.int32())]
)


@dataclass(frozen=True)
class PhraseKnowledge:
    """The tables that describe the vocabulary, and what scoring needs of them."""

    table: PhraseTable
    vocabulary: pa.RecordBatch
    clusters: pa.RecordBatch
    cluster_names: pa.RecordBatch


def canonical_ids(phrases: Sequence[str], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """`[P] int32`: position of the phrase that each phrase is a form of."""
    place = {phrase: i for i, phrase in enumerate(phrases)}
    target = resolve(pairs)
    return np.array([place[target.get(phrase, phrase)] for phrase in phrases], np.int32)


def describe_phrases(
    mined: Mapping[str, int],
    misspellings: Mapping[str, str],
    canonical: np.ndarray,
    matched: pa.Table,
    cooccurrence: pa.Table,
    num_records: int,
    config: PrepConfig,
) -> PhraseKnowledge:
    """Folds, embeds, clusters and weighs the phrases.

    Args:
      mined: phrase -> records that hold it, in the order of the phrase ids.
      misspellings: rare word -> word that it was read as.
      canonical: `[P]`, from plurals; frequent misspellings are folded here, where their contexts are known.
      matched: records a phrase (`PHRASE_COUNTS_SCHEMA`), plurals folded.
      cooccurrence: `COUNTS_SCHEMA`, likewise.
    """
    phrases = tuple(mined)
    counts = symmetric_counts(cooccurrence, np.arange(len(phrases)))
    frequency = np.zeros(len(phrases), np.int64)
    frequency[matched["phrase_id"].to_numpy()] = matched["count"].to_numpy()
    folded = fold_spellings(phrases, frequency, counts, config)[canonical]
    frequency = np.bincount(folded, frequency, minlength=len(phrases)).astype(np.int64)
    counts = symmetric_counts(cooccurrence, folded)
    idf = inverse_document_frequency(frequency, num_records)
    scale = config.scoring.specificity_scale
    quality = phrase_quality(idf, specificity(counts, scale), config.scoring)

    kept = np.flatnonzero(folded == np.arange(len(phrases)))
    vectors = embed_phrases(counts[kept][:, kept], config.embedding, config.seed)
    clustering = cluster_phrases(
        vectors, frequency[kept].astype(float), config.clusters, config.seed
    )
    cluster = np.zeros(len(phrases), np.int32)
    cluster[kept] = clustering.assignment
    table = PhraseTable(phrases, folded, cluster[folded], quality)
    clusters, names = _cluster_tables(phrases, frequency, kept, clustering)
    vocabulary = _vocabulary_table(mined, misspellings, folded, idf, config.vocabulary.language)
    return PhraseKnowledge(table, vocabulary, clusters, names)


def fold_spellings(
    phrases: Sequence[str],
    frequency: np.ndarray,
    counts: scipy.sparse.csr_matrix,
    config: PrepConfig,
) -> np.ndarray:
    """`[P] int32`: a frequent misspelling's correct form, itself for all others.

    Near in spelling, far rarer, *and* used alike: "sofaa" stands where "sofa" does, "skirt" not where "shirt" does.
    """
    if config.vocabulary.spelling_ratio <= 0:
        return np.arange(len(phrases), dtype=np.int32)
    place = {phrase: i for i, phrase in enumerate(phrases)}
    known = {phrase: int(frequency[i]) for phrase, i in place.items() if frequency[i] > 0}
    near = near_spellings(known, known, config.vocabulary)
    alike = similar_use(counts, [(place[form], place[target]) for form, target in near], config)
    limit = config.vocabulary.spelling_min_similarity
    return canonical_ids(phrases, [p for p, s in zip(near, alike, strict=True) if s >= limit])


def similar_use(
    counts: scipy.sparse.csr_matrix, pairs: Sequence[tuple[int, int]], config: PrepConfig
) -> list[float]:
    """How alike (form, target) are used, about 0..1: the larger of two measures.

    The cosine of their PPMI rows, which needs many counts; and how readily the form meets the target in another source
    relative to how readily the target meets itself there, which a few counts settle.
    """
    rows = ppmi(counts, config.embedding)
    total = np.asarray(counts.sum(axis=1), np.float64).ravel()
    found = []
    for form, target in pairs:
        a, b = rows[form], rows[target]
        norm = np.sqrt(a.multiply(a).sum() * b.multiply(b).sum())
        cosine = a.multiply(b).sum() / norm if norm > 0 else 0.0
        itself = counts[target, target] / max(total[target], 1.0)
        meets = counts[form, target] / max(total[form], 1.0)
        found.append(max(cosine, meets / itself if itself > 0 else 0.0))
    return found


def _vocabulary_table(
    mined: Mapping[str, int],
    misspellings: Mapping[str, str],
    canonical: np.ndarray,
    idf: np.ndarray,
    language: str,
) -> pa.RecordBatch:
    """One row a surface form; `idf` is its canonical phrase's. Rare misspellings come last, without a count."""
    phrases = list(mined)
    place = {phrase: i for i, phrase in enumerate(phrases)}
    extra = sorted((form, target) for form, target in misspellings.items() if target in place)
    forms = phrases + [form for form, _ in extra]
    target = np.concatenate([canonical, [canonical[place[t]] for _, t in extra]]).astype(np.int64)
    frequency = [*mined.values(), *(None for _ in extra)]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(range(len(forms)), pa.int32()),
            pa.array(forms, pa.string()),
            pa.array([phrases[i] for i in target], pa.string()),
            pa.array([language] * len(forms), pa.string()),
            pa.array(frequency, pa.int64()),
            pa.array(idf[target], pa.float32()),
        ],
        schema=VOCABULARY_SCHEMA,
    )


def _cluster_tables(
    phrases: Sequence[str], frequency: np.ndarray, kept: np.ndarray, clustering: Clustering
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    names, sizes = name_clusters([phrases[i] for i in kept], frequency[kept], clustering)
    clusters = pa.RecordBatch.from_arrays(
        [
            pa.array(kept, pa.int32()),
            pa.array(clustering.assignment, pa.int32()),
            pa.array(clustering.distance, pa.float32()),
        ],
        schema=CLUSTERS_SCHEMA,
    )
    rows = [pa.array(range(len(names)), pa.int32()), pa.array(names), pa.array(sizes, pa.int32())]
    return clusters, pa.RecordBatch.from_arrays(rows, schema=CLUSTER_NAMES_SCHEMA)
