"""All frequent word sequences of a corpus as arrays: each is a shorter sequence and one word more.

Millions of them: as Python strings in dictionaries they would take gigabytes and minutes, as numbers they take neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NONE = -1


@dataclass(frozen=True)
class Sequences:
    """N sequences, by number of words, then by prefix and last word; the first W are the words on their own.

    Every part of a sequence is one of them too, being at least as frequent.
    """

    words: pa.StringArray  # [W] sorted
    starts: tuple[int, ...]  # [L + 1]: where the sequences of 1, 2, ... L words begin, and N
    prefix: np.ndarray  # [N] int32: without the last word; -1 of a single word
    last: np.ndarray  # [N] int32: the last word
    suffix: np.ndarray  # [N] int32: without the first word; -1 of a single word
    count: np.ndarray  # [N] int64: records that hold it
    language: np.ndarray  # [N] int32: the one that most of them have it in, in `languages`
    languages: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.count)

    def level(self, length: int) -> np.ndarray:
        """Ids of the sequences of `length` words."""
        return np.arange(self.starts[length - 1], self.starts[length])

    @property
    def longest(self) -> int:
        return len(self.starts) - 1

    def texts(self) -> pa.StringArray:
        """`[N]`: the words of each, joined by one space."""
        parts = [self.words]
        for length in range(2, self.longest + 1):
            ids = self.level(length)
            head = parts[-1].take(pa.array(self.prefix[ids] - self.starts[length - 2]))
            tail = self.words.take(pa.array(self.last[ids]))
            parts.append(pc.binary_join_element_wise(head, tail, " "))
        return pa.concat_arrays(parts)

    def find(self, length: int, prefix: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Ids `[n]` of the sequences of `length` words that end so, -1 where there is none."""
        if length == 1:
            return np.where(prefix == NONE, word, NONE)
        ids = self.level(length)
        keys = _pairs(self.prefix[ids], self.last[ids])
        wanted = _pairs(prefix, word)
        place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        if not len(keys):
            return np.full(len(wanted), NONE)
        known = (keys[place] == wanted) & (prefix >= 0) & (word >= 0)
        return np.where(known, place + self.starts[length - 1], NONE)

    def grown(
        self, prefix: np.ndarray, word: np.ndarray, count: np.ndarray, language: np.ndarray
    ) -> Sequences:
        """With the sequences of one word more, sorted by prefix and word; their languages are in `languages`."""
        shorter = self.suffix[prefix] if self.longest > 1 else np.full(len(prefix), NONE)
        suffix = self.find(self.longest, shorter, word)
        return Sequences(
            self.words,
            (*self.starts, len(self) + len(prefix)),
            np.concatenate([self.prefix, prefix.astype(np.int32)]),
            np.concatenate([self.last, word.astype(np.int32)]),
            np.concatenate([self.suffix, suffix.astype(np.int32)]),
            np.concatenate([self.count, count.astype(np.int64)]),
            np.concatenate([self.language, language.astype(np.int32)]),
            self.languages,
        )


def single_words(
    words: pa.StringArray, count: np.ndarray, language: np.ndarray, languages: tuple[str, ...]
) -> Sequences:
    """Sequences of one word each; `words [W]` sorted."""
    none = np.full(len(words), NONE, np.int32)
    return Sequences(
        words,
        (0, len(words)),
        none,
        np.arange(len(words), dtype=np.int32),
        none,
        count.astype(np.int64),
        language.astype(np.int32),
        languages,
    )


def sums_and_languages(
    key: np.ndarray, language: np.ndarray, count: np.ndarray, default: int, least: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows of counts by key and language: the keys whose sum is `least`, the sums, and the language of most of each.

    Of equals the first language; the `default` one, of what is in no known language, only where there is no other.
    """
    keys, place = np.unique(key, return_inverse=True)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, place, count)
    kept = total >= least
    rows = kept[place]
    place, language, count = (np.cumsum(kept) - 1)[place[rows]], language[rows], count[rows]
    best = np.zeros(int(kept.sum()), np.int64)
    known = language != default
    np.maximum.at(best, place[known], count[known])
    # The first language among those of the largest count; of what has none, the default.
    main = np.full(len(best), np.iinfo(np.int64).max)
    top = known & (count == best[place])
    np.minimum.at(main, place[top], language[top])
    return keys[kept], total[kept], np.where(best > 0, main, default)


def _pairs(prefix: np.ndarray, word: np.ndarray) -> np.ndarray:
    return prefix.astype(np.int64) << 32 | word.astype(np.int64)
