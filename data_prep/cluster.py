"""Clusters of phrases from their vectors, flat or in levels, and names for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.kmeans import Solution, lloyd
from data_prep.kmeans_start import kmeans_parallel, leaders
from data_prep.schema import ClusterConfig

NAME_PHRASES = 3


@dataclass(frozen=True)
class Clustering:
    """`assignment [P] int32`, `distance [P] float32` (1 - cosine to the centre), `centres [K, D] float32`."""

    assignment: np.ndarray
    distance: np.ndarray
    centres: np.ndarray


def cluster_phrases(
    vectors: np.ndarray, frequency: np.ndarray, config: ClusterConfig, seed: int
) -> Clustering:
    """Clusters unit vectors `[P, D]`, each counted with the square root of its `frequency [P]`.

    Clusters are numbered by falling frequency of their most frequent phrase, so the ids say something.
    """
    weights = phrase_weights(frequency)
    if config.count is None:
        centres = leaders(vectors, frequency, config.radius, config.max_count)
        found = lloyd(vectors, weights, centres, config.iterations, block_rows=config.block_rows)
    else:
        count = min(config.count, len(vectors))
        found = kmeans_tree(vectors, weights, count, config.levels, config, seed)
    first = np.full(len(found.centres), -1.0)
    np.maximum.at(first, found.assignment, frequency)
    order = np.argsort(-first, kind="stable")
    order = order[first[order] >= 0]  # a re-seeded centre may have lost its only phrase again
    rank = np.full(len(first), -1, np.int32)
    rank[order] = np.arange(len(order))
    distance = np.clip(1.0 - found.similarity, 0.0, 2.0)
    return Clustering(rank[found.assignment], distance.astype(np.float32), found.centres[order])


def phrase_weights(frequency: np.ndarray) -> np.ndarray:
    """How much each phrase pulls its centre, `[P] float32`."""
    return np.sqrt(np.maximum(frequency, 1.0)).astype(np.float32)


def kmeans_tree(
    vectors: np.ndarray,
    weights: np.ndarray,
    count: int,
    levels: int,
    config: ClusterConfig,
    seed: int,
) -> Solution:
    """k-means into `count` clusters, by way of `count ** (1 / levels)` clusters that are split further (Nister, 2006).

    With two levels a million vectors need 2 * sqrt(count) products each instead of `count`; a vector's centre is the
    nearest within its branch. One level is plain k-means.
    """
    top = count if levels == 1 else max(1, round(count ** (1 / levels)))
    block = config.block_rows
    start = kmeans_parallel(vectors, weights, top, seed, block_rows=block)
    found = lloyd(vectors, weights, start, config.iterations, block_rows=block)
    if levels == 1:
        return found
    sizes = np.bincount(found.assignment, minlength=len(found.centres))
    assignment, similarity = np.zeros(len(vectors), np.int32), np.zeros(len(vectors), np.float32)
    centres: list[np.ndarray] = []
    for branch, leaves in enumerate(apportion(sizes, count)):
        rows = np.flatnonzero(found.assignment == branch)
        if len(rows) == 0:
            continue
        part = kmeans_tree(
            vectors[rows], weights[rows], int(leaves), levels - 1, config, seed + 1 + branch
        )
        assignment[rows] = part.assignment + sum(map(len, centres))
        similarity[rows] = part.similarity
        centres.append(part.centres)
    return Solution(np.concatenate(centres), assignment, similarity)


def apportion(sizes: np.ndarray, seats: int) -> np.ndarray:
    """`seats` in proportion to `sizes [n]`, largest remainders first; at least 1 and at most the size, 0 for none."""
    least = np.minimum(sizes, 1)
    quota = np.clip(sizes * seats / max(sizes.sum(), 1), least, sizes)
    given = np.floor(quota).astype(np.int64)
    for index in np.argsort(given - quota, kind="stable"):
        if given.sum() >= seats:
            break
        given[index] += given[index] < sizes[index]
    return given


def name_clusters(
    phrases: Sequence[str], frequency: np.ndarray, clustering: Clustering
) -> tuple[list[str], list[int]]:
    """Name and number of phrases of each cluster: its most central frequent phrases, the first one unique.

    A phrase's claim to the name is sqrt(frequency) * cosine to the centre.
    """
    claim = np.sqrt(np.maximum(frequency, 0.0)) * (1.0 - clustering.distance)
    order = np.lexsort((np.arange(len(claim)), -claim, clustering.assignment))
    members: list[list[int]] = [[] for _ in range(len(clustering.centres))]
    for index in order:
        members[clustering.assignment[index]].append(int(index))
    names = [" / ".join(phrases[i] for i in rows[:NAME_PHRASES]) for rows in members]
    return names, [len(rows) for rows in members]
