"""A person's corrections of the clusters: a CSV that `vitscale prep` writes as a template and reads when reviewed.

    cluster_id, name, records, phrases, action, argument, new_name

A row is a cluster; `phrases` (separated by "|", most frequent first) say which, so that a review still applies to a
later run whose clusters have moved: a row means the cluster that holds the most of its phrases. The reviewer fills in

    action    argument
    block     -                                the cluster becomes no label
    merge     a cluster_id of this file        the two become one
    split     "sofa|couch; armchair|recliner"  one cluster a group; phrases left out join the group nearest to them
    (empty)   -                                the cluster stays

and, where the name is bad, `new_name`.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vitscale.errors import UserError

log = logging.getLogger("vitscale.prep")
COLUMNS = ("cluster_id", "name", "records", "phrases", "action", "argument", "new_name")
SEPARATOR, GROUP_SEPARATOR = "|", ";"
PHRASES_LISTED = 50
Action = Literal["", "block", "merge", "split"]


@dataclass(frozen=True)
class ReviewRow:
    """One reviewed cluster; `into` holds the phrases of the cluster to merge into, `groups` those of a split."""

    line: int
    phrases: tuple[str, ...]
    action: Action
    into: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    new_name: str


@dataclass(frozen=True)
class Reviewed:
    """Clusters after a review: `assignment [P] int32` numbers them anew, the others are by those numbers."""

    assignment: np.ndarray
    blocked: frozenset[int]
    names: Mapping[int, str]
    unmatched: int  # rows none of whose phrases this run has


def write_template(path: Path, rows: Iterable[tuple[int, str, int, Sequence[str]]]) -> None:
    """Writes clusters (id, name, records, phrases by falling frequency) for a reviewer."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for cluster_id, name, records, phrases in rows:
            listed = SEPARATOR.join(phrases[:PHRASES_LISTED])
            writer.writerow([cluster_id, name, records, listed, "", "", ""])
    temporary.rename(path)


def read_review(path: Path) -> list[ReviewRow]:
    """The rows that ask for something."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"clusters.review {path} cannot be read: {error}.") from error
    missing = sorted(set(COLUMNS) - set(table[0] if table else COLUMNS))
    if missing:
        raise UserError(f"clusters.review {path} has no column {missing[0]!r}.")
    phrases = {(row["cluster_id"] or "").strip(): _split(row["phrases"]) for row in table}
    rows = [_read_row(path, line, row, phrases) for line, row in enumerate(table, 2)]
    return [row for row in rows if row.action or row.new_name]


def apply_review(
    rows: Sequence[ReviewRow],
    phrases: Sequence[str],
    vectors: np.ndarray,
    assignment: np.ndarray,
) -> Reviewed:
    """Splits, then merges, then blocks and renames.

    Args:
      phrases: `[P]`, with unit `vectors [P, D]` and cluster numbers `assignment [P]`.
    """
    place = {phrase: i for i, phrase in enumerate(phrases)}
    current = assignment.astype(np.int64).copy()
    unmatched = 0
    # Found before anything moves: a row speaks of the clusters as they were.
    found = [_majority(row.phrases, place, current) for row in rows]
    targets = [_majority(row.into, place, current) for row in rows]
    for row, cluster in zip(rows, found, strict=True):
        if cluster is None:
            unmatched += 1
            log.warning("clusters.review, line %d: no phrase of it is in this run", row.line)
        elif row.action == "split":
            _split_cluster(row.groups, cluster, place, vectors, current)
    parent = np.arange(int(current.max(initial=-1)) + 1)
    for row, cluster, target in zip(rows, found, targets, strict=True):
        if row.action == "merge" and cluster is not None:
            if target is None:
                unmatched += 1
                log.warning("clusters.review, line %d: no phrase of its target is here", row.line)
            else:
                parent[_root(parent, cluster)] = _root(parent, target)
    roots = np.array([_root(parent, c) for c in range(len(parent))], np.int64)
    kept, number = np.unique(roots[current], return_inverse=True)
    where = {int(cluster): i for i, cluster in enumerate(kept)}
    blocked: set[int] = set()
    names: dict[int, str] = {}
    for row, cluster in zip(rows, found, strict=True):
        if cluster is None:
            continue
        final = where[int(roots[cluster])]
        if row.action == "block":
            blocked.add(final)
        if row.new_name:
            names[final] = row.new_name
    return Reviewed(number.astype(np.int32), frozenset(blocked), names, unmatched)


def _read_row(
    path: Path, number: int, row: Mapping[str, str], phrases: Mapping[str, tuple[str, ...]]
) -> ReviewRow:
    text = {name: (row.get(name) or "").strip() for name in COLUMNS}
    action, argument = text["action"].lower(), text["argument"]
    where = f"clusters.review {path}, line {number}"
    groups = tuple(_split(group) for group in argument.split(GROUP_SEPARATOR) if _split(group))
    match action:
        case "" | "block":
            return ReviewRow(number, _split(text["phrases"]), action, (), (), text["new_name"])
        case "merge":
            if argument not in phrases or argument == text["cluster_id"]:
                raise UserError(
                    f"{where}: merge into {argument!r}, which is no other cluster_id here."
                )
            into = phrases[argument]
            return ReviewRow(number, _split(text["phrases"]), action, into, (), text["new_name"])
        case "split":
            if len(groups) < 2:
                raise UserError(
                    f"{where}: split needs two or more groups, such as 'sofa|couch; armchair'."
                )
            return ReviewRow(number, _split(text["phrases"]), action, (), groups, text["new_name"])
    raise UserError(f"{where}: action {action!r} is not block, merge, split or empty.")


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(SEPARATOR) if part.strip())


def _majority(phrases: Sequence[str], place: Mapping[str, int], current: np.ndarray) -> int | None:
    """The cluster that holds the most of `phrases`, of equals the one of the first; None for none."""
    clusters = [int(current[place[phrase]]) for phrase in phrases if phrase in place]
    return max(clusters, key=clusters.count) if clusters else None


def _split_cluster(
    groups: Sequence[Sequence[str]],
    cluster: int,
    place: Mapping[str, int],
    vectors: np.ndarray,
    current: np.ndarray,
) -> None:
    """Moves the phrases of all groups but the first to clusters of their own, in `current`."""
    members = np.flatnonzero(current == cluster)
    inside = set(members.tolist())
    listed = [[place[p] for p in group if place.get(p) in inside] for group in groups]
    listed = [group for group in listed if group]
    if len(listed) < 2:
        return
    centres = np.stack([vectors[group].mean(axis=0) for group in listed])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    group_of = (vectors[members] @ centres.T).argmax(axis=1)
    for index, group in enumerate(listed):
        group_of[np.isin(members, group)] = index
    numbers = np.concatenate([[cluster], current.max() + 1 + np.arange(len(listed) - 1)])
    current[members] = numbers[group_of]


def _root(parent: np.ndarray, cluster: int) -> int:
    while parent[cluster] != cluster:
        cluster = int(parent[cluster])
    return cluster
