"""Finds every vocabulary phrase in every text, on word boundaries: a trie over word ids, walked by compiled code.

The trie is one open-addressed hash table from (node, word) to the next node, so a step costs one look-up in memory
however large the vocabulary is. Words and edges are compared whole, never by their hash alone: matches are exact.
Compiled by numba on first use and cached on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.compiled import FREE, compiled, slot_of
from data_prep.spellings import Spellings

# A table entry is a row of three: node << 32 | word (or FREE), next node or LEAF, phrase that ends there or NO_PHRASE.
LEAF = np.int64(-1)
NO_PHRASE = np.int64(-1)


@dataclass(frozen=True)
class SourceSums:
    """What H (group of texts, phrase) pairs come to; by group and phrase."""

    group: np.ndarray  # [H] int64
    phrase: np.ndarray  # [H] int32
    support: np.ndarray  # [H] float32, at most 1: share of the group's weight
    count: np.ndarray  # [H] int32: occurrences
    position: np.ndarray  # [H] int32: words before the phrase in the text where it comes earliest
    weight: np.ndarray  # [H] float32: weight of the texts that hold it


@dataclass(frozen=True)
class PhraseTrie:
    """P phrases by their W words. Nodes are numbered from 0, the root."""

    words: tuple[str, ...]  # [W]
    spellings: Spellings  # of every word and of every accepted misspelling of one
    first: np.ndarray  # [W, 2] int64: node and phrase after the first word, by word id
    edges: np.ndarray  # [C, 3] int64, C a power of two: the hash table of the other words

    @staticmethod
    def build(phrases: Sequence[str], misspellings: Mapping[str, str] | None = None) -> PhraseTrie:
        """The trie of `phrases` (words joined by one space); phrase ids are positions in it."""
        split = [phrase.split(" ") for phrase in phrases]
        words = {word: i for i, word in enumerate(dict.fromkeys(w for p in split for w in p))}
        lengths = np.fromiter(map(len, split), np.int64, len(split))
        flat = np.fromiter((words[w] for p in split for w in p), np.int64, int(lengths.sum()))
        nodes, keys, ends = _number_nodes(flat, lengths)
        is_parent = np.zeros(nodes, bool)
        is_parent[keys >> 32] = True
        after = np.where(is_parent[1:], np.arange(1, nodes), LEAF)
        first = np.full((len(words), 2), -1, np.int64)
        is_first = keys < 1 << 32
        first[keys[is_first]] = np.stack([after, ends], axis=1)[is_first]
        rest = ~is_first
        edges = _hash_edges(keys[rest], after[rest], ends[rest])
        folded = {k: words[v] for k, v in (misspellings or {}).items() if v in words}
        return PhraseTrie(tuple(words), Spellings.build(folded | words), first, edges)

    def encode(self, words: pa.Array) -> np.ndarray:
        """Word ids `[T] int64` of words `[T]`, -1 for the unknown."""
        return self.spellings.look_up(words)


def find_phrases(
    words: pa.Array, offsets: np.ndarray, trie: PhraseTrie, overlap: Literal["longest", "all"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All phrases in texts given as one run of words `[T]` with `offsets [n + 1] int64`.

    Returns start position, length in words and phrase id of each match, `[M] int64`, by position, then by length. With
    `overlap="longest"` a match that lies within a longer one is left out; others may overlap.
    """
    return find_ids(trie.encode(words), offsets, trie, overlap)


