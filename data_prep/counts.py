"""What the hits of a batch add to the counts of the corpus, and which of its records have no label."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from data_prep.images import REJECTS_SCHEMA

PHRASE_COUNTS_SCHEMA = pa.schema([("phrase_id", pa.int32()), ("count", pa.int64())])
LANGUAGE_COUNTS_SCHEMA = pa.schema(
    [("phrase_id", pa.int32()), ("language", pa.string()), ("count", pa.int64())]
)


def count_phrases(hits: pa.RecordBatch) -> pa.RecordBatch:
    """In how many records of a `HITS_SCHEMA` batch each phrase is (`PHRASE_COUNTS_SCHEMA`)."""
    record = hits.column("record").to_numpy().astype(np.int64)
    pairs = np.unique(record << 32 | hits.column("phrase_id").to_numpy())
    phrase, count = np.unique(pairs & 0xFFFFFFFF, return_counts=True)
    arrays = [pa.array(phrase, pa.int32()), pa.array(count, pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, schema=PHRASE_COUNTS_SCHEMA)


def count_searched(hits: pa.RecordBatch, queries: np.ndarray) -> pa.RecordBatch:
    """`count_phrases` of the hits in query sources alone; `queries [S] bool` tells which those are."""
    return count_phrases(hits.filter(pa.array(queries[hits.column("source").to_numpy()])))


def count_languages(hits: pa.RecordBatch) -> pa.RecordBatch:
    """How many sources in each language hold each phrase (`LANGUAGE_COUNTS_SCHEMA`)."""
    language = hits.column("language")
    code = language.indices.to_numpy().astype(np.int64)
    pairs = hits.column("phrase_id").to_numpy().astype(np.int64) << 32 | code
    pair, count = np.unique(pairs, return_counts=True)
    arrays = [
        pa.array(pair >> 32, pa.int32()),
        language.dictionary.take(pa.array(pair & 0xFFFFFFFF)),
        pa.array(count, pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LANGUAGE_COUNTS_SCHEMA)


def unlabelled(
    records: pa.RecordBatch, picked: pa.RecordBatch, with_text: np.ndarray
) -> pa.RecordBatch:
    """The rejects among `records`: those that no label was picked for, by whether they have words."""
    rest = np.setdiff1d(np.arange(records.num_rows), picked.column("record").to_numpy())
    has_text = np.isin(rest, with_text)
    return pa.RecordBatch.from_arrays(
        [
            records.column("id").take(pa.array(rest, pa.int64())),
            pa.array(np.where(has_text, "label", "text").tolist(), pa.string()),
            pa.array(np.where(has_text, "no label", "no text").tolist(), pa.string()),
        ],
        schema=REJECTS_SCHEMA,
    )
