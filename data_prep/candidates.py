"""Phrase matching: every vocabulary phrase in every text, on word boundaries, a batch at a time.

A trie is walked by all word positions of a batch at once: at level n each surviving position holds
a trie state, and one binary search over that level's sorted (state, word) edges advances them all.
Words are compared by id, so a match is exact; nothing is hashed away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from data_prep.schema import TextSourceConfig
from data_prep.sources import RECORD_SCHEMA
from data_prep.text import tokenize

WORDS_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),  # row of the text's record in its batch; ascending
        ("source", pa.int8()),
        ("weight", pa.float32()),
        ("words", pa.list_(pa.string())),
    ]
)
HITS_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),
        ("source", pa.int8()),
        ("phrase_id", pa.int32()),
        ("support", pa.float32()),  # share of the source's weight whose texts hold the phrase, 0..1
    ]
)
COUNTS_SCHEMA = pa.schema(
    [("row", pa.int32()), ("column", pa.int32()), ("count", pa.int64())]  # row <= column
)


@dataclass(frozen=True)
class PhraseTrie:
    """Phrases by their words. State s of level n is edge s of that level."""

    spellings: pa.Array  # [S] every word and every accepted misspelling of one
    spelling_words: np.ndarray  # [S + 1] int64: its word's id; the last entry, -1, is for unknown
    words: tuple[str, ...]  # [W]
    edges: tuple[np.ndarray, ...]  # level n: [E_n] uint64, ascending: parent state << 32 | word
    phrases: tuple[np.ndarray, ...]  # level n: [E_n] int64: the phrase that ends there, or -1

    @staticmethod
    def build(phrases: Sequence[str], misspellings: Mapping[str, str] | None = None) -> PhraseTrie:
        """The trie of `phrases` (words joined by one space); phrase ids are positions in it."""
        split = [phrase.split(" ") for phrase in phrases]
        words = {word: i for i, word in enumerate(dict.fromkeys(w for p in split for w in p))}
        lengths = np.array([len(p) for p in split], np.int64)
        table = np.zeros((len(split), int(lengths.max(initial=0))), np.uint64)
        for i, phrase in enumerate(split):
            table[i, : len(phrase)] = [words[word] for word in phrase]
        edges, ends = [], []
        state = np.zeros(len(split), np.uint64)
        alive = np.arange(len(split))
        for level in range(table.shape[1]):
            alive = alive[lengths[alive] > level]
            keys, inverse = np.unique(
                (state[alive] << 32) | table[alive, level], return_inverse=True
            )
            state[alive] = inverse.astype(np.uint64)
            end = np.full(len(keys), -1, np.int64)
            last = lengths[alive] == level + 1
            end[inverse[last]] = alive[last]
            edges.append(keys)
            ends.append(end)
        folded = {k: v for k, v in (misspellings or {}).items() if v in words and k not in words}
        ids = [*words.values(), *(words[word] for word in folded.values()), -1]
        spellings = pa.array([*words, *folded], pa.string())
        return PhraseTrie(
            spellings, np.array(ids, np.int64), tuple(words), tuple(edges), tuple(ends)
        )

    def encode(self, words: pa.Array) -> np.ndarray:
        """Word ids `[T] int64` of words `[T]`, -1 for the unknown."""
        found = pc.index_in(words, value_set=self.spellings)
        return self.spelling_words[pc.fill_null(found, -1).to_numpy(zero_copy_only=False)]

    def walk(self, ids: np.ndarray, left: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields, for n = 1, 2, ..., the start positions and phrase ids (or -1) of known n-word prefixes.

        Args:
          ids: `[T]` word ids of all texts in a row.
          left: `[T]` words from a position to the end of its text, itself included.
        """
        starts = np.arange(len(ids))
        state = np.zeros(len(ids), np.uint64)
        for level, (edges, phrases) in enumerate(zip(self.edges, self.phrases, strict=True)):
            inside = left[starts] > level
            starts, state = starts[inside], state[inside]
            word = ids[starts + level]
            starts, state, word = starts[word >= 0], state[word >= 0], word[word >= 0]
            key = (state << np.uint64(32)) | word.astype(np.uint64)
            place = np.minimum(np.searchsorted(edges, key), len(edges) - 1)
            found = edges[place] == key
            starts, state = starts[found], place[found].astype(np.uint64)
            yield starts, phrases[place[found]]


def tokenize_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Words of all texts of a `RECORD_SCHEMA` batch, one row a text that has words (`WORDS_SCHEMA`)."""
    assert batch.schema.equals(RECORD_SCHEMA)
    texts = batch.column("texts")
    record = np.repeat(np.arange(batch.num_rows), np.diff(list_offsets(texts)))
    items = texts.flatten()
    words, lengths = tokenize(items.field("text").to_pylist())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(words, pa.string()))
    table = pa.RecordBatch.from_arrays(
        [pa.array(record, pa.int32()), items.field("source"), items.field("weight"), lists],
        schema=WORDS_SCHEMA,
    )
    return table.filter(pa.array(lengths > 0))


def list_offsets(lists: pa.ListArray) -> np.ndarray:
    """Offsets `[n + 1] int64` of a list column into its `flatten()`; null lists are empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def words_left(offsets: np.ndarray) -> np.ndarray:
    """`[T]`: words from each position to the end of its text, for texts with `offsets [n + 1]`."""
    return np.repeat(offsets[1:], np.diff(offsets)) - np.arange(offsets[-1])


