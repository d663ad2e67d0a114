"""Counting pairs against plain loops, and the block factorisation against the full eigenproblem."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cooccurrence import count_pairs
from data_prep.embed import subspace_eigh

HITS = st.sets(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([0, 1, 2, 63, 64, 127]),
        st.sampled_from([0, 1, 5, 2**23]),
    )
)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    one = np.zeros(1, np.int64)
    count_pairs(one, one, one, across=True)


@given(HITS, st.booleans())
def test_pairs_are_those_of_plain_loops(hits: set[tuple[int, int, int]], across: bool) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for (record, source, phrase), (other_record, other_source, other) in product(hits, hits):
        if record != other_record or phrase > other or (across and source == other_source):
            continue
        if across:
            expected[phrase, other] += 1
    if not across:
        held = {(record, phrase) for record, _, phrase in hits}
        expected.update((p, q) for (r, p), (s, q) in product(held, held) if r == s and p < q)
    columns = np.array(sorted(hits), np.int64).reshape(-1, 3).T
    row, column, count = count_pairs(*(np.ascontiguousarray(c) for c in columns), across=across)
    found = list(zip(row.tolist(), column.tolist(), count.tolist(), strict=True))
    assert found == sorted((p, q, n) for (p, q), n in expected.items())


@settings(deadline=None, max_examples=2)
@given(st.integers(0, 100))
def test_the_subspace_holds_the_largest_eigenvectors(seed: int) -> None:
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((300, 300)))[0]
    values = np.where(np.arange(300) % 2, -1.0, 1.0) * 0.8 ** np.arange(300)
    dense = (basis * values) @ basis.T
    found, vectors = subspace_eigh(scipy.sparse.csr_matrix(dense), 12)
    np.testing.assert_allclose(found, values[:12], atol=1e-4)
    np.testing.assert_allclose(np.abs((vectors * basis[:, :12]).sum(axis=0)), 1.0, atol=1e-3)


def test_a_matrix_of_lower_rank_has_no_directions_beyond_it() -> None:
    low = np.zeros((200, 200))
    low[:3, :3] = np.diag([3.0, -2.0, 1.0])
    values, vectors = subspace_eigh(scipy.sparse.csr_matrix(low), 8)
    np.testing.assert_allclose(values[:3], [3.0, -2.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(values[3:], 0.0, atol=1e-5)
    assert np.isfinite(vectors).all()
