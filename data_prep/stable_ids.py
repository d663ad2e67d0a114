"""Cluster ids that outlive a run: a cluster keeps the id of the earlier one that it shares its phrases with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse

from vitscale.errors import UserError


@dataclass(frozen=True)
class PreviousClusters:
    """Clusters of an earlier run: cluster of each phrase, and the name of every id ever given, `names[id]`."""

    cluster: Mapping[str, int]
    names: tuple[str, ...]


PREVIOUS_FILES = ("vocabulary.parquet", "clusters.parquet", "cluster_names.parquet")
NO_CLUSTERS = PreviousClusters({}, ())


def read_previous(folder: Path) -> PreviousClusters:
    """Reads vocabulary.parquet, clusters.parquet and cluster_names.parquet of an output folder."""
    try:
        columns = (["phrase_id", "phrase"], ["phrase_id", "cluster_id"], ["cluster_id", "name"])
        vocabulary, clusters, names = (
            pq.read_table(folder / name, columns=wanted)
            for name, wanted in zip(PREVIOUS_FILES, columns, strict=True)
        )
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(
            f"clusters.previous {folder} is not an output folder of vitscale prep: {error}."
        ) from error
    phrase = dict(zip(*(vocabulary[n].to_pylist() for n in vocabulary.column_names), strict=True))
    pairs = zip(clusters["phrase_id"].to_pylist(), clusters["cluster_id"].to_pylist(), strict=True)
    if names["cluster_id"].to_pylist() != list(range(names.num_rows)):
        raise UserError(
            f"clusters.previous {folder}: cluster_names.parquet must list the ids 0, 1, 2, ... in order."
        )
    return PreviousClusters({phrase[p]: c for p, c in pairs}, tuple(names["name"].to_pylist()))


def stable_ids(
    phrases: Sequence[str],
    weights: np.ndarray,
    assignment: np.ndarray,
    previous: PreviousClusters,
    min_overlap: float,
) -> np.ndarray:
    """Id of each cluster, `[K] int32`.

    Clusters are compared by the phrases that both runs know, weighted: the share of what either has that both have
    (Jaccard). The best pairs match first, down to `min_overlap`. The others get ids that were never used.

    Args:
      phrases: `[P]`, with `weights [P]` and the cluster number of each, `assignment [P]` in 0..K-1.
    """
    count = int(assignment.max(initial=-1)) + 1
    earlier = np.array([previous.cluster.get(phrase, -1) for phrase in phrases], np.int64)
    known = np.flatnonzero(earlier >= 0)
    shape = (count, len(previous.names))
    triples = (weights[known].astype(np.float64), (assignment[known], earlier[known]))
    both = scipy.sparse.csr_matrix(triples, shape=shape)
    total = np.asarray(both.sum(axis=1)).ravel(), np.asarray(both.sum(axis=0)).ravel()
    shared = both.tocoo()
    overlap = shared.data / (total[0][shared.row] + total[1][shared.col] - shared.data)
    ids = np.full(count, -1, np.int32)
    taken = np.zeros(len(previous.names), bool)
    for pair in np.lexsort((shared.row, shared.col, -overlap)):
        new, old = shared.row[pair], shared.col[pair]
        if overlap[pair] >= min_overlap and ids[new] < 0 and not taken[old]:
            ids[new], taken[old] = old, True
    fresh = np.flatnonzero(ids < 0)
    ids[fresh] = len(previous.names) + np.arange(len(fresh))
    return ids
