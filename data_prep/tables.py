"""The finished tables of a run (DESIGN 3.2), and what they say of the long tail."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import balance
from data_prep.images import REJECTS_SCHEMA
from data_prep.label_space import SOFT_LABELS_SCHEMA
from data_prep.phrases import PhraseKnowledge
from data_prep.review import write_template
from data_prep.scoring import ANNOTATIONS_SCHEMA
from data_prep.stages import Work
from data_prep.write import TableFile, digest_file, write_table

# parts of rejects, stage by stage
REJECTS = ("rejects-read", "rejects-copies", "rejects-label", "rejects-rare")
REVIEW_FILE = "cluster_review.csv"


def write_tables(
    work: Work, known: PhraseKnowledge, frequency: np.ndarray, folder: Path
) -> dict[str, TableFile]:
    """Writes the tables from the stages' parts; `frequency [L]` counts the images of each label."""
    names = known.clusters.names_table()
    rejects = (batch for name in REJECTS for batch in work.parts(name))
    tables = [
        ("vocabulary", [known.vocabulary], known.vocabulary.schema),
        ("clusters", [known.members], known.members.schema),
        ("cluster_names", [names], names.schema),
        ("annotations", work.parts("annotations"), ANNOTATIONS_SCHEMA),
        ("rejects", rejects, REJECTS_SCHEMA),
        ("labels", _weighted(work, frequency), balance.LABELS_SCHEMA),
    ]
    if work.config.label_space == "multi_cluster":
        tables.append(("soft_labels", [known.labels.table()], SOFT_LABELS_SCHEMA))
    written = [write_table(folder / f"{name}.parquet", *rest) for name, *rest in tables]
    review = write_review(known, folder / REVIEW_FILE)
    return {table.name: table for table in (*written, review)}


def write_review(known: PhraseKnowledge, path: Path) -> TableFile:
    """Writes the clusters for a person to correct (see data_prep.review)."""
    members: dict[int, list[int]] = defaultdict(list)
    phrase_ids = known.members.column("phrase_id").to_pylist()
    for phrase, cluster in zip(phrase_ids, known.clusters.assignment.tolist(), strict=True):
        members[cluster].append(phrase)
    rows = []
    for cluster, ids in sorted(members.items()):
        listed = [known.table.phrases[p] for p in sorted(ids, key=lambda p: -known.frequency[p])]
        named = int(known.frequency[ids].sum())
        rows.append((cluster, known.clusters.names[cluster], named, listed))
    write_template(path, rows)
    return TableFile(path.name, len(rows), digest_file(path))


def _weighted(work: Work, frequency: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Picked labels with sampling weights of mean 1 (`LABELS_SCHEMA`); `frequency [L]` counts images."""
    config = work.config.balance
    images = sum(len(batch) for batch in work.parts("picked", ["id"]))
    # fsum is exact, so that the mean does not depend on how the images are split into batches.
    total = math.fsum(
        weight
        for batch in work.parts("picked", ["labels"])
        for weight in balance.image_weights(batch, frequency, config).tolist()
    )
    for batch in work.parts("picked"):
        weights = balance.image_weights(batch, frequency, config) * (images / total)
        columns = [batch.column(name) for name in ("id", "labels", "weights")]
        columns += [pa.array(weights.astype(np.float32)), batch.column("split")]
        yield pa.RecordBatch.from_arrays(columns, schema=balance.LABELS_SCHEMA)


def describe_tail(folder: Path, frequency: np.ndarray, num_phrases: int) -> dict[str, object]:
    """Head, torso and tail before (a label a phrase) and after, and who is drawn how often."""
    phrases = np.zeros(num_phrases, np.int64)
    for batch in pq.ParquetFile(folder / "annotations.parquet").iter_batches(columns=["phrase_id"]):
        phrases += np.bincount(batch.column(0).to_numpy(), minlength=num_phrases)
    drawn = np.zeros(len(frequency))
    columns = ["labels", "sampling_weight"]
    for batch in pq.ParquetFile(folder / "labels.parquet").iter_batches(columns=columns):
        labels = batch.column("labels")
        weight = np.repeat(batch.column("sampling_weight"), labels.value_lengths())
        drawn += np.bincount(labels.flatten().to_numpy(), weight, minlength=len(frequency))
    return {
        "phrases": balance.tail_counts(phrases),
        "labels": balance.tail_counts(frequency),
        "drawn_evenly": balance.drawn_shares(frequency, frequency.astype(float)),
        "drawn_weighted": balance.drawn_shares(frequency, drawn),
    }
