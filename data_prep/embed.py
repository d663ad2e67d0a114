"""Phrase vectors and phrase specificity from co-occurrence counts alone.

Vectors: positive pointwise mutual information, factorised by a truncated SVD (Levy, Goldberg and Dagan, "Improving
Distributional Similarity with Lessons Learned from Word Embeddings", TACL 2015). Counted across sources,
a phrase is its own context wherever two sources agree on it, and so are its synonyms where they differ: the rows of
"sofa" and "couch" peak at the same columns.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy.sparse
import scipy.sparse.linalg

from data_prep.schema import EmbeddingConfig

DENSE_LIMIT = 400  # phrases up to which the full eigenproblem is the faster one


def symmetric_counts(counts: pa.Table, canonical: np.ndarray) -> scipy.sparse.csr_matrix:
    """`COUNTS_SCHEMA` (upper triangle) as a symmetric `[P, P] int64` matrix with folded phrases added up.

    `canonical [P]` maps each phrase to the one it is a form of; rows of folded phrases are empty.
    """
    size = len(canonical)
    row, column = counts["row"].to_numpy(), counts["column"].to_numpy()
    upper = scipy.sparse.csr_matrix((counts["count"].to_numpy(), (row, column)), shape=(size, size))
    full = upper + upper.T - scipy.sparse.diags(upper.diagonal(), dtype=np.int64)
    ones = np.ones(size, np.int64)
    fold = scipy.sparse.csr_matrix((ones, (np.arange(size), canonical)), shape=(size, size))
    return scipy.sparse.csr_matrix(fold.T @ full @ fold)


def specificity(
    counts: scipy.sparse.csr_matrix, prior: float, prior_count: float = 5.0
) -> np.ndarray:
    """How far a phrase's contexts differ from everybody's: `[P] float64` in nats, at least 0.

    KL(contexts of p || contexts of all), less its expectation for a phrase whose contexts were drawn at random
    (Miller, 1955: (support - 1) / 2n), pulled towards `prior` by `prior_count` observations. What is said of anything
    ("free shipping", "my wishlist") is near 0.
    """
    total = np.asarray(counts.sum(axis=1), np.float64).ravel()
    background = total / max(total.sum(), 1.0)
    coo = counts.tocoo()
    share = coo.data / total[coo.row]
    terms = share * np.log(share / background[coo.col])
    divergence = np.bincount(coo.row, terms, minlength=len(total))
    support = np.bincount(coo.row, minlength=len(total))
    excess = np.maximum(divergence - np.maximum(support - 1, 0) / (2 * np.maximum(total, 1)), 0.0)
    return (excess * total + prior * prior_count) / (total + prior_count)


def ppmi(counts: scipy.sparse.csr_matrix, config: EmbeddingConfig) -> scipy.sparse.csr_matrix:
    """max(0, log(c_pq * N / (c_p * c_q)) - log(shift)) of symmetric counts, `[P, P] float64`.

    The context distribution is smoothed (c ** 0.75), the geometric mean of both sides keeps the matrix symmetric,
    and small counts are discounted by c / (c + 1) (Pantel and Lin, 2002).
    """
    total = np.asarray(counts.sum(axis=1), np.float64).ravel()
    smooth = total**config.context_smoothing
    p, q = total / max(total.sum(), 1.0), smooth / max(smooth.sum(), 1.0)
    coo = counts.tocoo()
    joint = coo.data / max(total.sum(), 1.0)
    expected = np.sqrt(p[coo.row] * q[coo.col] * q[coo.row] * p[coo.col])
    value = np.maximum(np.log(joint / expected) - np.log(config.shift), 0.0)
    value *= coo.data / (coo.data + 1.0)
    matrix = scipy.sparse.csr_matrix((value, (coo.row, coo.col)), shape=counts.shape)
    matrix.eliminate_zeros()
    return matrix


def embed_phrases(
    counts: scipy.sparse.csr_matrix, config: EmbeddingConfig, seed: int
) -> np.ndarray:
    """Unit vectors `[P, D] float32`, D at most `config.dimension`.

    A phrase without any context gets a random direction: far from everything, so it stays on its own.
    """
    matrix = ppmi(counts, config)
    vectors = factorise(matrix, min(config.dimension, matrix.shape[0]), config.singular_power)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Components that carry nothing are rounding errors of the factorisation.
    empty = np.flatnonzero(norms[:, 0] < 1e-6)
    generator = np.random.default_rng(seed)
    vectors[empty] = generator.standard_normal((len(empty), vectors.shape[1]))
    norms[empty] = np.linalg.norm(vectors[empty], axis=1, keepdims=True)
    return (vectors / norms).astype(np.float32)


def factorise(matrix: scipy.sparse.csr_matrix, dimension: int, power: float) -> np.ndarray:
    """U * S ** power of a symmetric matrix's `dimension` largest singular values, `[P, dimension]`.

    Of a symmetric matrix they are the eigenvalues of largest magnitude. Signs are fixed (largest entry positive) and
    the Lanczos iteration starts from a constant vector, so the result is a function of the input.
    """
    size = matrix.shape[0]
    if size <= DENSE_LIMIT or dimension >= size - 1:
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        start = np.ones(size) / np.sqrt(size)
        values, vectors = scipy.sparse.linalg.eigsh(matrix, k=dimension, which="LM", v0=start)
    order = np.argsort(-np.abs(values), kind="stable")[:dimension]
    values, vectors = np.abs(values[order]), vectors[:, order]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(len(largest))])
    return vectors * values**power
