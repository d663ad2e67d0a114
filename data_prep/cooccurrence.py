"""Co-occurrence counts as a sparse matrix on disk: only a part of it is ever in memory.

The counts of a million phrases over a billion records do not fit into memory beside what is computed from them. They
are written as a CSR matrix in files and mapped: products and row blocks of it work as of any scipy matrix, and the
system keeps in memory what it has room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse

from data_prep.compiled import compiled

PART_ENTRIES = 8_000_000  # counts in memory at once, about 0.5 GB while they are summed
BLOCK_ENTRIES = 2_000_000  # of a matrix that is read row block by row block
# A pair of phrases and its count in one record, at most 127 * 128, share an int64.
_PHRASE_BITS, _COUNT_BITS = 24, 15
ENTRY = np.dtype([("row", np.int32), ("column", np.int32), ("count", np.int64)])


class CsrFile:
    """Writes a `[columns, columns]` CSR matrix to a folder row block by row block, then maps it."""

    def __init__(self, folder: Path, columns: int, dtype: type, max_entries: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._columns = folder, columns
        # scipy wants one type for both index arrays.
        self._index = np.dtype(np.int32 if max_entries < 2**31 else np.int64)
        self._dtype = np.dtype(dtype)
        self._ends = [np.zeros(1, np.int64)]
        for name in ("indices", "data"):
            (folder / name).write_bytes(b"")

    def append(self, block: scipy.sparse.csr_matrix) -> None:
        """Adds rows `[n, columns]`."""
        for name, values, dtype in (
            ("indices", block.indices, self._index),
            ("data", block.data, self._dtype),
        ):
            with (self._folder / name).open("ab") as file:
                values.astype(dtype).tofile(file)
        self._ends.append(block.indptr[1:].astype(np.int64) + self._ends[-1][-1])

    def finish(self) -> scipy.sparse.csr_matrix:
        """The matrix, mapped read-only."""
        ends = np.concatenate(self._ends).astype(self._index)
        arrays = [
            np.memmap(self._folder / name, dtype, "r") if ends[-1] else np.zeros(0, dtype)
            for name, dtype in (("data", self._dtype), ("indices", self._index))
        ]
        shape = (len(ends) - 1, self._columns)
        return scipy.sparse.csr_matrix((*arrays, ends), shape=shape, copy=False)


def symmetric_counts(
    read: Callable[[], Iterable[pa.RecordBatch]],
    canonical: np.ndarray,
    folder: Path,
    *,
    part_entries: int = PART_ENTRIES,
) -> scipy.sparse.csr_matrix:
    """`COUNTS_SCHEMA` batches (upper triangle) as a symmetric `[n, n] int64` matrix with folded phrases added up.

    Args:
      read: starts over at the first batch each time it is called; it is called twice.
      canonical: `[P]`: row of the result for each phrase, `n = max + 1`; -1 leaves a phrase out.
      folder: of the matrix's files; they must stay while the matrix is in use.
    """
    size = int(canonical.max(initial=-1)) + 1
    entries = np.zeros(size, np.int64)
    for batch in read():
        entries += np.bincount(_mirrored(batch, canonical)["row"], minlength=size)
    # A part is a range of rows, of about as many counts as may be in memory.
    part_of = (np.cumsum(entries) - entries) // part_entries
    first = np.concatenate([[0], np.flatnonzero(np.diff(part_of)) + 1, [size]])
    folder.mkdir(parents=True, exist_ok=True)
    for batch in read():
        found = _mirrored(batch, canonical)
        part = np.searchsorted(first, found["row"], side="right") - 1
        for index in np.unique(part):
            with (folder / f"part-{index}").open("ab") as file:
                found[part == index].tofile(file)
    matrix = CsrFile(folder, size, np.int64, int(entries.sum()))
    for index in range(len(first) - 1):
        path = folder / f"part-{index}"
        found = np.fromfile(path, ENTRY) if path.exists() else np.zeros(0, ENTRY)
        path.unlink(missing_ok=True)
        shape = (int(first[index + 1] - first[index]), size)
        place = (found["row"] - first[index], found["column"])
        matrix.append(scipy.sparse.csr_matrix((found["count"], place), shape=shape))
    return matrix.finish()


def count_pairs(
    record: np.ndarray, source: np.ndarray, phrase: np.ndarray, *, across: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of phrases that meet in a record: row, column (row <= column) and count, `[n] int64`, by row and column.

    Args:
      record, source, phrase: `[H] int64`: hits, every one once, by record. Sources are below 128.
      across: a pair counts for each pair of different sources that hold one phrase each, so that a phrase meets itself
        where two sources agree on it; else once a record, whatever the sources, and never with itself.
    """
    keys = _record_pairs(record, source, phrase, across)
    keys.sort()
    keys, count = _sum_runs(keys)
    return keys >> _PHRASE_BITS, keys & ((1 << _PHRASE_BITS) - 1), count


