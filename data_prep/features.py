"""What is known of each (record, phrase) pair, as numbers that a scorer weighs.

Features of a pair, by name:

    hand_score          the score by hand-set weights (data_prep.scoring)
    own/<source>        share of the source's weight (texts, clicks) whose texts hold the phrase, 0..1
    cluster/<source>    the same of all phrases of its cluster
    count               log(1 + occurrences in all sources)
    position            1 / (1 + words before it in the text where it comes earliest); 0: in no text
    clicks              log(1 + weight of the texts that hold it), of sources that have weights
    tf_idf              count * idf
    agreement           sources that hold the phrase
    cluster_agreement   sources that hold a phrase of its cluster
    similarity          cosine of its vector to the mean of the record's other phrases, weighted by their quality
    quality, specificity, idf, category_entropy, query_frequency (log(1 + records)), words: of the phrase itself
    assoc/...           what other records' labels say (`Associations`), for pairs that no text holds as well

A pair's features depend on its record and on global tables alone, so they do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from data_prep.schema import ScoringConfig
from data_prep.schema_text import TextSourceConfig
from data_prep.scoring import PhraseTable, noisy_or

SIMILARITY_PAIRS = 16_384  # whose vectors are in memory at a time
OF_PAIRS = ("count", "position", "clicks", "tf_idf", "agreement", "cluster_agreement", "similarity")
OF_PHRASES = ("quality", "specificity", "idf", "category_entropy", "query_frequency", "words")


@dataclass(frozen=True)
class Expansion:
    """Labels that E (record, phrase) pairs may have by what the record's other phrases stand for."""

    record: np.ndarray  # [E] int64
    phrase: np.ndarray  # [E] int64; canonical; each pair once, those that the texts hold among them
    values: np.ndarray  # [E, A] float32
    evidence: np.ndarray  # [E, K] int32: the phrases that say most for it, best first; -1: none


class Associations(Protocol):
    """Which phrases go with which, learnt from other records."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the A features; each starts with "assoc/"."""

    @property
    def contexts(self) -> int:
        """K, the evidence that is told of a pair at most."""

    def expand(
        self, record: np.ndarray, phrase: np.ndarray, sources: np.ndarray, table: PhraseTable
    ) -> Expansion:
        """Candidates of the records that N pairs of the texts are about.

        Args:
          record, phrase: `[N] int64`, ascending by record, then by phrase; each pair once.
          sources: `[N] int64`; bit s: source s holds the phrase.
        """


@dataclass(frozen=True)
class PairFeatures:
    """M (record, phrase) pairs, each once, by record and phrase."""

    record: np.ndarray  # [M] int64
    phrase: np.ndarray  # [M] int64, canonical
    sources: np.ndarray  # [M] int64; bit s: source s holds the phrase; 0: inferred from others
    language: (
        pa.Array
    )  # [M] string: of the first source that holds it, or that holds its first evidence
    evidence: np.ndarray  # [M, K] int32 phrases, -1 for none
    values: np.ndarray  # [M, F] float32
    names: tuple[str, ...]  # [F]

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """`[M, len(names)] float32`."""
        return self.values[:, [self.names.index(name) for name in names]]

    def column(self, name: str) -> np.ndarray:
        """`[M] float32`."""
        return self.values[:, self.names.index(name)]


def feature_names(
    sources: Sequence[TextSourceConfig], associated: Sequence[str] = ()
) -> tuple[str, ...]:
    """All features in their order; `associated`: `Associations.names`."""
    own = tuple(f"own/{source.name}" for source in sources)
    cluster = tuple(f"cluster/{source.name}" for source in sources)
    return ("hand_score", *own, *cluster, *OF_PAIRS, *OF_PHRASES, *associated)


def has_weights(source: TextSourceConfig) -> bool:
    """Whether the source's texts come with counts, such as clicks."""
    weighted = source.kind == "weighted_list" or bool(source.weight_field)
    return weighted and source.weights == "counts"


