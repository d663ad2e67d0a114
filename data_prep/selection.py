"""Which of the frequent word sequences are phrases: collocations that stand on their own.

Everything is computed for all sequences at once, along their prefixes and suffixes (data_prep.sequences).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.canonical import singular_phrases, singulars
from data_prep.schema import VocabularyConfig
from data_prep.schema_text import TextConfig
from data_prep.sequences import NONE, Sequences
from data_prep.text import IDEOGRAPH
from data_prep.word_forms import STOP_WORDS, primary, stop_words

SINGULARS = 3  # a word has at most


@dataclass(frozen=True)
class MinedPhrases:
    """P phrases of the corpus, most frequent first, of equals by name."""

    phrases: tuple[str, ...]  # words joined by one space
    counts: np.ndarray  # [P] int64: records that hold each
    languages: tuple[str, ...]  # [P]: that most of those records have it in

    def __len__(self) -> int:
        return len(self.phrases)


def select_phrases(
    sequences: Sequences,
    num_records: int,
    config: VocabularyConfig,
    text: TextConfig,
    blocked: Set[str] = frozenset(),
) -> MinedPhrases:
    """The sequences that make phrases.

    Dropped: those that hold a `blocked` phrase; too frequent; a stop word at a border, or inside (but "bag of flour");
    no word of two letters; a word of digits alone; longer ones below the collocation score; fragments of one longer
    phrase; what is beyond the most frequent of a language, or of all.
    """
    texts = sequences.texts()
    usable = sequences.count <= config.max_document_fraction * num_records
    usable &= ~pc.is_in(texts, pa.array(config.stop_phrases, pa.string())).to_numpy(False)
    usable &= _wordlike(sequences, config, text)
    usable &= ~_blocked(sequences, texts, blocked)
    bound = usable & (collocation(sequences, num_records) >= config.min_npmi)
    singular = singular_ids(sequences)
    # "dining tables" is a collocation when "dining table" is, however rare the plural.
    kept = bound | (usable & (bound[singular] & (singular >= 0)).any(axis=1))
    kept &= ~fragments(sequences, kept, singular, config.fragment_fraction)
    ids = np.flatnonzero(kept)
    named = pa.table({"count": sequences.count[ids], "text": texts.take(pa.array(ids))})
    order = pc.sort_indices(named, [("count", "descending"), ("text", "ascending")]).to_numpy()
    ids = ids[order]
    if config.max_phrases_per_language is not None:
        ids = ids[_rank(sequences.language[ids]) < config.max_phrases_per_language]
    ids = ids[: config.max_phrases]
    languages = pa.array(sequences.languages, pa.string()).take(pa.array(sequences.language[ids]))
    return MinedPhrases(
        tuple(texts.take(pa.array(ids)).to_pylist()),
        sequences.count[ids],
        tuple(languages.to_pylist()),
    )


def collocation(sequences: Sequences, num_records: int) -> np.ndarray:
    """Normalised PMI (Bouma, 2009) of each sequence's weakest split, `[N]` in -1..1; 1 for a single word.

    npmi(l, r) = log(p(lr) / (p(l) p(r))) / -log p(lr), p: share of the records.
    """
    share = sequences.count / num_records
    score = np.ones(len(sequences))
    for length in range(2, sequences.longest + 1):
        ids = sequences.level(length)
        heads = list(_chain(sequences.prefix, ids, length))  # of length, length - 1, ... words
        tails = list(_chain(sequences.suffix, ids, length))
        joint = share[ids]
        weakest = np.full(len(ids), np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for cut in range(1, length):
                chance = share[heads[length - cut]] * share[tails[cut]]
                weakest = np.minimum(weakest, np.log(joint / chance) / -np.log(joint))
        score[ids] = np.where(joint >= 1.0, 1.0, weakest)
    return score


def fragments(
    sequences: Sequences, kept: np.ndarray, singular: np.ndarray, fraction: float
) -> np.ndarray:
    """Sequences that occur almost only inside one longer `kept` one, `[N] bool` ("t" in "t shirt"); cf. C-value.

    A longer one and its plural are one (Frantzi, 2000). `singular [N, 3]`: `singular_ids`.
    """
    of = np.arange(len(sequences))  # each, or its singular
    for column in reversed(range(SINGULARS)):
        found = (singular[:, column] >= 0) & kept[singular[:, column]]
        of[found] = singular[found, column]
    inside = [np.zeros((2, 0), np.int64)]  # (part, whole), each once
    for length in range(2, sequences.longest + 1):
        ids = sequences.level(length)[kept[sequences.level(length)]]
        parts = [
            part
            for start, tail in enumerate(_chain(sequences.suffix, ids, length))
            for stop, part in enumerate(_chain(sequences.prefix, tail, length - start))
            if start or stop
        ]
        if parts and len(ids):
            pairs = np.unique(np.concatenate([part.astype(np.int64) << 32 | ids for part in parts]))
            part, whole = pairs >> 32, pairs & 0xFFFFFFFF
            inside.append(np.stack([part, whole])[:, kept[part]])
    part, whole = np.concatenate(inside, axis=1)
    pairs, place = np.unique(part << 32 | of[whole], return_inverse=True)
    total = np.zeros(len(pairs), np.int64)
    np.add.at(total, place, sequences.count[whole])
    part = pairs >> 32
    found = np.zeros(len(sequences), bool)
    found[part[total >= fraction * sequences.count[part]]] = True
    return found


def singular_ids(sequences: Sequences) -> np.ndarray:
    """`[N, 3] int64`: the sequences that each may be the plural of, likeliest first; -1 for none."""
    words = sequences.words.to_pylist()
    place = {word: i for i, word in enumerate(words)}
    of_word = np.full((len(words), SINGULARS), NONE, np.int64)
    for index, word in enumerate(words):
        for column, form in enumerate(singulars(word)):
            of_word[index, column] = place.get(form, NONE)
    found = of_word[sequences.last]
    for length in range(2, sequences.longest + 1):
        ids = sequences.level(length)
        for column in range(SINGULARS):
            word = found[ids, column]
            found[ids, column] = sequences.find(length, sequences.prefix[ids], word)
    return found


def _wordlike(sequences: Sequences, config: VocabularyConfig, text: TextConfig) -> np.ndarray:
    """No stop word where it may not be, no number, and one word at least that is more than a letter, `[N] bool`."""
    words = sequences.words.to_pylist()
    number = np.array([word.isdigit() for word in words], bool)
    # One ideograph is a word; one letter is not.
    real = np.array([len(word) > 1 or bool(IDEOGRAPH.match(word)) for word in words], bool)
    border, inner = _stop_words(sequences, config, text)
    language = sequences.language
    at = np.arange(len(sequences))
    bad = border[language, sequences.last]
    good = np.zeros(len(sequences), bool)
    for _ in range(sequences.longest):
        live = np.flatnonzero(at >= 0)
        word, tongue = sequences.last[at[live]], language[live]
        is_first = sequences.prefix[at[live]] == NONE
        bad[live] |= number[word] | inner[tongue, word] | (is_first & border[tongue, word])
        good[live] |= real[word]
        at[live] = sequences.prefix[at[live]]
    return good & ~bad


def _stop_words(
    sequences: Sequences, config: VocabularyConfig, text: TextConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Which words are stop words at a phrase's borders, and within it, by language: `[K, W] bool` both."""
    always = STOP_WORDS | set(config.stop_words)
    inside = pa.array(sorted(config.inner_stop_words), pa.string())
    may_stand_inside = pc.is_in(sequences.words, inside).to_numpy(False)
    border = np.zeros((len(sequences.languages), len(sequences.words)), bool)
    for row, language in enumerate(sequences.languages):
        own = stop_words(primary(language), text) if config.language_stop_words else frozenset()
        listed = pa.array(sorted(always | own), pa.string())
        border[row] = pc.is_in(sequences.words, listed).to_numpy(False)
    return border, border & ~may_stand_inside