def row_blocks(
    matrix: scipy.sparse.csr_matrix, entries: int = BLOCK_ENTRIES
) -> Iterator[tuple[int, scipy.sparse.csr_matrix]]:
    """Consecutive rows of about `entries` entries each, with the number of the first row."""
    part_of = matrix.indptr[:-1].astype(np.int64) // entries
    first = np.concatenate([[0], np.flatnonzero(np.diff(part_of)) + 1, [matrix.shape[0]]])
    for start, stop in pairwise(first):
        yield int(start), matrix[int(start) : int(stop)]


@compiled
def _record_pairs(
    record: np.ndarray, source: np.ndarray, phrase: np.ndarray, across: bool
) -> np.ndarray:
    """Each record's pairs as row, column and count in one number."""
    out = np.empty(1024, np.int64)
    phrases = np.empty(len(phrase), np.int64)
    held = np.empty((len(phrase), 2), np.uint64)  # sources that hold each phrase, as bits
    size, begin = 0, 0
    while begin < len(record):
        end = begin
        while end < len(record) and record[end] == record[begin]:
            end += 1
        known = 0
        for at in np.argsort(phrase[begin:end], kind="mergesort") + begin:
            if known == 0 or phrases[known - 1] != phrase[at]:
                phrases[known] = phrase[at]
                held[known] = 0
                known += 1
            held[known - 1, source[at] >> 6] |= np.uint64(1) << np.uint64(source[at] & 63)
        while size + known * (known + 1) // 2 > len(out):
            larger = np.empty(2 * len(out), np.int64)
            larger[:size] = out[:size]
            out = larger
        for i in range(known):
            sources = _bits(held[i, 0]) + _bits(held[i, 1])
            for j in range(i, known):
                count = 1 if i != j else 0
                if across:
                    count = sources * (_bits(held[j, 0]) + _bits(held[j, 1]))
                    count -= _bits(held[i, 0] & held[j, 0]) + _bits(held[i, 1] & held[j, 1])
                if count:
                    pair = phrases[i] << _PHRASE_BITS | phrases[j]
                    out[size] = pair << _COUNT_BITS | count
                    size += 1
        begin = end
    return out[:size]


@compiled
def _bits(number: np.uint64) -> int:
    count = 0
    while number:
        number &= number - np.uint64(1)
        count += 1
    return count


@compiled
def _sum_runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different pairs of sorted `_record_pairs`, and the sums of their counts."""
    pairs, counts = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    known = 0
    for key in keys:
        pair = key >> _COUNT_BITS
        if known == 0 or pairs[known - 1] != pair:
            pairs[known], counts[known] = pair, 0
            known += 1
        counts[known - 1] += key & ((1 << _COUNT_BITS) - 1)
    return pairs[:known], counts[:known]


def _mirrored(batch: pa.RecordBatch, canonical: np.ndarray) -> np.ndarray:
    """Entries of both triangles, folded (`ENTRY`); the diagonal once."""
    row, column = batch.column("row").to_numpy(), batch.column("column").to_numpy()
    count = batch.column("count").to_numpy()
    below = np.flatnonzero(row != column)
    found = np.empty(len(row) + len(below), ENTRY)
    found["row"] = canonical[np.concatenate([row, column[below]])]
    found["column"] = canonical[np.concatenate([column, row[below]])]
    found["count"] = np.concatenate([count, count[below]])
    return found[(found["row"] >= 0) & (found["column"] >= 0)]
