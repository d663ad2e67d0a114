"""Phrase vectors and phrase specificity from co-occurrence counts alone.

Vectors: positive pointwise mutual information, factorised by a truncated SVD (Levy, Goldberg and Dagan, "Improving
Distributional Similarity with Lessons Learned from Word Embeddings", TACL 2015). Counted across sources,
a phrase is its own context wherever two sources agree on it, and so are its synonyms where they differ: the rows of
"sofa" and "couch" peak at the same columns. All of it reads and writes matrices row block by row block
(data_prep.cooccurrence).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from data_prep.cooccurrence import CsrFile, row_blocks
from data_prep.schema import EmbeddingConfig

DENSE_LIMIT = 400  # phrases up to which the full eigenproblem is the faster one
# Phrases from which the factors are found by products with blocks of vectors. Lanczos takes one vector at a time and
# holds twice as many.
BLOCK_LIMIT = 20_000
POWERS = 6  # products, each of which makes what is left out smaller by the ratio of its values to those kept
EXTRA = 32  # vectors beyond those wanted


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
    divergence = np.zeros(len(total))
    for start, block in row_blocks(counts):
        coo = block.tocoo()
        share = coo.data / total[start + coo.row]
        terms = share * np.log(share / background[coo.col])
        rows = slice(start, start + block.shape[0])
        divergence[rows] = np.bincount(coo.row, terms, minlength=block.shape[0])
    support = np.diff(counts.indptr)
    excess = np.maximum(divergence - np.maximum(support - 1, 0) / (2 * np.maximum(total, 1)), 0.0)
    return (excess * total + prior * prior_count) / (total + prior_count)


def ppmi(
    counts: scipy.sparse.csr_matrix, config: EmbeddingConfig, folder: Path
) -> scipy.sparse.csr_matrix:
    """max(0, log(c_pq * N / (c_p * c_q)) - log(shift)) of symmetric counts, `[P, P] float64`, mapped from `folder`.

    The context distribution is smoothed (c ** 0.75), the geometric mean of both sides keeps the matrix symmetric,
    and small counts are discounted by c / (c + 1) (Pantel and Lin, 2002).
    """
    total = np.asarray(counts.sum(axis=1), np.float64).ravel()
    smooth = total**config.context_smoothing
    p, q = total / max(total.sum(), 1.0), smooth / max(smooth.sum(), 1.0)
    matrix = CsrFile(folder, counts.shape[1], np.float64, counts.nnz)
    for start, block in row_blocks(counts):
        coo = block.tocoo()
        row = start + coo.row
        joint = coo.data / max(total.sum(), 1.0)
        expected = np.sqrt(p[row] * q[coo.col] * q[row] * p[coo.col])
        value = np.maximum(np.log(joint / expected) - np.log(config.shift), 0.0)
        value *= coo.data / (coo.data + 1.0)
        found = scipy.sparse.csr_matrix((value, (coo.row, coo.col)), shape=block.shape)
        found.eliminate_zeros()
        matrix.append(found)
    return matrix.finish()


def embed_phrases(
    counts: scipy.sparse.csr_matrix, config: EmbeddingConfig, seed: int, folder: Path
) -> np.ndarray:
    """Unit vectors `[P, D] float32`, D at most `config.dimension`, of the phrases with these `counts [P, P]`.

    A phrase without any context gets a random direction: far from everything, so it stays on its own.
    """
    matrix = ppmi(counts, config, folder)
    vectors = factorise(matrix, min(config.dimension, matrix.shape[0]), config.singular_power)
    # Components that carry nothing are rounding errors of the factorisation.
    return unit_vectors(vectors, np.linalg.norm(vectors, axis=1) >= 1e-6, seed)


def unit_vectors(vectors: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """Rows of `vectors [P, D]` at unit length, random directions where not `known [P]`: `[P, D] float32`."""
    vectors = vectors.copy()
    unknown = np.flatnonzero(~known)
    generator = np.random.default_rng(seed)
    vectors[unknown] = generator.standard_normal((len(unknown), vectors.shape[1]))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def factorise(matrix: scipy.sparse.csr_matrix, dimension: int, power: float) -> np.ndarray:
    """U * S ** power of a symmetric matrix's `dimension` largest singular values, `[P, dimension]`.

    Of a symmetric matrix they are the eigenvalues of largest magnitude. Signs are fixed (largest entry positive) and
    every iteration starts from constant vectors, so the result is a function of the input.
    """
    size = matrix.shape[0]
    if size <= DENSE_LIMIT or dimension >= size - 1:
        values, vectors = np.linalg.eigh(matrix.toarray())
    elif size <= BLOCK_LIMIT:
        start = np.ones(size) / np.sqrt(size)
        values, vectors = scipy.sparse.linalg.eigsh(matrix, k=dimension, which="LM", v0=start)
    else:
        values, vectors = subspace_eigh(matrix, dimension)
    order = np.argsort(-np.abs(values), kind="stable")[:dimension]
    values, vectors = np.abs(values[order]), vectors[:, order]
    largest = np.abs(vectors).argmax(axis=0)
    vectors *= np.sign(vectors[largest, np.arange(len(largest))])
    vectors *= values**power
    return vectors


def subspace_eigh(matrix: scipy.sparse.csr_matrix, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """About the `dimension` eigenvalues of largest magnitude and their vectors, by falling magnitude: `[D]`, `[P, D]`.

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.3) in float32. The matrix is
    read `POWERS` + 1 times, row block by row block; three arrays `[P, D + EXTRA] float32` are in memory.
    """
    shape = (matrix.shape[0], min(dimension + EXTRA, matrix.shape[0]))
    basis = np.random.default_rng(0).standard_normal(shape, np.float32)
    for _ in range(POWERS):
        basis = _orthonormal(_orthonormal(_product(matrix, basis)))
    small = basis.T @ _product(matrix, basis)
    values, rotation = np.linalg.eigh((small + small.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")[:dimension]
    return values[order], basis @ rotation[:, order]


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Columns of `vectors [P, k]` made orthonormal through their `[k, k]` products.

    A few times as fast as Householder's QR, and exact to rounding when done twice in a row (CholeskyQR2, Yamamoto et
    al., 2015). Directions that are no more than rounding errors become zero.
    """
    values, rotation = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    kept = values > values.max(initial=0.0) * 1e-7
    scale = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return vectors @ (rotation * scale).astype(np.float32)


def _product(matrix: scipy.sparse.csr_matrix, vectors: np.ndarray) -> np.ndarray:
    """`matrix @ vectors` in float32, one row block of the matrix in memory."""
    product = np.empty(vectors.shape, np.float32)
    for start, block in row_blocks(matrix):
        product[start : start + block.shape[0]] = block.astype(np.float32) @ vectors
    return product