def _blocked(sequences: Sequences, texts: pa.StringArray, blocked: Set[str]) -> np.ndarray:
    """Which hold a blocked phrase, or the plural of one, anywhere: `[N] bool` (privacy.is_blocked)."""
    found = np.zeros(len(sequences), bool)
    if not blocked:
        return found
    ends = {phrase.rpartition(" ")[2] for phrase in blocked}
    may_end = np.array(
        [
            word in ends or not ends.isdisjoint(singulars(word))
            for word in sequences.words.to_pylist()
        ],
        bool,
    )
    asked = np.flatnonzero(may_end[sequences.last])
    for index, phrase in zip(asked.tolist(), texts.take(pa.array(asked)).to_pylist(), strict=True):
        found[index] = phrase in blocked or not blocked.isdisjoint(singular_phrases(phrase))
    for length in range(2, sequences.longest + 1):
        ids = sequences.level(length)
        found[ids] |= found[sequences.prefix[ids]] | found[sequences.suffix[ids]]
    return found


def _chain(shorter: np.ndarray, ids: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """The sequences, and what is left of them without 1, 2, ... `length - 1` words of one end."""
    for _ in range(length):
        yield ids
        ids = shorter[ids]


def _rank(key: np.ndarray) -> np.ndarray:
    """How many of the same key are before each, `[n] int64`."""
    order = np.argsort(key, kind="stable")
    _, first, place = np.unique(key[order], return_index=True, return_inverse=True)
    rank = np.empty(len(key), np.int64)
    rank[order] = np.arange(len(key)) - first[place]
    return rank