def find_ids(
    ids: np.ndarray, offsets: np.ndarray, trie: PhraseTrie, overlap: Literal["longest", "all"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`find_phrases` of encoded words `[T] int64`."""
    found = _find(ids, offsets.astype(np.int64), trie.first, trie.edges, overlap == "longest")
    return found[0], found[1], found[2]


def prefixes_of_length(
    ids: np.ndarray, offsets: np.ndarray, trie: PhraseTrie, length: int
) -> np.ndarray:
    """Id of the phrase of exactly `length` words that starts at each word, or -1: `[T] int64`."""
    start, lengths, phrase = find_ids(ids, offsets, trie, "all")
    at = np.full(len(ids), NO_PHRASE, np.int64)
    at[start[lengths == length]] = phrase[lengths == length]
    return at


def sum_by_source(
    phrase: np.ndarray,
    start: np.ndarray,
    offsets: np.ndarray,
    weight: np.ndarray,
    group: np.ndarray,
    divisor: np.ndarray,
) -> SourceSums:
    """Each phrase in each group of texts. A text's weight counts once, however often it repeats the phrase.

    Args:
      phrase, start: `[M] int64`: of each match, ascending by start.
      offsets: `[N + 1] int64`: of the texts' words.
      weight, group: `[N]` float64, int64: of each text; groups 0, 1, 2, ... ascend.
      divisor: `[G] float64`: what a group's weights are divided by.
    """
    return SourceSums(*_sum_by_source(phrase, start, offsets, weight, group, divisor))


def list_offsets(lists: pa.ListArray) -> np.ndarray:
    """Offsets `[n + 1] int64` of a list column into its `flatten()`; null lists are empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def words_left(offsets: np.ndarray) -> np.ndarray:
    """`[T]`: words from each position to the end of its text, for texts with `offsets [n + 1]`."""
    return np.repeat(offsets[1:], np.diff(offsets)) - np.arange(offsets[-1])


def _number_nodes(flat: np.ndarray, lengths: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of nodes, and of node 1, 2, ...: parent << 32 | word, and the phrase that ends there or -1.

    Level by level: the same prefix of two phrases is the same (parent, word), which `unique` joins.
    """
    offsets = np.cumsum(lengths) - lengths
    node = np.zeros(len(lengths), np.int64)
    alive = np.arange(len(lengths))
    keys, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    nodes = 1
    for level in range(int(lengths.max(initial=0))):
        alive = alive[lengths[alive] > level]
        key, inverse = np.unique(
            node[alive] << 32 | flat[offsets[alive] + level], return_inverse=True
        )
        node[alive] = nodes + inverse
        last = lengths[alive] == level + 1
        end = np.full(len(key), NO_PHRASE, np.int64)
        end[inverse[last]] = alive[last]
        keys.append(key)
        ends.append(end)
        nodes += len(key)
    return nodes, np.concatenate(keys), np.concatenate(ends)


def _hash_edges(keys: np.ndarray, after: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The table `[C, 3]`, at most half full."""
    capacity = 1 << max(2 * len(keys), 2).bit_length()
    table = np.full((capacity, 3), FREE, np.int64)
    _insert(table, keys, after, ends)
    return table


@compiled
def _insert(table: np.ndarray, keys: np.ndarray, after: np.ndarray, ends: np.ndarray) -> None:
    mask = len(table) - 1
    for i in range(len(keys)):
        slot = slot_of(keys[i], mask)
        while table[slot, 0] != FREE:
            slot = (slot + 1) & mask
        table[slot, 0] = keys[i]
        table[slot, 1] = after[i]
        table[slot, 2] = ends[i]


@compiled
def _find(
    ids: np.ndarray, offsets: np.ndarray, first: np.ndarray, edges: np.ndarray, longest: bool
) -> np.ndarray:
    """Start, length and phrase of each match, `[3, M] int64`."""
    mask = len(edges) - 1
    out = np.empty((3, max(len(ids), 16)), np.int64)
    count = 0
    for text in range(len(offsets) - 1):
        stop = offsets[text + 1]
        reach = -1  # where the matches before this position end at most
        for start in range(offsets[text], stop):
            if ids[start] < 0:
                continue
            node, phrase = first[ids[start], 0], first[ids[start], 1]
            position = start + 1
            best, best_end = NO_PHRASE, start
            while True:
                if phrase != NO_PHRASE:
                    if longest:
                        best, best_end = phrase, position
                    else:
                        if count == out.shape[1]:
                            out = _grown(out)
                        out[0, count], out[1, count], out[2, count] = (
                            start,
                            position - start,
                            phrase,
                        )
                        count += 1
                if node == LEAF or position == stop or ids[position] < 0:
                    break
                key = node << 32 | ids[position]
                slot = slot_of(key, mask)
                while edges[slot, 0] != key and edges[slot, 0] != FREE:
                    slot = (slot + 1) & mask
                if edges[slot, 0] == FREE:
                    break
                node, phrase = edges[slot, 1], edges[slot, 2]
                position += 1
            # Of the matches from one start only the longest can be within no other, and it is within one from an
            # earlier start exactly when one of those ends no earlier.
            if best != NO_PHRASE and best_end > reach:
                reach = best_end
                out[0, count], out[1, count], out[2, count] = start, best_end - start, best
                count += 1
    return out[:, :count]


@compiled
def _grown(out: np.ndarray) -> np.ndarray:
    larger = np.empty((out.shape[0], 2 * out.shape[1]), out.dtype)
    larger[:, : out.shape[1]] = out
    return larger


@compiled
def _sum_by_source(
    phrase: np.ndarray,
    start: np.ndarray,
    offsets: np.ndarray,
    weight: np.ndarray,
    group: np.ndarray,
    divisor: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    text = np.empty(len(phrase), np.int64)
    groups = np.empty(len(phrase), np.int64)
    found = np.empty(len(phrase), np.int32)
    support = np.empty(len(phrase), np.float32)
    times = np.empty(len(phrase), np.int32)
    position = np.empty(len(phrase), np.int32)
    held = np.empty(len(phrase), np.float32)
    count, begin, current = 0, 0, 0
    while begin < len(phrase):
        end = begin
        key = np.int64(-1)
        while end < len(phrase):
            while offsets[current + 1] <= start[end]:
                current += 1
            if key >= 0 and group[current] != key:
                break
            key = group[current]
            text[end] = current
            end += 1
        order = _order(phrase[begin:end])
        i = 0
        while i < len(order):
            same = phrase[begin + order[i]]
            total, last, opening = 0.0, np.int64(-1), i
            earliest = start[begin + order[i]] - offsets[text[begin + order[i]]]
            while i < len(order) and phrase[begin + order[i]] == same:
                at = text[begin + order[i]]
                if at != last:
                    total += weight[at]
                    # A text's matches ascend: its first one is its earliest.
                    earliest = min(earliest, start[begin + order[i]] - offsets[at])
                last = at
                i += 1
            groups[count], found[count] = key, same
            support[count] = min(total / divisor[key], 1.0)
            times[count], position[count], held[count] = i - opening, earliest, total
            count += 1
        begin = end
    return (
        groups[:count],
        found[:count],
        support[:count],
        times[:count],
        position[:count],
        held[:count],
    )


@compiled
def _order(phrase: np.ndarray) -> np.ndarray:
    """Indices by phrase in a stable order: a group's texts ascend already."""
    if len(phrase) > 64:
        return np.argsort(phrase, kind="mergesort")
    order = np.arange(len(phrase))
    for i in range(1, len(order)):
        moved = order[i]
        j = i
        while j > 0 and phrase[order[j - 1]] > phrase[moved]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = moved
    return order
