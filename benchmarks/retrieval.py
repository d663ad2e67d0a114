"""ScaNN against the exact search: recall@10 and queries/s of both, one JSON line.

    python benchmarks/retrieval.py [--size 50000] [--dim 128] [--queries 2000]

Clustered unit vectors, queries drawn from the same clusters; one run, all cores for both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from vitscale.evals.index import ExactIndex, Index, ScannIndex, recall_against_exact
from vitscale.evals.probes import l2_normalise

T = TypeVar("T")
NEIGHBOURS = 10


def clustered_vectors(
    size: int, dim: int, queries: int, *, per_cluster: int = 50, spread: float = 0.7, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[size, dim]` around random centres, and queries of the same."""
    rng = np.random.default_rng(seed)
    centres = l2_normalise(rng.standard_normal((max(size // per_cluster, 1), dim)))

    def draw(count: int) -> np.ndarray:
        noise = l2_normalise(rng.standard_normal((count, dim)))
        return l2_normalise(centres[rng.integers(len(centres), size=count)] + spread * noise)

    return draw(size), draw(queries)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The function's result and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def measure(size: int, dim: int, num_queries: int) -> dict[str, float | int]:
    vectors, queries = clustered_vectors(size, dim, num_queries)
    ids = [str(row) for row in range(size)]
    exact: Index
    exact, _ = timed(lambda: ExactIndex(ids, vectors))
    scann, build_seconds = timed(lambda: ScannIndex(ids, vectors))
    exact.search(queries[:1], NEIGHBOURS)  # compilation
    scann.search(queries[:64], NEIGHBOURS)
    truth, exact_seconds = timed(lambda: exact.search(queries, NEIGHBOURS))
    found, scann_seconds = timed(lambda: scann.search(queries, NEIGHBOURS))
    return {
        "size": size,
        "dim": dim,
        "queries": num_queries,
        "scann_recall@10": round(float(recall_against_exact(*found, *truth).mean()), 4),
        "scann_build_seconds": round(build_seconds, 2),
        "scann_qps": round(num_queries / scann_seconds),
        "exact_qps": round(num_queries / exact_seconds),
        "scann_over_exact": round(exact_seconds / scann_seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=2_000)
    args = parser.parse_args()
    result = measure(args.size, args.dim, args.queries)
    print(json.dumps({"benchmark": "retrieval", **result}))


if __name__ == "__main__":
    main()
