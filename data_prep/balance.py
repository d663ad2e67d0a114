"""Picks the labels of each image, drops rare ones and weighs images against the long tail."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from data_prep.images import REJECTS_SCHEMA
from data_prep.label_space import LabelSpace
from data_prep.schema import BalanceConfig, PrepConfig
from data_prep.scoring import least_scores

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
HEAD_ABOVE, TAIL_BELOW = 100, 20  # images a label


def pick_labels(
    scores: pa.RecordBatch, records: pa.RecordBatch, labels: LabelSpace, config: PrepConfig
) -> pa.RecordBatch:
    """The labels of each record that has any (`PICKED_SCHEMA`).

    A phrase counts from the `min_score` of its language and from `relative_min_score` of the record's best phrase on. A
    label's score is the best score * share of the phrases that stand for it; the best `labels_per_image` are kept.

    Args:
      scores: `SCORES_SCHEMA`.
      records: the records they are about, with columns `id` and `group`.
    """
    record, label, value = _best_of_labels(scores, labels, config)
    starts = np.concatenate([[True], record[1:] != record[:-1]])[: len(record)]
    begin = np.flatnonzero(starts)
    rank = np.arange(len(record)) - begin[np.cumsum(starts) - 1]
    kept = rank < config.labels_per_image
    labelled, counts = np.unique(record[kept], return_counts=True)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    groups = records.column("group").take(pa.array(labelled)).to_pylist()
    return pa.RecordBatch.from_arrays(
        [
            pa.array(labelled, pa.int32()),
            records.column("id").take(pa.array(labelled)),
            pa.ListArray.from_arrays(offsets, pa.array(label[kept], pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(value[kept], pa.float32())),
            pa.array([split_of(g, config.split.validation_fraction) for g in groups], pa.string()),
        ],
        schema=PICKED_SCHEMA,
    )


def _best_of_labels(
    scores: pa.RecordBatch, labels: LabelSpace, config: PrepConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(record, label, score), each pair once, a record's best first."""
    phrase = scores.column("phrase_id").to_numpy()
    record = scores.column("record").to_numpy().astype(np.int64)
    score = scores.column("score").to_numpy()
    # Of the phrases that label anything, which one is best in its record? Scores fall within a record.
    several = np.diff(labels.offsets)[phrase]
    least = least_scores(scores.column("language"), config.scoring)
    labels_some = several > 0
    phrase, record, score, several, least = (
        a[labels_some] for a in (phrase, record, score, several, least)
    )
    _, first, inverse = np.unique(record, return_index=True, return_inverse=True)
    enough = (score >= least) & (score >= config.scoring.relative_min_score * score[first][inverse])
    phrase, record, score, several = (a[enough] for a in (phrase, record, score, several))
    row = np.repeat(np.arange(len(phrase)), several)
    within = np.arange(len(row)) - np.repeat(np.cumsum(several) - several, several)
    entry = labels.offsets[phrase][row] + within
    label, value = labels.labels[entry].astype(np.int64), score[row] * labels.shares[entry]
    record = record[row]
    order = np.lexsort((np.arange(len(row)), -value, record))
    record, label, value = record[order], label[order], value[order]
    _, best = np.unique(record << 32 | label, return_index=True)
    best = np.sort(best)
    return record[best], label[best], value[best]


def drop_rare(
    picked: pa.RecordBatch, frequency: np.ndarray, min_count: int
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Takes labels of fewer than `min_count` images off, and off the records what has none left.

    Args:
      picked: `PICKED_SCHEMA`.
      frequency: `[L]`, images of each label.

    Returns:
      What stays (`PICKED_SCHEMA`) and the records that do not (`REJECTS_SCHEMA`).
    """
    lists = picked.column("labels")
    record = np.repeat(np.arange(picked.num_rows), lists.value_lengths().to_numpy())
    common = frequency[lists.flatten().to_numpy()] >= min_count
    left = np.bincount(record[common], minlength=picked.num_rows)
    some = pa.array(left > 0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(left[left > 0])]), pa.int32())
    columns = {name: picked.column(name).filter(some) for name in ("record", "id", "split")}
    for name in ("labels", "weights"):
        values = picked.column(name).flatten().filter(pa.array(common))
        columns[name] = pa.ListArray.from_arrays(offsets, values)
    gone = picked.column("id").filter(pa.array(left == 0))
    told = [pa.array([text] * len(gone), pa.string()) for text in ("label", "labels too rare")]
    return (
        pa.RecordBatch.from_arrays(
            [columns[name] for name in PICKED_SCHEMA.names], schema=PICKED_SCHEMA
        ),
        pa.RecordBatch.from_arrays([gone, *told], schema=REJECTS_SCHEMA),
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


def label_frequency(counts: pa.Table, size: int) -> np.ndarray:
    """`LABEL_COUNTS_SCHEMA` as `[size] int64`."""
    frequency = np.zeros(size, np.int64)
    frequency[counts["label"].to_numpy()] = counts["count"].to_numpy()
    return frequency


def image_weights(
    picked: pa.RecordBatch, frequency: np.ndarray, config: BalanceConfig
) -> np.ndarray:
    """How often each image is drawn, before it is scaled to mean 1: `[n] float64`; `frequency [L]` counts images.

    power: max over its labels of frequency ** -power, the resampling of SWAG (Singh et al., 2022, section 3.2).
    capped: every label draws at most `cap` of its images, as in MetaCLIP (Xu et al., "Demystifying CLIP Data", 2024,
    algorithm 1); an image is kept with probability 1 - prod over its labels of (1 - min(1, cap / frequency)).
    """
    lists = picked.column("labels")
    starts = lists.offsets.to_numpy()[:-1] - lists.offsets[0].as_py()
    if len(starts) == 0:
        return np.zeros(0)
    images = frequency[lists.flatten().to_numpy()].astype(np.float64)
    if config.sampling == "power":
        return np.minimum.reduceat(images, starts) ** -config.power
    missed = 1.0 - np.minimum(1.0, config.cap / images)
    return 1.0 - np.multiply.reduceat(missed, starts)


def tail_counts(images: np.ndarray) -> dict[str, dict[str, int]]:
    """Labels, and images counted once a label, of head, torso and tail; `images [L]` of each label.

    Many-shot is more than 100 images, few-shot fewer than 20 (Liu et al., "Large-Scale Long-Tailed Recognition in an
    Open World", 2019). Labels without images are not counted.
    """
    parts = {
        "head": images > HEAD_ABOVE,
        "torso": (images >= TAIL_BELOW) & (images <= HEAD_ABOVE),
        "tail": (images > 0) & (images < TAIL_BELOW),
    }
    return {
        name: {"labels": int(part.sum()), "images": int(images[part].sum())}
        for name, part in parts.items()
    }


def drawn_shares(images: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Share of all drawn labels that head, torso and tail get; `drawn [L]`: sampling weights summed by label."""
    parts = (
        images > HEAD_ABOVE,
        (images >= TAIL_BELOW) & (images <= HEAD_ABOVE),
        images < TAIL_BELOW,
    )
    total = max(float(drawn.sum()), 1e-12)
    names = ("head", "torso", "tail")
    return {n: round(float(drawn[p].sum()) / total, 6) for n, p in zip(names, parts, strict=True)}
