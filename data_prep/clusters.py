"""The clusters of a run as the outside knows them: reviewed, with ids that last, names and a status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.cluster import Clustering, cluster_phrases, name_clusters, phrase_weights
from data_prep.kmeans import move_centres
from data_prep.review import Reviewed, apply_review, read_review
from data_prep.schema import ClusterConfig
from data_prep.stable_ids import NO_CLUSTERS, PreviousClusters, read_previous, stable_ids

CLUSTERS_SCHEMA = pa.schema(
    [("phrase_id", pa.int32()), ("cluster_id", pa.int32()), ("distance", pa.float32())]
)
CLUSTER_NAMES_SCHEMA = pa.schema(
    [
        ("cluster_id", pa.int32()),  # 0, 1, 2, ...: every id that was ever given
        ("name", pa.string()),
        ("size", pa.int32()),  # phrases
        ("status", pa.string()),  # of STATUSES
    ]
)
ACTIVE, BLOCKED, RETIRED = STATUSES = ("active", "blocked", "retired")


@dataclass(frozen=True)
class Clusters:
    """Cluster id `[P] int32` and `distance [P] float32` of each phrase; the rest by id, L ids in all.

    `centres [L, D] float32` are zero for retired ids, whose phrases went elsewhere.
    """

    assignment: np.ndarray
    distance: np.ndarray
    centres: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray
    status: tuple[str, ...]
    unmatched_reviews: int

    @property
    def blocked(self) -> np.ndarray:
        """`[L] bool`."""
        return np.array([status == BLOCKED for status in self.status], bool)

    def count(self, status: str) -> int:
        return self.status.count(status)

    def table(self, phrase_id: np.ndarray) -> pa.RecordBatch:
        """`CLUSTERS_SCHEMA`, for phrases with these ids `[P]`."""
        arrays = [
            pa.array(phrase_id, pa.int32()),
            pa.array(self.assignment, pa.int32()),
            pa.array(self.distance, pa.float32()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=CLUSTERS_SCHEMA)

    def names_table(self) -> pa.RecordBatch:
        """`CLUSTER_NAMES_SCHEMA`."""
        arrays = [
            pa.array(range(len(self.names)), pa.int32()),
            pa.array(self.names, pa.string()),
            pa.array(self.sizes, pa.int32()),
            pa.array(self.status, pa.string()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=CLUSTER_NAMES_SCHEMA)


def build_clusters(
    phrases: Sequence[str],
    vectors: np.ndarray,
    frequency: np.ndarray,
    config: ClusterConfig,
    seed: int,
) -> Clusters:
    """Clusters unit `vectors [P, D]`, applies the review and hands on the ids of an earlier run."""
    found = cluster_phrases(vectors, frequency.astype(float), config, seed)
    reviewed = Reviewed(found.assignment, frozenset(), {}, 0)
    if config.review:
        rows = read_review(Path(config.review))
        reviewed = apply_review(rows, phrases, vectors, found.assignment)
        if not np.array_equal(reviewed.assignment, found.assignment):
            found = _recentred(vectors, frequency, reviewed.assignment)
    previous = read_previous(Path(config.previous)) if config.previous else NO_CLUSTERS
    weights = phrase_weights(frequency)
    ids = stable_ids(phrases, weights, found.assignment, previous, config.min_overlap)
    return _by_id(phrases, frequency, found, reviewed, previous, ids)


def _by_id(
    phrases: Sequence[str],
    frequency: np.ndarray,
    found: Clustering,
    reviewed: Reviewed,
    previous: PreviousClusters,
    ids: np.ndarray,
) -> Clusters:
    total = max(len(previous.names), int(ids.max(initial=-1)) + 1)
    names = [*previous.names, *[""] * (total - len(previous.names))]
    status = [RETIRED] * total
    sizes = np.zeros(total, np.int32)
    centres = np.zeros((total, found.centres.shape[1]), np.float32)
    centres[ids] = found.centres
    for cluster, (name, size) in enumerate(
        zip(*name_clusters(phrases, frequency, found), strict=True)
    ):
        names[ids[cluster]] = reviewed.names.get(cluster, name)
        status[ids[cluster]] = BLOCKED if cluster in reviewed.blocked else ACTIVE
        sizes[ids[cluster]] = size
    return Clusters(
        ids[found.assignment],
        found.distance,
        centres,
        tuple(names),
        sizes,
        tuple(status),
        reviewed.unmatched,
    )


def _recentred(vectors: np.ndarray, frequency: np.ndarray, assignment: np.ndarray) -> Clustering:
    """The clustering with this `assignment [P]` in 0..K-1, none of them empty."""
    centres = np.zeros((int(assignment.max()) + 1, vectors.shape[1]), np.float32)
    every = np.ones(len(centres), bool)
    unplaced = np.zeros(len(vectors), np.float32)
    weights = phrase_weights(frequency)
    centres = move_centres(vectors, weights, assignment, unplaced, centres, every)
    similarity = (vectors * centres[assignment]).sum(axis=1)
    return Clustering(assignment, np.clip(1.0 - similarity, 0.0, 2.0), centres)
