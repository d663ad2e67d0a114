"""Spherical k-means in JAX (Dhillon and Modha, 2001), exact, with a search that skips what cannot win.

Lloyd's iteration spends its time on the nearest centre of every vector: a `[P, D] x [D, K]` product. Here each vector
keeps a lower bound of its angle to every centre but its own. A centre that moved by less than the vector's slack
(that bound minus the angle to its own centre) cannot become the nearest, by the triangle inequality for angles
(Hamerly, 2010, gives it for Euclidean distances). So vectors are sorted by slack and centres by how far they moved: a
block of vectors needs a prefix of the centres, and that is a plain matmul. Assignments equal those of the full search.

Memory: the vectors once per copy (host and devices), `[block_rows, TILE]` of the product, O(P + K D) besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TILE = 512  # centres a step of the product
COSINE_ERROR = 2e-6  # of a float32 product of unit vectors, with room to spare
NEVER = -4.0  # below every cosine
Rows = tuple[jax.Array, jax.Array, jax.Array]


@dataclass(frozen=True)
class Solution:
    """`centres [K, D] float32` of unit length, `assignment [P] int32` and `similarity [P] float32` (cosine).

    `products` counts the vector-centre products of each pass; the full search needs P * K.
    """

    centres: np.ndarray
    assignment: np.ndarray
    similarity: np.ndarray
    products: tuple[int, ...] = ()


@dataclass(frozen=True)
class VectorBlocks:
    """Unit vectors `[devices * rows, D] float32`, padded with zeros and sharded by rows over a one-axis mesh."""

    vectors: jax.Array
    mesh: Mesh
    size: int  # vectors without the padding
    block: int

    @classmethod
    def put(
        cls, vectors: np.ndarray, block_rows: int, devices: Sequence[jax.Device] | None = None
    ) -> VectorBlocks:
        size = len(vectors)
        block = min(block_rows, round_up(size))
        # No more devices than blocks.
        used = list(devices or jax.local_devices())[: max(1, -(-size // block))]
        mesh = Mesh(np.array(used), ("rows",))
        step = block * mesh.size
        padded = step * round_up(-(-size // step))
        if padded > size:
            vectors = np.concatenate(
                [vectors, np.zeros((padded - size, vectors.shape[1]), np.float32)]
            )
        return cls(jax.device_put(vectors, NamedSharding(mesh, P("rows"))), mesh, size, block)


def round_up(count: int) -> int:
    """The next of 1..8, 10, 12, 14, 16, 20, ...: few shapes to compile, at most a quarter of padding."""
    step = 1 << max(max(count - 1, 1).bit_length() - 3, 0)
    return -(-count // step) * step


def nearest(blocks: VectorBlocks, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full search: nearest centre `[P] int32`, the cosine to it and to the second nearest `[P] float32`.

    Of equally near centres the first is taken, so the result does not depend on the number of devices.
    """
    padded = len(blocks.vectors)
    rows = np.arange(padded, dtype=np.int32) % (padded // blocks.mesh.size)
    first = np.arange(0, padded, blocks.block)  # blocks of padding alone see nothing
    tiles = np.where(first < blocks.size, -(-len(centres) // _tile(len(centres))), 0)
    order = np.arange(len(centres))
    in_blocks = rows.reshape(-1, blocks.block)
    found = _search(blocks, in_blocks, tiles.astype(np.int32), centres, order)
    best, second, index = (array.ravel()[: blocks.size] for array in found)
    return index, best, second


def nearest_several(
    vectors: np.ndarray, centres: np.ndarray, count: int, block_rows: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest centres of each vector, nearest first, and the cosines: `[P, count]` int32, float32."""
    block = min(block_rows, round_up(len(vectors)))
    padded = np.zeros((-(-len(vectors) // block) * block, vectors.shape[1]), np.float32)
    padded[: len(vectors)] = vectors
    found = _top_blocks(padded.reshape(-1, block, vectors.shape[1]), centres, count)
    cosine, index = (np.asarray(a).reshape(-1, count)[: len(vectors)] for a in found)
    return index, cosine


@partial(jax.jit, static_argnums=2)
def _top_blocks(blocks: jax.Array, centres: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    def top(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = jnp.dot(block, centres.T, precision=jax.lax.Precision.HIGHEST)
        cosine, index = jax.lax.top_k(product, count)
        return cosine, index

    return jax.lax.map(top, blocks)


def lloyd(
    vectors: np.ndarray,
    weights: np.ndarray,
    centres: np.ndarray,
    iterations: int,
    *,
    block_rows: int = 1024,
    devices: Sequence[jax.Device] | None = None,
) -> Solution:
    """Improves `centres [K, D]` of unit `vectors [P, D]` with `weights [P]` until nothing moves.

    An iteration moves each centre to the normalised weighted sum of its vectors, an empty one to a badly placed
    vector, and assigns every vector to its nearest centre. The weighted sum of the cosines never falls, re-seeding
    included.
    """
    blocks = VectorBlocks.put(np.ascontiguousarray(vectors, np.float32), block_rows, devices)
    assignment, similarity, second = nearest(blocks, centres)
    bound = _angle(second + COSINE_ERROR)
    changed = np.ones(len(centres), bool)
    products = [len(vectors) * len(centres)]
    for _ in range(iterations):
        previous = assignment
        moved = move_centres(vectors, weights, assignment, similarity, centres, changed)
        assignment, similarity, bound, count = _reassign(blocks, centres, moved, assignment, bound)
        centres = moved
        products.append(count)
        switched = previous != assignment
        if not switched.any():
            break
        changed = np.zeros(len(centres), bool)
        changed[previous[switched]] = changed[assignment[switched]] = True
    return Solution(centres, assignment, similarity, tuple(products))


def move_centres(
    vectors: np.ndarray,
    weights: np.ndarray,
    assignment: np.ndarray,
    similarity: np.ndarray,
    centres: np.ndarray,
    changed: np.ndarray,
) -> np.ndarray:
    """New centres `[K, D]`. Those that are not `changed [K]` stay, bit for bit.

    On the host and in the order of the rows: the sums do not depend on the number of devices.
    """
    empty = np.flatnonzero(np.bincount(assignment, minlength=len(centres)) == 0)
    rows = np.flatnonzero(changed[assignment])
    place = np.cumsum(changed) - 1
    shape = (int(changed.sum()), len(vectors))
    member = scipy.sparse.csr_matrix((weights[rows], (place[assignment[rows]], rows)), shape=shape)
    sums = (member.astype(np.float32) @ vectors).astype(np.float32)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    moved = centres.copy()
    moved[changed] = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres[changed])
    # Each empty one takes the worst placed vector of those that are not a centre's only one.
    alone = np.bincount(assignment, minlength=len(centres))[assignment] == 1
    worst = np.argsort(np.where(alone, 2.0, similarity), kind="stable")[: len(empty)]
    moved[empty[: len(worst)]] = vectors[worst]
    return moved


def _reassign(
    blocks: VectorBlocks,
    centres: np.ndarray,
    moved: np.ndarray,
    assignment: np.ndarray,
    bound: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Assignment, cosine and bound `[P]` for the `moved` centres, and how many products that took."""
    count, size = len(moved), blocks.size
    step = np.where(
        (moved == centres).all(axis=1), 0.0, _angle((moved * centres).sum(axis=1) - COSINE_ERROR)
    ).astype(np.float32)
    farthest = np.argsort(-step, kind="stable")
    own = _own_similarity(blocks, moved, assignment)
    slack = bound - _angle(own - COSINE_ERROR)
    rows, prefix = _plan(blocks, slack, step[farthest])
    tile = _tile(count)
    tiles = -(-prefix // tile)
    searched = _search(blocks, rows, tiles.astype(np.int32), moved, farthest)
    place = (rows + np.arange(len(rows))[:, None] // _per_device(blocks) * _shard(blocks)).ravel()
    kept = place < size
    best, second, index = (_scatter(array.ravel()[kept], place[kept], size) for array in searched)
    seen = np.minimum(tiles * tile, count)
    # How far the farthest of the centres that a block has not seen moved.
    unseen = np.append(step[farthest], np.float32(-np.inf))[seen]
    rest = bound - _scatter(np.repeat(unseen, blocks.block)[kept], place[kept], size)

    switch = (best > own) & (index != assignment)
    other = np.where(index == assignment, second, best)
    other = np.where(switch, np.maximum(second, own), other)
    return (
        np.where(switch, index, assignment),
        np.where(switch, best, own),
        np.minimum(_angle(other + COSINE_ERROR), rest),
        int(seen.sum()) * blocks.block,
    )


def _plan(
    blocks: VectorBlocks, slack: np.ndarray, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each block `[blocks, B] int32`, counted within their device, and how many centres it must see.

    A device's rows are sorted by slack; its padding comes last and sees nothing. `step [K]` falls.
    """
    padded = np.full(len(blocks.vectors), np.inf, np.float32)
    padded[: blocks.size] = slack
    shards = padded.reshape(blocks.mesh.size, -1)
    rows = np.argsort(shards, axis=1, kind="stable")
    least = np.take_along_axis(shards, rows, axis=1).reshape(-1, blocks.block)[:, 0]
    prefix = np.searchsorted(-step, -least, side="left")  # step > slack
    return rows.astype(np.int32).reshape(-1, blocks.block), prefix


def _search(
    blocks: VectorBlocks,
    rows: np.ndarray,
    tiles: np.ndarray,
    centres: np.ndarray,
    order: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best and second cosine and index of the best, `[blocks, B]`, of the first `tiles` tiles of `centres[order]`."""
    tile = _tile(len(centres))
    missing = tile * round_up(-(-len(centres) // tile)) - len(centres)
    padded = np.concatenate([centres[order], np.zeros((missing, centres.shape[1]), np.float32)])
    index = np.concatenate([order, np.full(missing, len(centres))]).astype(np.int32)
    found = _search_blocks(
        blocks.mesh,
        blocks.vectors,
        rows,
        tiles,
        padded.reshape(-1, tile, centres.shape[1]),
        index.reshape(-1, tile),
        np.int32(len(centres)),
    )
    best, second, chosen = jax.device_get(found)
    return best, second, chosen


@partial(jax.jit, static_argnums=0)
def _search_blocks(
    mesh: Mesh,
    vectors: jax.Array,
    rows: jax.Array,
    tiles: jax.Array,
    centres: jax.Array,
    index: jax.Array,
    count: jax.Array,
) -> Rows:
    """`_search` on the devices: each one its own rows, block by block, tile by tile."""

    def local(
        vectors: jax.Array,
        rows: jax.Array,
        tiles: jax.Array,
        centres: jax.Array,
        index: jax.Array,
        count: jax.Array,
    ) -> Rows:
        def step(block: jax.Array, t: jax.Array, found: Rows) -> Rows:
            best, second, chosen = found
            ids = index[t]
            product = jnp.dot(block, centres[t].T, precision=jax.lax.Precision.HIGHEST)
            product = jnp.where(ids < count, product, NEVER)
            top = product.max(axis=1)
            # Several times as fast as argmax on a CPU; the lowest index wins a tie.
            first = jnp.min(jnp.where(product == top[:, None], ids, count), axis=1)
            runner_up = jnp.where(ids == first[:, None], NEVER, product).max(axis=1)
            better = (top > best) | ((top == best) & (first < chosen))
            second = jnp.maximum(jnp.minimum(top, best), jnp.maximum(second, runner_up))
            return jnp.maximum(top, best), second, jnp.where(better, first, chosen)

        def search(item: tuple[jax.Array, jax.Array]) -> Rows:
            chosen, limit = item
            block = vectors[chosen]
            never = jnp.full(chosen.shape, NEVER, jnp.float32)
            start = (never, never, jnp.broadcast_to(count, chosen.shape))
            return jax.lax.fori_loop(0, limit, lambda t, found: step(block, t, found), start)

        return jax.lax.map(search, (rows, tiles))

    split, whole = P("rows"), P()
    shard = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, split, split, whole, whole, whole),
        out_specs=split,
        check_vma=False,
    )
    return shard(vectors, rows, tiles, centres, index, count)


def _own_similarity(
    blocks: VectorBlocks, centres: np.ndarray, assignment: np.ndarray
) -> np.ndarray:
    """Cosine `[P] float32` of each vector to the centre that it is assigned to."""
    padded = np.zeros(len(blocks.vectors), np.int32)
    padded[: blocks.size] = assignment
    found = _own_blocks(blocks.mesh, blocks.vectors, padded.reshape(-1, blocks.block), centres)
    return np.asarray(found).ravel()[: blocks.size]


@partial(jax.jit, static_argnums=0)
def _own_blocks(
    mesh: Mesh, vectors: jax.Array, assignment: jax.Array, centres: jax.Array
) -> jax.Array:
    def local(vectors: jax.Array, assignment: jax.Array, centres: jax.Array) -> jax.Array:
        shape = (*assignment.shape, vectors.shape[1])
        return jax.lax.map(
            lambda pair: (pair[0] * centres[pair[1]]).sum(axis=1),
            (vectors.reshape(shape), assignment),
        )

    shard = jax.shard_map(
        local, mesh=mesh, in_specs=(P("rows"), P("rows"), P()), out_specs=P("rows"), check_vma=False
    )
    return shard(vectors, assignment, centres)


def _angle(cosine: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip(cosine, -1.0, 1.0)).astype(np.float32)


def _scatter(values: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    found = np.empty(size, values.dtype)
    found[place] = values
    return found


def _tile(count: int) -> int:
    return min(TILE, round_up(count))


def _shard(blocks: VectorBlocks) -> int:
    return len(blocks.vectors) // blocks.mesh.size


def _per_device(blocks: VectorBlocks) -> int:
    return _shard(blocks) // blocks.block
