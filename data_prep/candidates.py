"""From texts to the phrases that each source of a record holds, and which phrases meet, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from data_prep.cooccurrence import count_pairs
from data_prep.matching import PhraseTrie, find_phrases, list_offsets, sum_by_source
from data_prep.schema import TextSourceConfig
from data_prep.schema_text import TextConfig
from data_prep.sources import RECORD_SCHEMA
from data_prep.tokens import tokenize_texts

LANGUAGE = pa.dictionary(pa.int32(), pa.string())  # BCP 47
WORDS_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),  # row of the text's record in its batch; ascending
        ("source", pa.int8()),
        ("weight", pa.float32()),
        ("language", LANGUAGE),
        ("words", pa.list_(pa.string())),
    ]
)
HITS_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),
        ("source", pa.int8()),
        ("phrase_id", pa.int32()),
        # share of the source's weight whose texts hold the phrase; or their confidences, summed up to 1
        ("support", pa.float32()),
        ("language", LANGUAGE),  # of the source's texts
        ("count", pa.int32()),  # occurrences in the source
        ("position", pa.int32()),  # words before it in the text where it comes earliest
        ("weight", pa.float32()),  # of the texts that hold it, such as damped clicks
    ]
)
COUNTS_SCHEMA = pa.schema(
    [("row", pa.int32()), ("column", pa.int32()), ("count", pa.int64())]  # row <= column
)
SOURCES = 128  # more than there are, int8 holds the source


def tokenize_batch(batch: pa.RecordBatch, config: TextConfig) -> pa.RecordBatch:
    """Words of all texts of a `RECORD_SCHEMA` batch, one row a text that has words (`WORDS_SCHEMA`)."""
    assert batch.schema.equals(RECORD_SCHEMA)
    texts = batch.column("texts")
    record = np.repeat(np.arange(batch.num_rows), np.diff(list_offsets(texts)))
    items = texts.flatten()
    words, lengths = tokenize_texts(items.field("text"), config)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), words)
    table = pa.RecordBatch.from_arrays(
        [
            pa.array(record, pa.int32()),
            items.field("source"),
            items.field("weight"),
            items.field("language").dictionary_encode(),
            lists,
        ],
        schema=WORDS_SCHEMA,
    )
    return table.filter(pa.array(lengths > 0))


def match_batch(
    batch: pa.RecordBatch,
    trie: PhraseTrie,
    canonical: np.ndarray,
    overlap: Literal["longest", "all"],
    confidence: np.ndarray,
) -> pa.RecordBatch:
    """Phrases of each source of each record (`HITS_SCHEMA`, sorted by record, source, phrase).

    Args:
      batch: `WORDS_SCHEMA`.
      canonical: `[P] int`: the phrase that each phrase of the trie is a form of.
      confidence: `[S] bool`: sources whose weights are confidences, which are not shared out among their texts.
    """
    place = _places(batch)
    if (np.diff(place) < 0).any():  # records whose texts were merged
        order = np.argsort(place, kind="stable")
        batch, place = batch.take(pa.array(order)), place[order]
    offsets = list_offsets(batch.column("words"))
    start, _, phrase = find_phrases(batch.column("words").flatten(), offsets, trie, overlap)
    weight = batch.column("weight").to_numpy().astype(np.float64)
    is_first = np.diff(place, prepend=-1) != 0
    group = np.cumsum(is_first) - 1
    opening = np.flatnonzero(is_first)  # text that opens each group
    total = np.where(confidence[place[opening] % SOURCES], 1.0, np.bincount(group, weight))
    folded = canonical[phrase].astype(np.int64, copy=False)
    sums = sum_by_source(folded, start, offsets, weight, group, total)
    first = pa.array(opening[sums.group])
    columns = [batch.column(name).take(first) for name in ("record", "source", "language")]
    measured = [pa.array(a) for a in (sums.count, sums.position, sums.weight)]
    return pa.RecordBatch.from_arrays(
        [*columns[:2], pa.array(sums.phrase), pa.array(sums.support), columns[2], *measured],
        schema=HITS_SCHEMA,
    )


def _places(batch: pa.RecordBatch) -> np.ndarray:
    """Record and source of each row as one number, `[n] int64`."""
    record = batch.column("record").to_numpy().astype(np.int64)
    return record * SOURCES + batch.column("source").to_numpy()


def count_cooccurrence(
    hits: pa.RecordBatch, num_phrases: int, context: Literal["cross_source", "record"]
) -> pa.RecordBatch:
    """How often two phrases describe the same record (`COUNTS_SCHEMA`).

    cross_source: pairs of sources (s, t), s != t, where s holds one phrase and t the other. A phrase pairs with
    itself when two sources agree on it; synonyms pair because different hands wrote the sources.
    record: records that hold both, whatever the source; never a phrase with itself.
    """
    names = ("record", "source", "phrase_id")
    places = (hits.column(name).to_numpy().astype(np.int64) for name in names)
    row, column, count = count_pairs(*places, across=context == "cross_source")
    arrays = [pa.array(row, pa.int32()), pa.array(column, pa.int32()), pa.array(count)]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTS_SCHEMA)


def context_of(
    sources: Sequence[TextSourceConfig], choice: Literal["auto", "cross_source", "record"]
) -> Literal["cross_source", "record"]:
    """Resolves "auto": sources can only agree with each other where there are two."""
    if choice != "auto":
        return choice
    return "cross_source" if len(sources) > 1 else "record"