def find_phrases(
    words: pa.Array, offsets: np.ndarray, trie: PhraseTrie, overlap: Literal["longest", "all"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All phrases in texts given as one run of words `[T]` with `offsets [n + 1]`.

    Returns start position, length in words and phrase id of each match, `[M] int64`, by position. With
    `overlap="longest"` a match that lies within a longer one is left out; others may overlap.
    """
    starts, lengths, phrases = (
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
    )
    ids = trie.encode(words)
    for level, (position, phrase) in enumerate(trie.walk(ids, words_left(offsets))):
        whole = phrase >= 0
        starts.append(position[whole])
        lengths.append(np.full(int(whole.sum()), level + 1))
        phrases.append(phrase[whole])
    start, length, phrase = np.concatenate(starts), np.concatenate(lengths), np.concatenate(phrases)
    order = np.lexsort((-length, start))
    start, length, phrase = start[order], length[order], phrase[order]
    if overlap == "longest" and len(start):
        # Before a match in this order come those that start no later, longer first; it lies within one of them
        # exactly when one ends no earlier. Texts lie one after another, so ends never reach into the next.
        end = start + length
        reach = np.concatenate([[-1], np.maximum.accumulate(end)[:-1]])
        start, length, phrase = start[reach < end], length[reach < end], phrase[reach < end]
    return start, length, phrase


def match_batch(
    batch: pa.RecordBatch,
    trie: PhraseTrie,
    canonical: np.ndarray,
    overlap: Literal["longest", "all"],
) -> pa.RecordBatch:
    """Phrases of each source of each record (`HITS_SCHEMA`, sorted by record, source, phrase).

    Args:
      batch: `WORDS_SCHEMA`.
      canonical: `[P] int`: the phrase that each phrase of the trie is a form of.
    """
    offsets = list_offsets(batch.column("words"))
    start, _, phrase = find_phrases(batch.column("words").flatten(), offsets, trie, overlap)
    text = np.searchsorted(offsets, start, side="right") - 1
    phrase = canonical[phrase]
    record = batch.column("record").to_numpy().astype(np.int64)
    source = batch.column("source").to_numpy().astype(np.int64)
    weight = batch.column("weight").to_numpy().astype(np.float64)
    # One hit a (text, phrase): a word that a text repeats says nothing new.
    pair = np.unique(text * len(canonical) + phrase)
    text, phrase = pair // max(len(canonical), 1), pair % max(len(canonical), 1)
    place = record * 128 + source
    total = np.bincount(place, weight, minlength=1)
    key = place[text] * len(canonical) + phrase
    unique, inverse = np.unique(key, return_inverse=True)
    support = np.bincount(inverse, weight[text], minlength=len(unique))
    place = unique // max(len(canonical), 1)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(place // 128, pa.int32()),
            pa.array(place % 128, pa.int8()),
            pa.array(unique % max(len(canonical), 1), pa.int32()),
            pa.array(support / total[place], pa.float32()),
        ],
        schema=HITS_SCHEMA,
    )


def count_cooccurrence(
    hits: pa.RecordBatch, num_phrases: int, context: Literal["cross_source", "record"]
) -> pa.RecordBatch:
    """How often two phrases describe the same record (`COUNTS_SCHEMA`).

    cross_source: pairs of sources (s, t), s != t, where s holds one phrase and t the other. A phrase pairs with
    itself when two sources agree on it; synonyms pair because different hands wrote the sources.
    record: records that hold both, whatever the source; never a phrase with itself.
    """
    record = hits.column("record").to_numpy()
    source = hits.column("source").to_numpy()
    phrase = hits.column("phrase_id").to_numpy()
    rows = int(record.max(initial=-1)) + 1

    def incidence(chosen: np.ndarray) -> scipy.sparse.csr_matrix:
        ones = np.ones(int(chosen.sum()), np.int64)
        shape = (rows, num_phrases)
        return scipy.sparse.csr_matrix((ones, (record[chosen], phrase[chosen])), shape=shape)

    every = incidence(np.ones(len(record), bool))
    if context == "cross_source":
        counts = every.T @ every
        for index in np.unique(source):
            one = incidence(source == index)
            counts = counts - one.T @ one
    else:
        every.data[:] = 1
        counts = every.T @ every
        counts = counts - scipy.sparse.diags(counts.diagonal(), dtype=np.int64)
    upper = scipy.sparse.triu(counts).tocoo()
    kept = upper.data != 0
    return pa.RecordBatch.from_arrays(
        [
            pa.array(upper.row[kept], pa.int32()),
            pa.array(upper.col[kept], pa.int32()),
            pa.array(upper.data[kept], pa.int64()),
        ],
        schema=COUNTS_SCHEMA,
    )


def context_of(
    sources: Sequence[TextSourceConfig], choice: Literal["auto", "cross_source", "record"]
) -> Literal["cross_source", "record"]:
    """Resolves "auto": sources can only agree with each other where there are two."""
    if choice != "auto":
        return choice
    return "cross_source" if len(sources) > 1 else "record"
