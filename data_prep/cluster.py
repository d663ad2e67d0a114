"""Spherical k-means over phrase vectors (Dhillon and Modha, 2001), and names for the clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    weights = np.sqrt(np.maximum(frequency, 1.0)).astype(np.float32)
    if config.count is None:
        centres = leaders(vectors, frequency, config.radius, config.max_count)
    else:
        centres = kmeans_plus_plus(vectors, weights, min(config.count, len(vectors)), seed)
    assignment, similarity = assign(vectors, centres, config.block_rows)
    for _ in range(config.iterations):
        centres = update(vectors, weights, assignment, similarity, centres)
        previous = assignment
        assignment, similarity = assign(vectors, centres, config.block_rows)
        if np.array_equal(previous, assignment):
            break
    first = np.full(len(centres), -1.0)
    np.maximum.at(first, assignment, frequency)
    order = np.argsort(-first, kind="stable")
    order = order[first[order] >= 0]  # a re-seeded centre may have lost its only phrase again
    rank = np.full(len(centres), -1, np.int32)
    rank[order] = np.arange(len(order))
    distance = np.clip(1.0 - similarity, 0.0, 2.0)
    return Clustering(rank[assignment], distance.astype(np.float32), centres[order])


def leaders(vectors: np.ndarray, frequency: np.ndarray, radius: float, limit: int) -> np.ndarray:
    """Starting centres `[K, D]`: each phrase, most frequent first, that no earlier centre is within `radius` of.

    So the data say how many clusters there are, given how wide one may be (the start of DP-means, Kulis and
    Jordan, 2012).
    """
    order = np.argsort(-frequency, kind="stable")
    chosen: list[int] = []
    nearest = np.full(len(vectors), -2.0, np.float32)
    block = 512
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        if chosen:
            nearest[rows] = assign(vectors[rows], vectors[chosen], block)[1]
        within = vectors[rows] @ vectors[rows].T
        for i, row in enumerate(rows):
            if nearest[row] < 1.0 - radius and len(chosen) < limit:
                chosen.append(int(row))
                nearest[rows] = np.maximum(nearest[rows], within[i])
    return vectors[chosen]


def kmeans_plus_plus(vectors: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Starting centres `[count, D]` drawn with probability ~ weight * distance (Arthur and Vassilvitskii, 2007).

    Of unit vectors the squared distance is twice the cosine distance.
    """
    generator = np.random.default_rng(seed)
    chosen = [int(generator.choice(len(vectors), p=weights / weights.sum(dtype=np.float64)))]
    distance = np.maximum(1.0 - vectors @ vectors[chosen[0]], 0.0)
    for _ in range(1, count):
        mass = distance.astype(np.float64) * weights
        if mass.sum() <= 0.0:  # fewer distinct vectors than clusters
            break
        chosen.append(int(generator.choice(len(vectors), p=mass / mass.sum())))
        distance = np.minimum(distance, np.maximum(1.0 - vectors @ vectors[chosen[-1]], 0.0))
    return vectors[chosen]


def assign(
    vectors: np.ndarray, centres: np.ndarray, block_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre of each vector and the cosine to it, by blocks of rows: `[P] int64`, `[P] float32`."""
    nearest = np.zeros(len(vectors), np.int64)
    similarity = np.zeros(len(vectors), np.float32)
    for start in range(0, len(vectors), block_rows):
        product = vectors[start : start + block_rows] @ centres.T
        best = product.argmax(axis=1)
        nearest[start : start + block_rows] = best
        similarity[start : start + block_rows] = product[np.arange(len(best)), best]
    return nearest, similarity


def update(
    vectors: np.ndarray,
    weights: np.ndarray,
    assignment: np.ndarray,
    similarity: np.ndarray,
    centres: np.ndarray,
) -> np.ndarray:
    """New centres: the normalised weighted sum of each one's vectors; an empty one moves to a badly placed vector."""
    sums = np.zeros_like(centres)
    np.add.at(sums, assignment, vectors * weights[:, None])
    empty = np.flatnonzero(np.bincount(assignment, minlength=len(centres)) == 0)
    worst = np.argsort(similarity, kind="stable")[: len(empty)]
    sums[empty[: len(worst)]] = vectors[worst]
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres).astype(np.float32)


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
