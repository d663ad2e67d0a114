"""Finds near copies by locality-sensitive hashing: pure functions on record batches.

Each image is filed under several keys (bands): some of its hash bits, drawn at random once and for all. Copies meet
under at least one key, and only those that meet are compared, so the cost grows with the number of images, not of
pairs (Indyk and Motwani, 1998). A whole image is filed under its key and, as in multi-probe LSH (Lv et al., 2007),
under those with its least certain bits flipped as well; its crops under theirs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.schema_images import DedupConfig

CORPUS = -1  # `set` of the corpus; evaluation sets count from 0
HASH_BITS = 256
HASH_BYTES = HASH_BITS // 8
SIGNATURES_SCHEMA = pa.schema(
    [
        ("set", pa.int16()),
        ("id", pa.string()),
        ("sha256", pa.binary()),  # of the image's bytes; null: no image
        ("views", pa.int16()),  # the whole image and its crops
        (
            "codes",
            pa.binary(),
        ),  # of each view, of equal length: 32 bytes of hash, then what is compared besides
        ("margins", pa.binary()),  # [256]: how certain each bit of the first hash is; null: no hash
    ]
)
FILED_SCHEMA = pa.schema(
    [
        ("key", pa.uint64()),
        ("whole", pa.bool_()),  # two crops are not compared: one side of a pair is a whole image
        ("set", pa.int16()),
        ("id", pa.string()),
        ("code", pa.binary()),
    ]
)
# `other`, of `set`, is a copy of `id`, which is of the corpus.
PAIRS_SCHEMA = pa.schema([("id", pa.string()), ("set", pa.int16()), ("other", pa.string())])

Similar = Callable[[np.ndarray, np.ndarray], np.ndarray]  # codes [n, W], [n, W] uint8 -> [n] bool


def file_exact(signatures: pa.RecordBatch) -> pa.RecordBatch:
    """Images under the digest of their bytes (`FILED_SCHEMA`)."""
    kept = signatures.filter(pc.is_valid(signatures.column("sha256")))
    codes = byte_table(kept.column("sha256"))
    key = codes[:, :8].copy().view(np.uint64).ravel()
    return _filed(key, np.ones(len(key), bool), kept, np.arange(len(key)), codes)


def key_bits(config: DedupConfig, rows: int) -> int:
    """Bits a key for a band of `rows` keys: about one other image then shares a key by chance."""
    return config.band_bits or min(max(24, math.ceil(math.log2(max(rows, 1)))), 48)


def file_near(
    signatures: pa.RecordBatch, band: int, width: int, config: DedupConfig
) -> pa.RecordBatch:
    """Images with a hash under their keys of `width` bits of one band (`FILED_SCHEMA`)."""
    kept = signatures.filter(pc.is_valid(signatures.column("margins")))
    views = kept.column("views").to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(views)), views)
    first = np.cumsum(views) - views
    codes = byte_table(kept.column("codes"), int(views.sum()))
    places = _band_bits(band, width)
    bits = np.unpackbits(codes[:, :HASH_BYTES], axis=1)[:, places].astype(np.uint64)
    value = bits @ (np.uint64(1) << np.arange(width, dtype=np.uint64))
    value |= np.uint64(band) << np.uint64(width)
    margins = byte_table(kept.column("margins"))[:, places]
    probes = _probes(value[first], margins, config.weak_bits)
    crops = np.ones(len(row), bool)
    crops[first] = False
    key = np.concatenate([probes.ravel(), value[crops]])
    whole = np.arange(len(key)) < probes.size
    view = np.concatenate([np.repeat(first, probes.shape[1]), np.flatnonzero(crops)])
    return _filed(key, whole, kept, row[view], codes[view])


def find_pairs(filed: pa.Table, similar: Similar, window: int) -> tuple[pa.RecordBatch, int]:
    """Pairs that share a key and are similar (`PAIRS_SCHEMA`), and how many rows stand in a crowded bucket.

    A bucket is sorted by its codes, and each image is compared with the `window` - 1 that follow it, so that a bucket
    of any size costs in proportion to its rows (Hernandez and Stolfo, 1995). Buckets of up to `window` rows miss
    nothing.
    """
    filed = filed.sort_by([(name, "ascending") for name in ("key", "code", "set", "id")])
    key = filed["key"].to_numpy()
    whole = filed["whole"].to_numpy(zero_copy_only=False)
    place = filed["set"].to_numpy()
    ids = filed["id"].combine_chunks()
    name = ids.dictionary_encode().indices.to_numpy()
    codes = byte_table(filed["code"].combine_chunks())
    found: list[tuple[np.ndarray, np.ndarray]] = []
    left = np.arange(len(key))
    for offset in range(1, window):
        left = left[left + offset < len(key)]
        left = left[key[left] == key[left + offset]]
        if not len(left):
            break
        right = left + offset
        wanted = (whole[left] | whole[right]) & ((place[left] < 0) | (place[right] < 0))
        wanted &= (name[left] != name[right]) | (place[left] != place[right])
        a, b = left[wanted], right[wanted]
        alike = similar(codes[a], codes[b])
        found.append((a[alike], b[alike]))
    _, sizes = np.unique(key, return_counts=True)
    a = np.concatenate([pair[0] for pair in found] or [np.zeros(0, np.int64)])
    b = np.concatenate([pair[1] for pair in found] or [np.zeros(0, np.int64)])
    return _pairs(ids, place, a, b), int(sizes[sizes > window].sum())


def similar_bytes(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left == right).all(axis=1)


def split_by_key(filed: pa.RecordBatch, parts: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows by which of `parts` their key falls into."""
    # Fibonacci hashing: the keys of a band differ in their lowest bits, the digests in all.
    mixed = filed.column("key").to_numpy() * np.uint64(0x9E3779B97F4A7C15)
    part = (mixed >> np.uint64(33)) % np.uint64(parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(parts + 1))
    rows = filed.take(pa.array(order))
    for index in np.flatnonzero(np.diff(bounds)):
        yield int(index), rows.slice(bounds[index], bounds[index + 1] - bounds[index])


