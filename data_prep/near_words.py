"""Words that are an edit or two from a more frequent word: SymSpell's index of deletions (Garbe, 2012), compiled.

Two words at an edit distance of d share a string that is left when up to d letters are deleted from each. The targets'
deletions are kept as hashes in a table; what shares one is a candidate, and the edit distance itself decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.compiled import compiled

# Letters of a word that is looked up: a word of n has n * n / 2 spellings with two letters deleted, and a text of
# megabytes can be one word.
MAX_SPELLED = 40
NOBODY = np.int64(-1)


@dataclass(frozen=True)
class WordList:
    """n words of at most `MAX_SPELLED` letters."""

    letters: np.ndarray  # [n, MAX_SPELLED] uint32 code points, 0 behind the end
    lengths: np.ndarray  # [n] int64
    counts: np.ndarray  # [n] int64: how frequent each is
    edits: np.ndarray  # [n] int64: how many edits it may be away; 0: it is not looked at


def word_list(words: np.ndarray, counts: np.ndarray, edits: np.ndarray) -> WordList:
    """From words `[n]`, an array of strings."""
    fixed = np.ascontiguousarray(words.astype(f"U{MAX_SPELLED}"))
    letters = fixed.view(np.uint32).reshape(len(words), MAX_SPELLED)
    lengths = np.strings.str_len(fixed).astype(np.int64)
    return WordList(letters, lengths, counts.astype(np.int64), edits.astype(np.int64))


def nearest_words(forms: WordList, targets: WordList, ratio: float) -> np.ndarray:
    """Position of each form's target `[n] int64`, or -1.

    The nearest in edit distance (insertions, deletions, substitutions, swaps of neighbours), then the most frequent,
    then the first, of the targets that are `ratio` times as frequent as the form; within the edits that both allow. A
    word is no target of its plural, nor of its singular.
    """
    if not len(forms.lengths) or not len(targets.lengths):
        return np.full(len(forms.lengths), NOBODY)
    sizes = _deletions_of(targets.lengths, targets.edits)
    buckets = 1 << int(max(sizes.sum() // 2, 1)).bit_length()
    offsets, tags, owner = _index(targets.letters, targets.lengths, targets.edits, buckets)
    return _nearest(
        *(forms.letters, forms.lengths, forms.counts, forms.edits),
        *(targets.letters, targets.lengths, targets.counts, targets.edits),
        *(offsets, tags, owner, float(ratio)),
    )


def _deletions_of(lengths: np.ndarray, edits: np.ndarray) -> np.ndarray:
    """How many strings are left when up to `edits` letters go, duplicates included."""
    return np.where(edits > 0, 1 + lengths, 0) + np.where(
        edits > 1, lengths * (lengths - 1) // 2, 0
    )


@compiled
def _hash(letters: np.ndarray, length: int, skip: int, other: int) -> np.uint64:
    """FNV-1a of the letters, without those at `skip < other`; -1 for none."""
    mixed = np.uint64(0xCBF29CE484222325)
    for i in range(length):
        if i != skip and i != other:
            mixed = (mixed ^ np.uint64(letters[i])) * np.uint64(0x100000001B3)
    return mixed ^ (mixed >> np.uint64(29))


@compiled
def _hashes(letters: np.ndarray, length: int, edits: int, out: np.ndarray) -> int:
    """Hashes of everything that deleting up to `edits` letters makes of a word, and their number."""
    out[0] = _hash(letters, length, -1, -1)
    count = 1
    for i in range(length):
        out[count] = _hash(letters, length, i, -1)
        count += 1
        if edits > 1:
            for j in range(i + 1, length):
                out[count] = _hash(letters, length, i, j)
                count += 1
    return count


@compiled
def _index(
    letters: np.ndarray, lengths: np.ndarray, edits: np.ndarray, buckets: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash table of all deletions: bounds of each bucket, and of each entry a tag and its word."""
    mask = np.uint64(buckets - 1)
    scratch = np.empty(1 + letters.shape[1] * letters.shape[1], np.uint64)
    ends = np.zeros(buckets + 1, np.int64)
    for word in range(len(lengths)):
        if edits[word] > 0:
            for i in range(_hashes(letters[word], lengths[word], edits[word], scratch)):
                ends[np.int64(scratch[i] & mask) + 1] += 1
    for i in range(buckets):
        ends[i + 1] += ends[i]
    tags = np.empty(ends[buckets], np.uint32)
    owner = np.empty(ends[buckets], np.int32)
    place = ends[:-1].copy()
    for word in range(len(lengths)):
        if edits[word] > 0:
            for i in range(_hashes(letters[word], lengths[word], edits[word], scratch)):
                bucket = np.int64(scratch[i] & mask)
                tags[place[bucket]] = np.uint32(scratch[i] >> np.uint64(32))
                owner[place[bucket]] = word
                place[bucket] += 1
    return ends, tags, owner


