"""From corpus counts to everything that is known of a phrase: form, frequency, vector, cluster, quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse

from data_prep.canonical import near_spellings, resolve
from data_prep.clusters import Clusters, build_clusters
from data_prep.cooccurrence import symmetric_counts
from data_prep.embed import embed_phrases, ppmi, specificity, unit_vectors
from data_prep.kmeans import nearest_several
from data_prep.label_space import LabelSpace, one_label, soft_labels
from data_prep.privacy import hide_blocked, read_blocklist
from data_prep.review import read_review
from data_prep.schema import PrepConfig
from data_prep.scoring import PhraseTable, phrase_quality
from data_prep.stable_ids import PREVIOUS_FILES, read_previous
from data_prep.text import join_ideographs
from data_prep.vectors import external_vectors
from data_prep.vocabulary import inverse_document_frequency
from vitscale.errors import UserError

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


@dataclass(frozen=True)
class PhraseKnowledge:
    """The tables that describe the vocabulary, and what scoring needs of them."""

    table: PhraseTable
    labels: LabelSpace
    clusters: Clusters
    vocabulary: pa.RecordBatch  # VOCABULARY_SCHEMA
    members: pa.RecordBatch  # CLUSTERS_SCHEMA
    frequency: np.ndarray  # [P] int64: records that hold the phrase or a form of it; 0 for forms
    embedded: int  # canonical phrases with a vector; the others stay on their own


def canonical_ids(phrases: Sequence[str], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """`[P] int32`: position of the phrase that each phrase is a form of."""
    place = {phrase: i for i, phrase in enumerate(phrases)}
    target = resolve(pairs)
    return np.array([place[target.get(phrase, phrase)] for phrase in phrases], np.int32)


def check_cluster_inputs(config: PrepConfig) -> list[Path]:
    """Reads the files that clustering will want, so that a bad one is told first; returns those to digest."""
    files = []
    if config.embedding.kind != "cooccurrence":
        if not Path(config.embedding.path).exists() or not config.embedding.path:
            raise UserError(
                f"embedding.path {config.embedding.path!r} does not exist; "
                f"embedding.kind={config.embedding.kind!r} needs it."
            )
        files.append(Path(config.embedding.path))
    if config.clusters.review:
        read_review(Path(config.clusters.review))
        files.append(Path(config.clusters.review))
    if config.clusters.previous:
        folder = Path(config.clusters.previous)
        read_previous(folder)
        files += [folder / name for name in PREVIOUS_FILES]
    return [file for path in files for file in ([path] if path.is_file() else _inside(path))]


def describe_phrases(
    mined: Mapping[str, int],
    misspellings: Mapping[str, str],
    canonical: np.ndarray,
    matched: pa.Table,
    spoken: pa.Table,
    cooccurrence: Callable[[], Iterable[pa.RecordBatch]],
    num_records: int,
    config: PrepConfig,
    folder: Path,
) -> PhraseKnowledge:
    """Folds, embeds, clusters and weighs the phrases.

    Args:
      mined: phrase -> records that hold it, in the order of the phrase ids.
      misspellings: rare word -> word that it was read as.
      canonical: `[P]`, from plurals; frequent misspellings are folded here, where their contexts are known.
      matched: records a phrase (`PHRASE_COUNTS_SCHEMA`), plurals folded.
      spoken: sources a phrase and language (`LANGUAGE_COUNTS_SCHEMA`), likewise.
      cooccurrence: reads `COUNTS_SCHEMA` batches, likewise, from the start each time.
      folder: for matrices that are too large for memory.
    """
    phrases = tuple(map(join_ideographs, mined))
    frequency = np.zeros(len(phrases), np.int64)
    frequency[matched["phrase_id"].to_numpy()] = matched["count"].to_numpy()
    counts = symmetric_counts(cooccurrence, np.arange(len(phrases)), folder / "unfolded")
    folded = fold_spellings(phrases, frequency, counts, config, folder / "ppmi-unfolded")[canonical]
    frequency = np.bincount(folded, frequency, minlength=len(phrases)).astype(np.int64)

    kept = np.flatnonzero(folded == np.arange(len(phrases)))
    place = np.searchsorted(kept, folded)  # of each phrase's canonical form among the kept
    counts = symmetric_counts(cooccurrence, place, folder / "counts")
    idf = inverse_document_frequency(frequency, num_records)
    told = specificity(counts, config.scoring.specificity_scale)[place]
    quality = phrase_quality(idf, told, config.scoring)

    forms = [phrases[i] for i in kept]
    vectors, embedded = phrase_vectors(forms, counts, config, folder / "ppmi")
    clusters = build_clusters(forms, vectors, frequency[kept], config.clusters, config.seed)
    blocked = read_blocklist(config.privacy, config.text)
    names = hide_blocked(clusters.names, blocked, config.text)
    clusters = dataclasses.replace(clusters, names=names)
    languages = phrase_languages(spoken, folded, config.language.default)
    return PhraseKnowledge(
        PhraseTable(phrases, folded, clusters.assignment[place], quality),
        label_space(phrases, place, kept, vectors, clusters, config),
        clusters,
        _vocabulary_table(phrases, mined.values(), misspellings, folded, idf, languages),
        clusters.table(kept),
        frequency,
        embedded,
    )


def phrase_vectors(
    forms: Sequence[str], counts: scipy.sparse.csr_matrix, config: PrepConfig, folder: Path
) -> tuple[np.ndarray, int]:
    """Unit vectors `[n, D] float32` of canonical phrases, and how many of them have one that says something."""
    if config.embedding.kind == "cooccurrence":
        vectors = embed_phrases(counts, config.embedding, config.seed, folder)
        return vectors, int((np.diff(counts.indptr) > 0).sum())
    vectors, known = external_vectors(forms, config.embedding)
    known &= np.linalg.norm(vectors, axis=1) > 0
    return unit_vectors(vectors, known, config.seed), int(known.sum())


def label_space(
    phrases: tuple[str, ...],
    place: np.ndarray,
    kept: np.ndarray,
    vectors: np.ndarray,
    clusters: Clusters,
    config: PrepConfig,
) -> LabelSpace:
    """What each phrase labels, by `config.label_space`; `place [P]` finds its canonical form in `kept`."""
    if config.label_space != "multi_cluster":
        cluster = clusters.assignment[place]
        by_phrase = config.label_space == "phrases"
        label = np.where(clusters.blocked[cluster], -1, kept[place] if by_phrase else cluster)
        return one_label(label, phrases if by_phrase else clusters.names)
    live = np.flatnonzero(clusters.sizes)  # retired ids have no centre
    count = min(config.balance.nearest_clusters, len(live))
    index, cosine = nearest_several(vectors, clusters.centres[live], count)
    return soft_labels(
        live[index][place],
        cosine[place],
        clusters.blocked,
        config.balance.temperature,
        config.balance.min_share,
        clusters.names,
    )


def fold_spellings(
    phrases: Sequence[str],
    frequency: np.ndarray,
    counts: scipy.sparse.csr_matrix,
    config: PrepConfig,
    folder: Path,
) -> np.ndarray:
    """`[P] int32`: a frequent misspelling's correct form, itself for all others.

    Near in spelling, far rarer, *and* used alike: "sofaa" stands where "sofa" does, "skirt" not where "shirt" does.
    """
    if config.vocabulary.spelling_ratio <= 0:
        return np.arange(len(phrases), dtype=np.int32)
    place = {phrase: i for i, phrase in enumerate(phrases)}
    known = {phrase: int(frequency[i]) for phrase, i in place.items() if frequency[i] > 0}
    near = near_spellings(known, known, config.vocabulary)
    pairs = [(place[form], place[target]) for form, target in near]
    alike = similar_use(counts, pairs, config, folder) if pairs else []
    limit = config.vocabulary.spelling_min_similarity
    return canonical_ids(phrases, [p for p, s in zip(near, alike, strict=True) if s >= limit])


def similar_use(
    counts: scipy.sparse.csr_matrix,
    pairs: Sequence[tuple[int, int]],
    config: PrepConfig,
    folder: Path,
) -> list[float]:
    """How alike (form, target) are used, about 0..1: the larger of two measures.

    The cosine of their PPMI rows, which needs many counts; and how readily the form meets the target in another source
    relative to how readily the target meets itself there, which a few counts settle.
    """
    rows = ppmi(counts, config.embedding, folder)
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


def phrase_languages(spoken: pa.Table, canonical: np.ndarray, default: str) -> list[str]:
    """The language that most of the sources are in which hold each phrase or a form of it, `[P]`.

    `default` where none of them has another; of equals the first by name.
    """
    phrase = canonical[spoken["phrase_id"].to_numpy()].tolist()
    total: dict[int, dict[str, int]] = {}
    for index, language, count in zip(
        phrase, spoken["language"].to_pylist(), spoken["count"].to_pylist(), strict=True
    ):
        if language != default:
            known = total.setdefault(index, {})
            known[language] = known.get(language, 0) + count
    most = {i: min(known, key=lambda tag: (-known[tag], tag)) for i, known in total.items()}
    return [most.get(int(i), default) for i in canonical]


def _vocabulary_table(
    phrases: Sequence[str],
    counts: Iterable[int],
    misspellings: Mapping[str, str],
    canonical: np.ndarray,
    idf: np.ndarray,
    languages: Sequence[str],
) -> pa.RecordBatch:
    """One row a surface form; `idf` is its canonical phrase's. Rare misspellings come last, without a count."""
    place = {phrase: i for i, phrase in enumerate(phrases)}
    extra = sorted((form, target) for form, target in misspellings.items() if target in place)
    forms = [*phrases, *(form for form, _ in extra)]
    target = np.concatenate([canonical, [canonical[place[t]] for _, t in extra]]).astype(np.int64)
    frequency = [*counts, *(None for _ in extra)]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(range(len(forms)), pa.int32()),
            pa.array(forms, pa.string()),
            pa.array([phrases[i] for i in target], pa.string()),
            pa.array([languages[i] for i in target], pa.string()),
            pa.array(frequency, pa.int64()),
            pa.array(idf[target], pa.float32()),
        ],
        schema=VOCABULARY_SCHEMA,
    )


def _inside(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
