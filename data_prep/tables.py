"""The finished tables of a run (DESIGN 3.2), and what they say of the long tail."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import balance
from data_prep.feature_table import (
    FEATURES,
    SAMPLED,
    SAMPLED_SCHEMA,
    limit_of,
    only_below,
)
from data_prep.images import REJECTS_SCHEMA
from data_prep.label_space import SOFT_LABELS_SCHEMA
from data_prep.phrases import PhraseKnowledge
from data_prep.review import write_template
from data_prep.scoring import ANNOTATIONS_SCHEMA
from data_prep.stages import Work
from data_prep.stored import store
from data_prep.write import TableFile, digest_file, list_parts, read_part, write_table

# parts of rejects, stage by stage
REJECTS = ("rejects-read", "rejects-copies", "rejects-label", "rejects-rare")
REVIEW_FILE = "cluster_review.csv"
PHRASE_TABLE = "phrase_table"  # folder of data_prep.stored with the PhraseTable


def write_tables(
    work: Work, known: PhraseKnowledge, frequency: np.ndarray, folder: Path
) -> dict[str, dict[str, dict[str, Any]]]:
    """Writes the tables from the stages' parts; `frequency [L]` counts the images of each label.

    Returns rows and digest of each file by its name, under "files".
    """
    names = known.clusters.names_table()
    rejects = (batch for name in REJECTS for batch in work.parts(name))
    tables = [
        ("vocabulary", [known.vocabulary], known.vocabulary.schema),
        ("clusters", [known.members], known.members.schema),
        ("cluster_names", [names], names.schema),
        ("annotations", work.parts("annotations"), ANNOTATIONS_SCHEMA),
        ("rejects", rejects, REJECTS_SCHEMA),
        ("labels", weighted_labels(work, frequency), balance.LABELS_SCHEMA),
    ]
    if work.config.label_space == "multi_cluster":
        tables.append(("soft_labels", [known.labels.table()], SOFT_LABELS_SCHEMA))
    sampled = _sampled(work)
    tables += sampled
    written = [write_table(folder / f"{name}.parquet", *rest) for name, *rest in tables]
    review = write_review(known, folder / REVIEW_FILE)
    if sampled:  # a scorer that infers phrases is fitted with what is known of them
        store(folder / PHRASE_TABLE, known.table)
        for path in sorted((folder / PHRASE_TABLE).iterdir()):
            name, rows = f"{PHRASE_TABLE}/{path.name}", len(known.table.phrases)
            written.append(TableFile(name, rows, digest_file(path)))
    return {
        "files": {t.name: {"rows": t.rows, "sha256": t.sha256} for t in (*written, review)},
    }


def _sampled(work: Work) -> list[tuple[str, Iterable[pa.RecordBatch], pa.Schema]]:
    """The tables of the records that are kept to judge and to fit on (data_prep.feature_table)."""
    wanted, seed = work.config.scoring.keep_features, work.config.seed
    first = next(iter(list_parts(work / FEATURES)), None)
    if wanted == 0 or first is None:
        return []
    ids = (batch.column("id") for batch in work.parts(SAMPLED, ["id"]))
    limit = limit_of(ids, wanted, seed)
    features = only_below(work.parts(FEATURES), limit, seed)
    records = only_below(work.parts(SAMPLED), limit, seed)
    schema = read_part(work / FEATURES, first).schema
    return [("features", features, schema), ("sampled_records", records, SAMPLED_SCHEMA)]


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


def weighted_labels(work: Work, frequency: np.ndarray) -> Iterator[pa.RecordBatch]:
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