@compiled
def _nearest(
    letters: np.ndarray,
    lengths: np.ndarray,
    counts: np.ndarray,
    edits: np.ndarray,
    target_letters: np.ndarray,
    target_lengths: np.ndarray,
    target_counts: np.ndarray,
    target_edits: np.ndarray,
    offsets: np.ndarray,
    tags: np.ndarray,
    owner: np.ndarray,
    ratio: float,
) -> np.ndarray:
    mask = np.uint64(len(offsets) - 2)
    scratch = np.empty(1 + letters.shape[1] * letters.shape[1], np.uint64)
    rows = np.empty((3, letters.shape[1] + 1), np.int64)
    found = np.full(len(lengths), NOBODY)
    for form in range(len(lengths)):
        if edits[form] <= 0:
            continue
        best, best_distance = NOBODY, 99
        for i in range(_hashes(letters[form], lengths[form], edits[form], scratch)):
            bucket = np.int64(scratch[i] & mask)
            tag = np.uint32(scratch[i] >> np.uint64(32))
            for entry in range(offsets[bucket], offsets[bucket + 1]):
                target = np.int64(owner[entry])
                if tags[entry] != tag or target == best:
                    continue
                if target_counts[target] < ratio * counts[form]:
                    continue
                a, b = letters[form], target_letters[target]
                n, m = lengths[form], target_lengths[target]
                distance = _edit_distance(a, n, b, m, rows)
                if distance == 0 or distance > min(edits[form], target_edits[target]):
                    continue
                if _is_singular(a, n, b, m) or _is_singular(b, m, a, n):
                    continue
                if distance > best_distance:
                    continue
                if distance == best_distance and (
                    target_counts[target] < target_counts[best]
                    or (target_counts[target] == target_counts[best] and target > best)
                ):
                    continue
                best, best_distance = target, distance
        found[form] = best
    return found


@compiled
def _edit_distance(a: np.ndarray, n: int, b: np.ndarray, m: int, rows: np.ndarray) -> int:
    """Optimal string alignment distance, as `canonical.edit_distance`."""
    for j in range(m + 1):
        rows[0, j] = j
    for i in range(1, n + 1):
        current, previous, before = i % 3, (i - 1) % 3, (i - 2) % 3
        rows[current, 0] = i
        for j in range(1, m + 1):
            value = rows[previous, j - 1] + (a[i - 1] != b[j - 1])
            value = min(value, rows[previous, j] + 1, rows[current, j - 1] + 1)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                value = min(value, rows[before, j - 2] + 1)
            rows[current, j] = value
    return rows[n % 3, m]


@compiled
def _is_singular(word: np.ndarray, n: int, other: np.ndarray, m: int) -> bool:
    """Whether `other` is one of `canonical.singulars(word)`."""
    s, e, i, v, y, f = 115, 101, 105, 118, 121, 102
    if n < 4 or word[n - 1] != s or word[n - 2] == s:
        return False
    if m == n - 1 and _same(word, other, m):
        return True
    if word[n - 2] != e:
        return False
    if word[n - 3] == i:
        return m == n - 2 and other[m - 1] == y and _same(word, other, n - 3)
    if word[n - 3] == v:
        if m == n - 2:
            return other[m - 1] == f and _same(word, other, n - 3)
        return m == n - 1 and other[m - 1] == e and other[m - 2] == f and _same(word, other, n - 3)
    return m == n - 2 and _same(word, other, m)


@compiled
def _same(a: np.ndarray, b: np.ndarray, n: int) -> bool:
    return np.array_equal(a[:n], b[:n])
