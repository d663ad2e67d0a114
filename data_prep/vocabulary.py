"""Counts the word sequences of the corpus, those that are frequent.

Counting is level-wise (Apriori, Agrawal and Srikant, 1994): an n-word sequence is counted only where both of its
(n-1)-word parts are frequent. That loses nothing, since a part is at least as frequent, and bounds the
memory by the number of frequent sequences.

A record counts for one language: that of the text which holds the sequence first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.matching import PhraseTrie, list_offsets, prefixes_of_length, words_left
from data_prep.sequences import Sequences, single_words, sums_and_languages

WORD_COUNTS_SCHEMA = pa.schema(
    [("word", pa.string()), ("language", pa.string()), ("count", pa.int64())]
)
EXTENSION_COUNTS_SCHEMA = pa.schema(
    [
        ("prefix", pa.int32()),
        ("word", pa.int32()),
        ("language", pa.string()),
        ("count", pa.int64()),
    ]
)


def count_words(batch: pa.RecordBatch) -> pa.RecordBatch:
    """In how many records of a `WORDS_SCHEMA` batch each word occurs (`WORD_COUNTS_SCHEMA`)."""
    codes = batch.column("words").flatten().dictionary_encode()
    record, language = _of_words(batch)
    names = batch.column("language").dictionary
    word, tongue, counts = _count_records(codes.indices.to_numpy(), record, language, len(names))
    columns = [
        codes.dictionary.take(pa.array(word)),
        names.take(pa.array(tongue)),
        pa.array(counts),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=WORD_COUNTS_SCHEMA)


def count_extensions(batch: pa.RecordBatch, trie: PhraseTrie, length: int) -> pa.RecordBatch:
    """In how many records each `length`-word sequence occurs, as phrase of `length - 1` words and word.

    `trie` holds the frequent sequences of up to `length - 1` words. (`EXTENSION_COUNTS_SCHEMA`)
    """
    offsets = list_offsets(batch.column("words"))
    ids = trie.encode(batch.column("words").flatten())
    left = words_left(offsets)
    phrase_at = np.append(prefixes_of_length(ids, offsets, trie, length - 1), -1)
    position = np.flatnonzero((phrase_at[:-1] >= 0) & (phrase_at[1:] >= 0) & (left >= length))
    word = ids[position + length - 1]
    key, code = np.unique(phrase_at[position] << 32 | word, return_inverse=True)
    record, language = (values[position] for values in _of_words(batch))
    names = batch.column("language").dictionary
    place, tongue, counts = _count_records(code, record, language, len(names))
    columns = [
        pa.array(key[place] >> 32, pa.int32()),
        pa.array(key[place] & 0xFFFFFFFF, pa.int32()),
        names.take(pa.array(tongue)),
        pa.array(counts),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EXTENSION_COUNTS_SCHEMA)


def word_totals(counts: pa.Table) -> tuple[pa.StringArray, np.ndarray]:
    """Words `[n]`, sorted, and the records that hold each, `[n] int64`, of `WORD_COUNTS_SCHEMA`."""
    total = counts.group_by("word").aggregate([("count", "sum")]).sort_by("word")
    return total["word"].combine_chunks(), total["count_sum"].to_numpy()


def frequent_words(
    counts: pa.Table, misspellings: Mapping[str, str], least: int, default: str
) -> Sequences:
    """The words that `least` records hold, misspellings counted for what was meant; `default`: no known language."""
    word = counts["word"].combine_chunks()
    if misspellings:
        place = pc.index_in(word, pa.array(list(misspellings), pa.string()))
        meant = pa.array(list(misspellings.values()), pa.string()).take(place)
        word = pc.coalesce(meant, word)
    encoded = word.dictionary_encode()
    names, language = _language_codes(counts["language"], (), default)
    keys, total, main = sums_and_languages(
        *_summed(encoded.indices.to_numpy(), language, counts["count"].to_numpy()),
        names.index(default),
        least,
    )
    found = encoded.dictionary.take(pa.array(keys))
    order = pc.sort_indices(found).to_numpy()
    return single_words(found.take(pa.array(order)), total[order], main[order], names)


def frequent_only(counts: pa.RecordBatch, least: int) -> pa.RecordBatch:
    """The rows of sums (`EXTENSION_COUNTS_SCHEMA`, sorted) whose sequence `least` records hold, in all languages."""
    key = counts.column("prefix").to_numpy().astype(np.int64) << 32 | counts.column("word")
    first = np.flatnonzero(np.diff(key, prepend=-1))
    total = np.add.reduceat(counts.column("count").to_numpy(), first) if len(key) else key
    rows = np.diff(np.append(first, len(key)))
    return counts.filter(pa.array(np.repeat(total >= least, rows)))


def frequent_extensions(
    sequences: Sequences, counts: pa.Table, least: int, default: str
) -> Sequences:
    """With the counted extensions (`EXTENSION_COUNTS_SCHEMA` by ids of `sequences`) that `least` records hold."""
    names, language = _language_codes(counts["language"], sequences.languages, default)
    key = counts["prefix"].to_numpy().astype(np.int64) << 32 | counts["word"].to_numpy()
    keys, total, main = sums_and_languages(
        key, language, counts["count"].to_numpy(), names.index(default), least
    )
    # Languages are known by their names from level to level; new ones come behind.
    grown = sequences.grown(keys >> 32, keys & 0xFFFFFFFF, total, main)
    return Sequences(**{**vars(grown), "languages": names})


def inverse_document_frequency(document_frequency: np.ndarray, num_records: int) -> np.ndarray:
    """log((1 + N) / (1 + df)) in nats: never negative, defined for an unseen phrase."""
    return np.log((1.0 + num_records) / (1.0 + np.minimum(document_frequency, num_records)))


def _summed(
    key: np.ndarray, language: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row a key and language: misspellings have brought their own rows."""
    pairs, place = np.unique(key.astype(np.int64) << 32 | language, return_inverse=True)
    total = np.zeros(len(pairs), np.int64)
    np.add.at(total, place, count)
    return pairs >> 32, pairs & 0xFFFFFFFF, total


