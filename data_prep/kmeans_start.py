"""Where k-means starts: k-means|| for a given number of clusters, leaders for a given width of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.kmeans import VectorBlocks, nearest, round_up

ROUNDS = 8  # of k-means||, at most
CANDIDATES = 2.0  # per centre, after which its rounds end
OVERSAMPLING = 0.5  # candidates that a round draws per centre (Bahmani et al., 2012, section 5.3)
SAME = 1e-6  # cosine distance below which two vectors are the same


def kmeans_parallel(
    vectors: np.ndarray,
    weights: np.ndarray,
    count: int,
    seed: int,
    *,
    block_rows: int = 1024,
    devices: Sequence[jax.Device] | None = None,
) -> np.ndarray:
    """k-means|| (Bahmani et al., "Scalable K-Means++", 2012): starting centres, at most `[count, D]`.

    A round draws about `count / 2` of the unit `vectors [P, D]` at once, each with probability ~ weight * distance;
    k-means++ then picks among the candidates, each weighing what it stands for. Few vectors are all candidates.
    """
    if len(vectors) <= 2 * CANDIDATES * count:
        return vectors[kmeans_plus_plus(vectors, weights, count, seed)]
    generator = np.random.default_rng(seed)
    blocks = VectorBlocks.put(vectors, block_rows, devices)
    mass = weights.astype(np.float64)
    candidates = np.array([generator.choice(len(vectors), p=mass / mass.sum())])
    index, similarity, _ = nearest(blocks, vectors[candidates])
    for _ in range(ROUNDS):
        cost = weights * np.maximum(1.0 - similarity.astype(np.float64) - SAME, 0.0)
        if cost.sum() <= 0.0 or len(candidates) >= CANDIDATES * count:
            break
        chance = cost * (OVERSAMPLING * count / cost.sum())
        drawn = np.flatnonzero(generator.random(len(vectors)) < chance)
        if len(drawn) == 0:
            continue
        found, closer, _ = nearest(blocks, vectors[drawn])
        index = np.where(closer > similarity, found + len(candidates), index)
        similarity = np.maximum(similarity, closer)
        candidates = np.concatenate([candidates, drawn])
    stands_for = np.bincount(index, weights, minlength=len(candidates)).astype(np.float32)
    chosen = kmeans_plus_plus(vectors[candidates], stands_for, count, seed)
    return vectors[candidates[chosen]]


def kmeans_plus_plus(vectors: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows drawn with probability ~ weight * distance (Arthur and Vassilvitskii, 2007): `[at most count] int64`.

    Of unit vectors the squared distance is twice the cosine distance. Ends early where all vectors are taken.
    """
    rows = round_up(len(vectors))
    padded = np.zeros((rows, vectors.shape[1]), np.float32)
    padded[: len(vectors)] = vectors
    mass = np.zeros(rows, np.float32)
    mass[: len(vectors)] = weights
    chosen, left = jax.device_get(_draw(padded, mass, jax.random.key(seed), round_up(count)))
    return chosen[:count][left[:count]].astype(np.int64)


@partial(jax.jit, static_argnums=3)
def _draw(
    vectors: jax.Array, weights: jax.Array, key: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """`count` drawn rows and whether there was anything left to draw each from."""

    def step(distance: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        mass = distance * weights
        chosen = jax.random.categorical(key, jnp.log(mass))
        product = jnp.dot(vectors, vectors[chosen], precision=jax.lax.Precision.HIGHEST)
        closer = jnp.where(product > 1.0 - SAME, 0.0, 1.0 - product)
        return jnp.minimum(distance, closer), (chosen, mass.max() > 0.0)

    return jax.lax.scan(step, jnp.ones(len(vectors)), jax.random.split(key, count))[1]


def leaders(
    vectors: np.ndarray, frequency: np.ndarray, radius: float, max_count: int
) -> np.ndarray:
    """Starting centres `[K, D]`: each phrase, most frequent first, that no earlier centre is within `radius` of.

    So the data say how many clusters there are, given how wide one may be (the start of DP-means, Kulis and
    Jordan, 2012).
    """
    order = np.argsort(-frequency, kind="stable")
    chosen = np.empty((min(max_count, len(vectors)), vectors.shape[1]), np.float32)
    count, block = 0, 512
    for start in range(0, len(order), block):
        rows = vectors[order[start : start + block]]
        nearest = (rows @ chosen[:count].T).max(axis=1, initial=-2.0)
        within = rows @ rows.T
        for i in range(len(rows)):
            if nearest[i] < 1.0 - radius and count < len(chosen):
                chosen[count] = rows[i]
                count += 1
                nearest = np.maximum(nearest, within[i])
        if count == len(chosen):
            break
    return chosen[:count]
