"""Mines the phrase vocabulary: frequent word sequences that are collocations.

Counting is level-wise (Apriori, Agrawal and Srikant, 1994): an n-word sequence is counted only where both of its
(n-1)-word parts are frequent. That loses nothing, since a part is at least as frequent, and bounds the
memory by the number of frequent sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.canonical import singular_phrases
from data_prep.matching import PhraseTrie, list_offsets, prefixes_of_length, words_left
from data_prep.privacy import is_blocked
from data_prep.schema import VocabularyConfig
from data_prep.text import IDEOGRAPH

WORD_COUNTS_SCHEMA = pa.schema([("word", pa.string()), ("count", pa.int64())])
EXTENSION_COUNTS_SCHEMA = pa.schema(
    [("prefix", pa.int32()), ("word", pa.int32()), ("count", pa.int64())]
)
_STOP_WORDS = """
a about above after all also am an and any are as at be been but by can could do does for from get had has have he
her here hers him his how i if in into is it its just like me more most my new no nor not now of off on once only or
other our ours out over own per she so some such than that the their them then there these they this those through to
too under until up upon us use very via was we were what when where which while who whom why will with within without
would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())  # English


def count_words(batch: pa.RecordBatch) -> pa.RecordBatch:
    """In how many records of a `WORDS_SCHEMA` batch each word occurs (`WORD_COUNTS_SCHEMA`)."""
    codes = batch.column("words").flatten().dictionary_encode()
    counts = _count_records(
        codes.indices.to_numpy(), _record_of_words(batch), len(codes.dictionary)
    )
    return pa.RecordBatch.from_arrays(
        [codes.dictionary, pa.array(counts)], schema=WORD_COUNTS_SCHEMA
    )


def count_extensions(batch: pa.RecordBatch, trie: PhraseTrie, length: int) -> pa.RecordBatch:
    """In how many records each `length`-word sequence occurs, as phrase of `length - 1` words and word.

    `trie` holds the frequent sequences of up to `length - 1` words. (`EXTENSION_COUNTS_SCHEMA`)
    """
    offsets = list_offsets(batch.column("words"))
    ids = trie.encode(batch.column("words").flatten())
    left = words_left(offsets)
    phrase_at = np.append(prefixes_of_length(ids, offsets, trie, length - 1), -1)
    position = np.flatnonzero((phrase_at[:-1] >= 0) & (phrase_at[1:] >= 0) & (left >= length))
    word = ids[position + length - 1]
    key, code = np.unique(phrase_at[position] << 32 | word, return_inverse=True)
    counts = _count_records(code, _record_of_words(batch)[position], len(key))
    columns = [
        pa.array(key >> 32, pa.int32()),
        pa.array(key & 0xFFFFFFFF, pa.int32()),
        pa.array(counts),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EXTENSION_COUNTS_SCHEMA)


def frequent_words(
    counts: pa.Table, misspellings: Mapping[str, str], config: VocabularyConfig
) -> dict[str, int]:
    """Word -> records, misspellings folded in, of the words that reach the minimum; sorted by word."""
    total: dict[str, int] = {}
    for word, count in zip(counts["word"].to_pylist(), counts["count"].to_pylist(), strict=True):
        target = misspellings.get(word, word)
        total[target] = total.get(target, 0) + count
    return {w: c for w, c in sorted(total.items()) if c >= config.min_document_frequency}


def frequent_extensions(
    counts: pa.Table, phrases: Sequence[str], words: Sequence[str], config: VocabularyConfig
) -> dict[str, int]:
    """The same for counted extensions of `phrases` by `words`."""
    frequent = counts.filter(pc.greater_equal(counts["count"], config.min_document_frequency))
    rows = zip(*(frequent[name].to_pylist() for name in ("prefix", "word", "count")), strict=True)
    return dict(sorted((f"{phrases[prefix]} {words[word]}", count) for prefix, word, count in rows))