def _language_codes(
    column: pa.ChunkedArray, known: tuple[str, ...], default: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Languages, the `known` ones first, and each row's among them `[n] int64`; null is `default`."""
    found = set(pc.unique(column).to_pylist()) - {None}
    names = (*known, *sorted((found | {default}) - set(known)))
    codes = pc.index_in(pc.fill_null(column, default), pa.array(names, pa.string()))
    return names, codes.to_numpy().astype(np.int64)


def _of_words(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Record and language (its code in the column's dictionary, -1 for none) of each word, `[T] int64`."""
    lengths = np.diff(list_offsets(batch.column("words")))
    codes = pc.fill_null(batch.column("language").indices, -1).to_numpy(zero_copy_only=False)
    record = batch.column("record").to_numpy().astype(np.int64)
    return np.repeat(record, lengths), np.repeat(codes.astype(np.int64), lengths)


def _count_records(
    codes: np.ndarray, records: np.ndarray, languages: np.ndarray, num_languages: int
) -> tuple[np.ndarray, np.ma.MaskedArray, np.ndarray]:
    """Code, language and distinct records of each code in each language it has.

    A record counts in the language in which it has the code first.
    """
    size = int(codes.max(initial=0)) + 1
    _, first = np.unique(records * size + codes, return_index=True)
    key, count = np.unique(
        codes[first].astype(np.int64) * (num_languages + 1) + languages[first] + 1,
        return_counts=True,
    )
    language = key % (num_languages + 1) - 1
    masked = np.ma.masked_array(np.maximum(language, 0), language < 0)
    return key // (num_languages + 1), masked, count.astype(np.int64)