def byte_table(values: pa.Array, rows: int | None = None) -> np.ndarray:
    """Binary values of equal length as `[rows, length] uint8`; a value may hold several rows."""
    count = len(values) if rows is None else rows
    data = np.frombuffer(b"".join(values.to_pylist()), np.uint8)
    return data.reshape(count, -1) if count else np.zeros((0, HASH_BITS), np.uint8)


@lru_cache(maxsize=128)
def _band_bits(band: int, count: int) -> np.ndarray:
    """`[count]` places of the hash bits that make the keys of a band. Neighbours err together, so they are shuffled."""
    return np.random.default_rng((band, count)).permutation(HASH_BITS)[:count]


def _probes(value: np.ndarray, margins: np.ndarray, weak: int) -> np.ndarray:
    """Keys `[n, 2 ** weak]` with the least certain bits both ways; the first is `value` itself."""
    order = np.argsort(margins, axis=1, kind="stable")[:, :weak].astype(np.uint64)
    keys = value[:, None]
    for column in range(order.shape[1]):
        flip = np.uint64(1) << order[:, column, None]
        keys = np.concatenate([keys, keys ^ flip], axis=1)
    return keys


def _filed(
    key: np.ndarray,
    whole: np.ndarray,
    signatures: pa.RecordBatch,
    row: np.ndarray,
    codes: np.ndarray,
) -> pa.RecordBatch:
    owner = signatures.take(pa.array(row, pa.int64()))
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1]
    data = pa.py_buffer(np.ascontiguousarray(codes))
    code = pa.Array.from_buffers(pa.binary(), len(codes), [None, pa.py_buffer(offsets), data])
    columns = [pa.array(key, pa.uint64()), pa.array(whole), owner.column("set"), owner.column("id")]
    return pa.RecordBatch.from_arrays([*columns, code], schema=FILED_SCHEMA)


def _pairs(ids: pa.Array, place: np.ndarray, a: np.ndarray, b: np.ndarray) -> pa.RecordBatch:
    """`PAIRS_SCHEMA`: a corpus image first; each pair once."""
    swap = place[a] >= 0
    first, second = np.where(swap, b, a), np.where(swap, a, b)
    columns = [ids.take(pa.array(first)), pa.array(place[second]), ids.take(pa.array(second))]
    table = pa.Table.from_arrays(columns, schema=PAIRS_SCHEMA)
    unique = table.group_by(PAIRS_SCHEMA.names).aggregate([]).select(PAIRS_SCHEMA.names)
    return unique.combine_chunks().to_batches()[0] if len(unique) else _no_pairs()


def _no_pairs() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=PAIRS_SCHEMA)
