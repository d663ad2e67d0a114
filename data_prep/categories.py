"""How evenly a phrase is spread over the catalogue's categories: "new" is said of everything, "settee" is not.

With n_c records of category c that hold the phrase, n = sum n_c, p_c = n_c / n, and q_c the share of all records that
are of category c,

    entropy = H(p) / -sum_c p_c log q_c

is 1 exactly when the phrase is spread as the corpus is (Gibbs' inequality), and 0 when one category has it all. Counted
naively, H(p) is too low for a rare phrase, which has no room to be everywhere; it is estimated after Chao and Shen
(2003): the categories that were not met are made up for by those met once. The denominator is linear in p, so that its
naive estimate has no such bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import scipy.sparse

from vitscale.errors import UserError

CATEGORY_COUNTS_SCHEMA = pa.schema([("category", pa.string()), ("count", pa.int64())])
PHRASE_CATEGORIES_SCHEMA = pa.schema(
    [("phrase_id", pa.int32()), ("category", pa.int32()), ("count", pa.int64())]
)
MAX_CATEGORIES = 65_536  # more are no categories but names
LEAST_RECORDS = 2  # one record is in one category, which says nothing
PASS_ENTRIES = 8_000_000  # counts in memory at once, about 0.5 GB


def count_categories(records: pa.RecordBatch) -> pa.RecordBatch:
    """Records of each category (`CATEGORY_COUNTS_SCHEMA`); null is none."""
    counts = records.column("category").drop_null().value_counts()
    arrays = [counts.field("values"), counts.field("counts")]
    return pa.RecordBatch.from_arrays(arrays, schema=CATEGORY_COUNTS_SCHEMA)


def check_categories(counts: pa.Table, field: str) -> None:
    """`UserError` where the field's values do not divide the corpus."""
    if counts.num_rows < 2 or counts.num_rows > MAX_CATEGORIES:
        raise UserError(
            f"category_field {field!r} has {counts.num_rows} values in the input; entropy needs 2 to "
            f"{MAX_CATEGORIES}: name a field such as a department, or leave it empty."
        )


def category_codes(categories: pa.Array, known: pa.Array) -> np.ndarray:
    """Positions `[n] int32` of records' categories among the `known`, -1 for none."""
    return pa.compute.fill_null(pa.compute.index_in(categories, known), -1).to_numpy()


def count_phrase_categories(hits: pa.RecordBatch, codes: np.ndarray) -> pa.RecordBatch:
    """In how many records of each category a phrase is (`PHRASE_CATEGORIES_SCHEMA`).

    Args:
      hits: `HITS_SCHEMA`.
      codes: `[n] int32`: category of each record of the batch, or -1.
    """
    record = hits.column("record").to_numpy().astype(np.int64)
    pairs = np.unique(record << 32 | hits.column("phrase_id").to_numpy())  # each once, all sources
    code = codes[pairs >> 32].astype(np.int64)
    keys = ((pairs & 0xFFFFFFFF) << 32 | code)[code >= 0]
    key, count = np.unique(keys, return_counts=True)
    arrays = [pa.array(key >> 32, pa.int32()), pa.array(key & 0xFFFFFFFF, pa.int32())]
    return pa.RecordBatch.from_arrays(
        [*arrays, pa.array(count, pa.int64())], schema=PHRASE_CATEGORIES_SCHEMA
    )


def category_entropy(
    read: Callable[[], Iterable[pa.RecordBatch]],
    corpus: np.ndarray,
    canonical: np.ndarray,
    *,
    pass_entries: int = PASS_ENTRIES,
) -> np.ndarray:
    """Entropy of each phrase, `[P] float64` in 0..1, formula above; NaN where too few records tell.

    Args:
      read: `PHRASE_CATEGORIES_SCHEMA` batches, from the first each time it is called.
      corpus: `[C] int64`: records of each category.
      canonical: `[P] int`: the phrase that each is a form of; forms have the value of their phrase.
    """
    entries = sum(batch.num_rows for batch in read())
    passes = -(-entries // pass_entries)
    size = len(canonical)
    found = np.full(size, np.nan)
    log_share = np.log(np.maximum(corpus, 1) / max(corpus.sum(), 1))
    for index in range(passes):
        # Folded phrases first, so that all forms of a phrase fall into one pass.
        chosen = [_of_pass(batch, canonical, index, passes) for batch in read()]
        row, column, count = (np.concatenate([part[i] for part in chosen]) for i in range(3))
        rows, place = np.unique(row, return_inverse=True)
        shape = (len(rows), len(corpus))
        counts = scipy.sparse.csr_matrix((count, (place, column)), shape=shape)
        found[rows] = _entropy(counts, log_share)
    return found[canonical]


def _of_pass(
    batch: pa.RecordBatch, canonical: np.ndarray, index: int, passes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = canonical[batch.column("phrase_id").to_numpy()]
    chosen = row % passes == index
    column, count = batch.column("category").to_numpy(), batch.column("count").to_numpy()
    return row[chosen], column[chosen], count[chosen]


def _entropy(counts: scipy.sparse.csr_matrix, log_share: np.ndarray) -> np.ndarray:
    """Entropy over cross-entropy of each row of `[n, C]` counts, `[n] float64`."""
    rows = counts.shape[0]
    row = np.repeat(np.arange(rows), np.diff(counts.indptr))
    amount = counts.data.astype(np.float64)
    total = np.bincount(row, amount, minlength=rows)
    once = np.bincount(row, amount == 1, minlength=rows)
    # All met once: the coverage would be nothing, and Chao and Shen count one of them as met twice.
    once = np.where(once == total, total - 1, once)
    coverage = 1.0 - once / np.maximum(total, 1)
    share = coverage[row] * amount / total[row]
    with np.errstate(divide="ignore"):  # log(0) of a phrase with one category
        met = -np.expm1(total[row] * np.log1p(-np.minimum(share, 1.0)))
    entropy = np.bincount(row, -share * np.log(share) / met, minlength=rows)
    cross = np.bincount(row, -amount / total[row] * log_share[counts.indices], minlength=rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.clip(entropy / cross, 0.0, 1.0)
    return np.where(total >= LEAST_RECORDS, value, np.nan)
