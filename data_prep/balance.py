"""Picks the labels of each image and weighs images against the long tail."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from data_prep.schema import PrepConfig
from data_prep.scoring import PhraseTable

PICKED_SCHEMA = pa.schema(
    [
        ("record", pa.int32()),
        ("id", pa.string()),
        ("labels", pa.list_(pa.int32())),  # best first
        ("weights", pa.list_(pa.float32())),  # their scores, 0..1
        ("split", pa.string()),
    ]
)
LABELS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("sampling_weight", pa.float32()),
        ("split", pa.string()),
    ]
)
LABEL_COUNTS_SCHEMA = pa.schema([("label", pa.int32()), ("count", pa.int64())])
TRAIN, VALIDATION = "train", "validation"


def pick_labels(
    scores: pa.RecordBatch, records: pa.RecordBatch, table: PhraseTable, config: PrepConfig
) -> pa.RecordBatch:
    """The labels of each record that has any (`PICKED_SCHEMA`).

    A label's score is its best phrase's. It needs `min_score` and `relative_min_score` of the record's best label;
    the best `labels_per_image` are kept.

    Args:
      scores: `SCORES_SCHEMA`.
      records: the records they are about, with columns `id` and `group`.
    """
    phrase = scores.column("phrase_id").to_numpy()
    label = (phrase if config.label_space == "phrases" else table.cluster[phrase]).astype(np.int64)
    record = scores.column("record").to_numpy().astype(np.int64)
    score = scores.column("score").to_numpy()
    # Scores fall within a record, so the first row of a label is its best.
    _, first = np.unique(record << 32 | label, return_index=True)
    first = np.sort(first)
    record, label, score = record[first], label[first], score[first]
    starts = (
        np.concatenate([[True], record[1:] != record[:-1]]) if len(record) else np.zeros(0, bool)
    )
    begin = np.flatnonzero(starts)
    group = np.cumsum(starts) - 1
    best = score[begin][group]
    rank = np.arange(len(record)) - begin[group]
    kept = (score >= config.scoring.min_score) & (rank < config.labels_per_image)
    kept &= score >= config.scoring.relative_min_score * best
    labelled, counts = np.unique(record[kept], return_counts=True)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    groups = records.column("group").take(pa.array(labelled)).to_pylist()
    return pa.RecordBatch.from_arrays(
        [
            pa.array(labelled, pa.int32()),
            records.column("id").take(pa.array(labelled)),
            pa.ListArray.from_arrays(offsets, pa.array(label[kept], pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(score[kept], pa.float32())),
            pa.array([split_of(g, config.split.validation_fraction) for g in groups], pa.string()),
        ],
        schema=PICKED_SCHEMA,
    )


def split_of(group: str, validation_fraction: float) -> str:
    """The split of a record by a hash of its id or group, independent of all other records."""
    digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
    return VALIDATION if int.from_bytes(digest, "big") < validation_fraction * 2**64 else TRAIN


def count_labels(picked: pa.RecordBatch) -> pa.RecordBatch:
    """In how many records of a batch each label is (`LABEL_COUNTS_SCHEMA`)."""
    label, count = np.unique(picked.column("labels").flatten().to_numpy(), return_counts=True)
    arrays = [pa.array(label, pa.int32()), pa.array(count, pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, schema=LABEL_COUNTS_SCHEMA)


def rarest_label(picked: pa.RecordBatch, frequency: np.ndarray) -> np.ndarray:
    """Frequency of each record's rarest label, `[n] int64`; `frequency [L]` counts records a label."""
    lists = picked.column("labels")
    starts = lists.offsets.to_numpy()[:-1] - lists.offsets[0].as_py()
    if len(starts) == 0:
        return np.zeros(0, np.int64)
    return np.minimum.reduceat(frequency[lists.flatten().to_numpy()], starts)


def sampling_weights(
    rarest: np.ndarray, images_by_rarest: Mapping[int, int], power: float
) -> np.ndarray:
    """max over an image's labels of frequency ** -power, with mean 1 over all images: `[n] float32`.

    Inverse-square-root resampling of SWAG (Singh et al., 2022, section 3.2) with `power=0.5`; the maximum is at the
    rarest label. `images_by_rarest` counts all images by the frequency of their rarest label, so that the mean is the
    same however the images are split into batches.
    """
    total = math.fsum(count * float(f) ** -power for f, count in sorted(images_by_rarest.items()))
    mean = total / sum(images_by_rarest.values())
    return (rarest.astype(np.float64) ** -power / mean).astype(np.float32)