def pair_features(
    hits: pa.RecordBatch,
    table: PhraseTable,
    sources: Sequence[TextSourceConfig],
    config: ScoringConfig,
    associations: Associations | None = None,
    wanted: Sequence[str] | None = None,
) -> PairFeatures:
    """Features of every phrase of every record of a `HITS_SCHEMA` batch, and of the phrases associated with them.

    Args:
      wanted: the features to compute, in this order; default: all.
    """
    names = feature_names(sources, associations.names if associations else ())
    chosen = names if wanted is None else tuple(wanted)
    pairs = _Pairs(hits, table, tuple(sources), config, associations)
    values = np.empty((len(pairs.record), len(chosen)), np.float32)
    for column, name in enumerate(chosen):
        values[:, column] = pairs.feature(name)
    return PairFeatures(
        pairs.record, pairs.phrase, pairs.bits, pairs.language, pairs.evidence, values, chosen
    )


class _Pairs:
    """The pairs of one batch; each group of features is computed when one of them is asked for."""

    def __init__(
        self,
        hits: pa.RecordBatch,
        table: PhraseTable,
        sources: tuple[TextSourceConfig, ...],
        config: ScoringConfig,
        associations: Associations | None,
    ) -> None:
        self._hits, self._table, self._sources, self._config = hits, table, sources, config
        self._size = max(len(table.phrases), 1)
        record = hits.column("record").to_numpy().astype(np.int64)
        self._source = hits.column("source").to_numpy().astype(np.int64)
        said = table.canonical[hits.column("phrase_id").to_numpy()].astype(np.int64)
        key = record * self._size + said
        text_keys, first = np.unique(key, return_index=True)
        self._associated: dict[str, np.ndarray] = {}
        keys = text_keys
        expansion = None
        if associations is not None:
            bits = np.zeros(len(text_keys), np.int64)
            np.bitwise_or.at(bits, np.searchsorted(text_keys, key), 1 << self._source)
            expansion = associations.expand(
                text_keys // self._size, text_keys % self._size, bits, table
            )
            keys = np.union1d(text_keys, expansion.record * self._size + expansion.phrase)
        self.record, self.phrase = keys // self._size, keys % self._size
        self._row = np.searchsorted(keys, key)  # pair of each hit
        self._in_text = np.isin(keys, text_keys, assume_unique=True)
        self.evidence = np.full((len(keys), associations.contexts if associations else 0), -1)
        self.evidence = self.evidence.astype(np.int32)
        if associations is not None and expansion is not None:
            at = np.searchsorted(keys, expansion.record * self._size + expansion.phrase)
            self.evidence[at] = expansion.evidence
            for index, name in enumerate(associations.names):
                self._associated[name] = np.zeros(len(keys), np.float32)
                self._associated[name][at] = expansion.values[:, index]
        self.language = hits.column("language").take(
            pa.array(self._hit_that_tells(keys, text_keys, first))
        )
        self.language = self.language.cast(pa.string())

    def _hit_that_tells(
        self, keys: np.ndarray, text_keys: np.ndarray, first: np.ndarray
    ) -> np.ndarray:
        """The hit whose language is the pair's, `[M]`: its own first one, its first evidence's, or the record's."""
        if len(keys) == len(text_keys):
            return first
        told = np.where(self._in_text, keys, self.record * self._size)
        if self.evidence.shape[1]:
            best = self.evidence[:, 0].astype(np.int64)
            from_best = ~self._in_text & (best >= 0)
            told[from_best] = (self.record * self._size + best)[from_best]
        # Of an inferred pair without evidence the first pair of the record.
        return first[np.searchsorted(text_keys, told)]

    def feature(self, name: str) -> np.ndarray:
        """`[M]` of one feature."""
        if name in self._associated:
            return self._associated[name]
        if name in OF_PHRASES:
            return self._of_phrases(name)
        for prefix, support in (("own/", "_own"), ("cluster/", "_cluster")):
            if name.startswith(prefix):
                source = [s.name for s in self._sources].index(name.removeprefix(prefix))
                return getattr(self, support)[:, source]
        return getattr(self, f"_{name}")

    @property
    def bits(self) -> np.ndarray:
        return ((self._own > 0) << np.arange(len(self._sources))).sum(axis=1)

    @cached_property
    def _own(self) -> np.ndarray:
        return self._support(self._row, len(self.record))

    @cached_property
    def _cluster(self) -> np.ndarray:
        """Support of the pair's cluster, `[M, S] float64`."""
        key = self.record * self._size + self._table.cluster[self.phrase]
        groups, group = np.unique(key, return_inverse=True)
        return self._support(group[self._row], len(groups))[group]

    def _support(self, row: np.ndarray, rows: int) -> np.ndarray:
        """Support summed by row and source, at most 1: `[rows, S] float64`."""
        sources = len(self._sources)
        support = self._hits.column("support").to_numpy().astype(np.float64)
        flat = np.bincount(row * sources + self._source, support, minlength=rows * sources)
        return np.minimum(flat, 1.0).reshape(rows, sources)

    @property
    def _hand_score(self) -> np.ndarray:
        priors = np.array([source.prior for source in self._sources])
        quality = self._table.quality[self.phrase]
        return noisy_or(self._own, self._cluster, quality, priors, self._config.support_power)

    @cached_property
    def _count(self) -> np.ndarray:
        return np.log1p(self._total(self._hits.column("count").to_numpy()))

    @property
    def _tf_idf(self) -> np.ndarray:
        return self._count * self._of_phrases("idf")

    @property
    def _clicks(self) -> np.ndarray:
        weighs = np.array([has_weights(source) for source in self._sources])[self._source]
        return np.log1p(self._total(self._hits.column("weight").to_numpy() * weighs))

    def _total(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._row, values.astype(np.float64), minlength=len(self.record))

    @property
    def _position(self) -> np.ndarray:
        earliest = np.full(len(self.record), np.inf)
        np.minimum.at(earliest, self._row, self._hits.column("position").to_numpy())
        return 1.0 / (1.0 + earliest)

    @property
    def _agreement(self) -> np.ndarray:
        return (self._own > 0).sum(axis=1)

    @property
    def _cluster_agreement(self) -> np.ndarray:
        return (self._cluster > 0).sum(axis=1)

    @property
    def _similarity(self) -> np.ndarray:
        found = np.zeros(len(self.record))
        if not len(self._table.vectors):
            return found
        starts = np.flatnonzero(np.diff(self.record, prepend=-1))
        opens = np.diff(starts // SIMILARITY_PAIRS, prepend=-1) > 0  # whole records to a block
        for begin, end in pairwise([*starts[opens].tolist(), len(found)]):
            found[begin:end] = self._similarity_of(slice(begin, end))
        return found

    def _similarity_of(self, part: slice) -> np.ndarray:
        row = self._table.vector_row[self.phrase[part]]
        vectors = np.asarray(self._table.vectors[row], np.float64)
        # What the texts do not hold is no context.
        weight = self._table.quality[self.phrase[part]] * self._in_text[part]
        _, record = np.unique(self.record[part], return_inverse=True)
        pointers = np.concatenate([[0], np.cumsum(np.bincount(record))])
        shape = (len(pointers) - 1, len(row))
        sums = scipy.sparse.csr_matrix((weight, np.arange(len(row)), pointers), shape) @ vectors
        others = sums[record] - weight[:, None] * vectors
        length = np.sqrt(np.einsum("md,md->m", others, others))
        product = np.einsum("md,md->m", others, vectors)  # which have length 1
        # What is left of a sum when its only term is taken off again is no direction.
        return np.where(length > 1e-9, product / np.maximum(length, 1e-9), 0.0)

    def _of_phrases(self, name: str) -> np.ndarray:
        if name == "words":
            spaces = pc.count_substring(self._table.texts.take(pa.array(self.phrase)), " ")
            return spaces.to_numpy() + 1
        known = getattr(self._table, name)
        if not len(known):
            return np.zeros(len(self.phrase))
        values = np.nan_to_num(known[self.phrase].astype(np.float64))
        return np.log1p(values) if name == "query_frequency" else values