def select_phrases(
    counts: Mapping[str, int],
    num_records: int,
    config: VocabularyConfig,
    blocked: Set[str] = frozenset(),
) -> dict[str, int]:
    """The sequences that make phrases, most frequent first.

    Dropped: those that hold a `blocked` phrase; too frequent; a stop word at a border, or inside (but "bag of flour");
    no word of two letters; a word of digits alone; longer ones below the collocation score; fragments of one longer
    phrase.
    """
    stop_words = STOP_WORDS | set(config.stop_words)
    inner = stop_words - set(config.inner_stop_words)
    stop_phrases = set(config.stop_phrases)
    limit = config.max_document_fraction * num_records
    usable = {
        phrase: count
        for phrase, count in counts.items()
        if count <= limit
        and phrase not in stop_phrases
        and _is_wordlike(phrase.split(" "), stop_words, inner)
        and not is_blocked(phrase, blocked)
    }
    bound = {p for p in usable if collocation(p, counts, num_records) >= config.min_npmi}
    # "dining tables" is a collocation when "dining table" is, however rare the plural.
    kept = {
        p: c for p, c in usable.items() if p in bound or bound.intersection(singular_phrases(p))
    }
    for phrase in fragments(kept, config.fragment_fraction):
        del kept[phrase]
    order = sorted(kept, key=lambda phrase: (-kept[phrase], phrase))
    return {phrase: kept[phrase] for phrase in order[: config.max_phrases]}


def collocation(phrase: str, counts: Mapping[str, int], num_records: int) -> float:
    """Normalised PMI (Bouma, 2009) of the phrase's weakest split, -1..1; 1 for a single word.

    npmi(l, r) = log(p(lr) / (p(l) p(r))) / -log p(lr), p: share of the records.
    """
    words = phrase.split(" ")
    if len(words) == 1:
        return 1.0
    joint = counts[phrase] / num_records
    if joint >= 1.0:
        return 1.0
    scores = []
    for cut in range(1, len(words)):
        left = counts[" ".join(words[:cut])] / num_records
        right = counts[" ".join(words[cut:])] / num_records
        scores.append(math.log(joint / (left * right)) / -math.log(joint))
    return min(scores)


def fragments(counts: Mapping[str, int], fraction: float) -> list[str]:
    """Phrases that occur almost only inside one longer phrase ("t" in "t shirt"); cf. C-value (Frantzi, 2000)."""
    inside: dict[tuple[str, str], int] = {}  # (part, singular of the longer phrase) -> records
    for phrase, count in counts.items():
        words = phrase.split(" ")
        singular = next((p for p in singular_phrases(phrase) if p in counts), phrase)
        parts = (words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        for part in {" ".join(p) for p in parts if len(p) < len(words)}:
            if part in counts:
                inside[part, singular] = inside.get((part, singular), 0) + count
    found = {part: None for (part, _), count in inside.items() if count >= fraction * counts[part]}
    return list(found)


def inverse_document_frequency(document_frequency: np.ndarray, num_records: int) -> np.ndarray:
    """log((1 + N) / (1 + df)) in nats: never negative, defined for an unseen phrase."""
    return np.log((1.0 + num_records) / (1.0 + np.minimum(document_frequency, num_records)))


def _is_wordlike(words: Sequence[str], border: Set[str], inner: Set[str]) -> bool:
    if words[0] in border or words[-1] in border or not inner.isdisjoint(words):
        return False
    if any(word.isdigit() for word in words):
        return False
    # One ideograph is a word; one letter is not.
    return any(len(word) > 1 or IDEOGRAPH.match(word) for word in words)


def _record_of_words(batch: pa.RecordBatch) -> np.ndarray:
    lengths = np.diff(list_offsets(batch.column("words")))
    return np.repeat(batch.column("record").to_numpy().astype(np.int64), lengths)


def _count_records(codes: np.ndarray, records: np.ndarray, num_codes: int) -> np.ndarray:
    """In how many distinct records each code occurs: `[num_codes] int64`."""
    pairs = np.unique(records * max(num_codes, 1) + codes)
    return np.bincount(pairs % max(num_codes, 1), minlength=num_codes).astype(np.int64)
