"""Which of the copies of an image stays, and which records must share their split: from pairs to decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse
from scipy.sparse.csgraph import connected_components

CANDIDATES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("characters", pa.int64()),  # of text
        ("pixels", pa.int64()),
    ]
)
DECISIONS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("copy_of", pa.string()),  # the record that stays in its place; null: it stays itself
        ("reason", pa.string()),  # of the rejects; null: it stays
        ("group", pa.string()),  # shares its split with
    ]
)


@dataclass(frozen=True)
class Pairs:
    """Copies by their positions among the candidates, `[n, 2] int64` each."""

    exact: np.ndarray
    near: np.ndarray


def decide(
    candidates: pa.Table, pairs: Pairs, leaks: Sequence[str | None], remove: bool
) -> pa.Table:
    """What becomes of each candidate (`DECISIONS_SCHEMA`), all of which have a copy somewhere.

    Of exact copies the one with the most text stays; then the one with the most pixels; then the first id. Of near
    copies likewise, but a record goes only if it is a copy of one that stays: A ~ B ~ C does not make C a copy of A.

    Args:
      candidates: `CANDIDATES_SCHEMA`, ids unique.
      leaks: name of the evaluation set that holds a copy of each candidate, or None.
    """
    count = candidates.num_rows
    ids = candidates["id"].to_pylist()
    rank = _ranks(candidates)
    by_rank = np.argsort(rank)
    exact = components(count, pairs.exact)
    best = np.full(count, -1, np.int64)  # of each set of exact copies
    best[exact[by_rank[::-1]]] = by_rank[::-1]
    stays = best[exact]
    leaked = _spread_leaks(exact, leaks)
    if remove:
        stays = _thin_out(stays, pairs.near, rank, [leaked[c] is not None for c in exact])
    reasons: list[str | None] = []
    for i in range(count):
        leak = leaked[exact[i]]
        if leak is not None:
            reasons.append(f"in evaluation set {leak}")
        elif remove and stays[i] != i:
            same = stays[i] == best[exact[i]]
            reasons.append("exact copy of another image" if same else "near copy of another image")
        else:
            reasons.append(None)
    copy_of = [
        ids[stays[i]] if r is not None and leaked[exact[i]] is None else None
        for i, r in enumerate(reasons)
    ]
    groups = join_groups(candidates["group"].to_pylist(), [pairs.exact, pairs.near])
    columns = [candidates["id"], pa.array(copy_of, pa.string()), pa.array(reasons, pa.string())]
    return pa.Table.from_arrays([*columns, pa.array(groups, pa.string())], schema=DECISIONS_SCHEMA)


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Number of the connected component of each of `count` nodes, `[count] int32`."""
    ones = np.ones(len(pairs), np.int8)
    graph = scipy.sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1]


def join_groups(groups: Sequence[str], pairs: Iterable[np.ndarray]) -> list[str]:
    """The first name among all groups that pairs link, for each candidate: copies never straddle two splits."""
    names = sorted(set(groups))
    place = {name: i for i, name in enumerate(names)}
    node = np.array([place[name] for name in groups], np.int64)
    linked = np.concatenate([node[p] for p in pairs])
    label = components(len(names), linked)
    first = np.full(len(names), len(names), np.int64)
    np.minimum.at(first, label, np.arange(len(names)))
    return [names[first[label[n]]] for n in node]


def _ranks(candidates: pa.Table) -> np.ndarray:
    """`[n]`: 0 for the candidate that every other one gives way to."""
    order = candidates.append_column("row", pa.array(np.arange(candidates.num_rows))).sort_by(
        [("characters", "descending"), ("pixels", "descending"), ("id", "ascending")]
    )["row"]
    rank = np.empty(candidates.num_rows, np.int64)
    rank[order.to_numpy()] = np.arange(candidates.num_rows)
    return rank


def _spread_leaks(exact: np.ndarray, leaks: Sequence[str | None]) -> dict[int, str | None]:
    """The evaluation set of each set of exact copies, which leak together."""
    found: dict[int, str | None] = {}
    for label, leak in zip(exact.tolist(), leaks, strict=True):
        found[label] = found.get(label) or leak
    return found


def _thin_out(
    stays: np.ndarray, near: np.ndarray, rank: np.ndarray, gone: Sequence[bool]
) -> np.ndarray:
    """Greedily, best first: a record stays unless a near copy of it stays already. Returns who stays for each."""
    neighbours: dict[int, set[int]] = {}
    for a, b in stays[near].tolist():
        if a != b and not gone[a] and not gone[b]:
            neighbours.setdefault(a, set()).add(b)
            neighbours.setdefault(b, set()).add(a)
    keeper: dict[int, int] = {}
    for node in sorted(neighbours, key=rank.__getitem__):
        kept = [n for n in neighbours[node] if keeper.get(n) == n]
        keeper[node] = min(kept, key=rank.__getitem__) if kept else node
    return np.array([keeper.get(int(s), int(s)) for s in stays], np.int64)
