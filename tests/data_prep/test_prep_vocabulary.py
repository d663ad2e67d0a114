import dataclasses
import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.candidates import WORDS_SCHEMA
from data_prep.canonical import (
    edit_distance,
    near_spellings,
    plural_pairs,
    rare_misspellings,
    resolve,
    singular_phrases,
    singulars,
)
from data_prep.matching import PhraseTrie
from data_prep.privacy import is_blocked
from data_prep.schema import VocabularyConfig
from data_prep.schema_text import TextConfig
from data_prep.selection import collocation, select_phrases
from data_prep.sequences import Sequences, single_words
from data_prep.vocabulary import (
    EXTENSION_COUNTS_SCHEMA,
    count_extensions,
    count_words,
    frequent_extensions,
    frequent_only,
    frequent_words,
)
from data_prep.word_forms import STOP_WORDS

NOTHING: frozenset[str] = frozenset()
SHORT = st.text(st.sampled_from("abc"), max_size=5)
CORPUS = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=7), max_size=8)


def words_batch(texts: list[list[str]]) -> pa.RecordBatch:
    rows = [
        {"record": i, "source": 0, "weight": 1.0, "words": text}
        for i, text in enumerate(texts)
        if text
    ]
    return pa.RecordBatch.from_pylist(rows, schema=WORDS_SCHEMA)


def mine(batch: pa.RecordBatch, least: int = 2, longest: int = 4) -> Sequences:
    """All sequences that `least` records of the batch hold, of up to `longest` words."""
    words = pa.Table.from_batches([count_words(batch)])
    found = frequent_words(words, {}, least, "und")
    for length in range(2, longest + 1):
        trie = PhraseTrie.build(found.texts().to_pylist())
        extensions = pa.Table.from_batches([count_extensions(batch, trie, length)])
        found = frequent_extensions(found, extensions, least, "und")
    return found


def test_only_frequent_sums_are_kept_whatever_their_languages() -> None:
    rows = [(0, 1, "de", 2), (0, 1, "en", 1), (0, 2, "en", 2), (3, 0, "de", 1), (3, 0, None, 2)]
    names = EXTENSION_COUNTS_SCHEMA.names
    batch = pa.RecordBatch.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows],
        schema=EXTENSION_COUNTS_SCHEMA,
    )
    kept = frequent_only(batch, 3)
    assert [tuple(row.values()) for row in kept.to_pylist()] == [rows[0], rows[1], rows[3], rows[4]]
    assert frequent_only(batch.slice(0, 0), 3).num_rows == 0
    assert frequent_only(batch, 1).equals(batch)


def counts_of(sequences: Sequences) -> dict[str, int]:
    return dict(zip(sequences.texts().to_pylist(), sequences.count.tolist(), strict=True))


def sequences_of(counts: dict[str, int], language: str = "en") -> Sequences:
    """Of counts of sequences whose parts are all counted."""
    words = sorted(phrase for phrase in counts if " " not in phrase)
    count = np.array([counts[word] for word in words])
    found = single_words(pa.array(words), count, np.zeros(len(words), np.int64), (language,))
    longest = max(len(phrase.split()) for phrase in counts)
    for length in range(2, longest + 1):
        texts = found.texts().to_pylist()
        rows = sorted(
            (texts.index(phrase.rpartition(" ")[0]), words.index(phrase.split()[-1]), total)
            for phrase, total in counts.items()
            if phrase.count(" ") == length - 1
        )
        prefix, word, total = np.array(rows, np.int64).reshape(-1, 3).T
        found = found.grown(prefix, word, total, np.zeros(len(rows), np.int64))
    return found


def select(
    sequences: Sequences, records: int, config: VocabularyConfig, blocked: frozenset[str] = NOTHING
) -> dict[str, int]:
    mined = select_phrases(sequences, records, config, TextConfig(), blocked)
    return dict(zip(mined.phrases, mined.counts.tolist(), strict=True))


@settings(deadline=None)  # the first call compiles
@given(CORPUS)
def test_level_wise_counting_finds_every_frequent_sequence(texts: list[list[str]]) -> None:
    expected: dict[str, int] = {}
    for text in texts:
        spans = {" ".join(text[i : i + n]) for n in range(1, 5) for i in range(len(text) - n + 1)}
        for span in spans:
            expected[span] = expected.get(span, 0) + 1
    found = mine(words_batch(texts))
    assert counts_of(found) == {span: count for span, count in expected.items() if count >= 2}
    texts_of = found.texts().to_pylist()
    for index, text in enumerate(texts_of):
        words = text.split(" ")
        if len(words) > 1:
            assert texts_of[found.prefix[index]] == " ".join(words[:-1])
            assert texts_of[found.suffix[index]] == " ".join(words[1:])
        assert texts_of[found.last[index]] == words[-1]


def select_one_by_one(
    counts: dict[str, int], records: int, config: VocabularyConfig, blocked: frozenset[str]
) -> dict[str, int]:
    """`select_phrases`, a phrase at a time."""
    border = STOP_WORDS | set(config.stop_words)
    inner = border - set(config.inner_stop_words)

    def wordlike(words: list[str]) -> bool:
        if words[0] in border or words[-1] in border or inner.intersection(words):
            return False
        return not any(w.isdigit() for w in words) and any(len(w) > 1 for w in words)

    def npmi(phrase: str) -> float:
        words, joint, scores = phrase.split(), counts[phrase] / records, [1.0]
        for cut in range(1, len(words) if joint < 1 else 0):
            parts = counts[" ".join(words[:cut])] * counts[" ".join(words[cut:])] / records**2
            scores.append(math.log(joint / parts) / -math.log(joint))
        return min(scores)

    usable = {
        phrase: count
        for phrase, count in counts.items()
        if count <= config.max_document_fraction * records
        and phrase not in config.stop_phrases
        and wordlike(phrase.split())
        and not is_blocked(phrase, blocked)
    }
    bound = {phrase for phrase in usable if npmi(phrase) >= config.min_npmi}
    kept = {
        p: c for p, c in usable.items() if p in bound or bound.intersection(singular_phrases(p))
    }
    inside: dict[tuple[str, str], int] = {}
    for phrase, count in kept.items():
        words = phrase.split()
        singular = next((p for p in singular_phrases(phrase) if p in kept), phrase)
        spans = {" ".join(words[i:j]) for i in range(7) for j in range(i + 1, len(words) + 1)}
        for part in spans - {phrase}:
            if part in kept:
                inside[part, singular] = inside.get((part, singular), 0) + count
    for (part, _), count in inside.items():
        if count >= config.fragment_fraction * counts[part]:
            kept.pop(part, None)
    order = sorted(kept, key=lambda phrase: (-kept[phrase], phrase))
    return {phrase: kept[phrase] for phrase in order[: config.max_phrases]}


TEXT = st.lists(
    st.sampled_from(["sofa", "sofas", "table", "tables", "the", "of", "red", "9", "x", "bed"]),
    max_size=7,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXT, max_size=25), st.sampled_from([0.0, 0.3]), st.sampled_from([0.5, 0.9]))
def test_selection_is_what_it_is_phrase_by_phrase(
    texts: list[list[str]], npmi: float, fraction: float
) -> None:
    found = mine(words_batch(texts))
    # Not a score that ties with the limit, where the last bit of a logarithm decides.
    config = VocabularyConfig(
        min_npmi=npmi + 1e-9, fragment_fraction=fraction, stop_phrases=("red bed",), max_phrases=20
    )
    blocked = frozenset({"red sofa"})
    expected = select_one_by_one(counts_of(found), len(texts), config, blocked)
    chosen = select(found, len(texts), config, blocked) if texts else {}
    assert chosen == expected
    assert list(chosen) == list(expected)


def test_collocations_stay_and_chance_pairs_go() -> None:
    counts = {"dining": 50, "table": 100, "in": 400, "red": 200, "dining table": 48, "table in": 45}
    counts |= {
        "red table": 20,
        "tables": 300,
        "dining tables": 17,
        "the red": 100,
        "the": 800,
        "9": 70,
        "x": 30,
    }
    sequences = sequences_of(counts)
    kept = select(sequences, 1000, VocabularyConfig())
    assert "dining table" in kept
    assert not {"table in", "red table", "the red", "the", "9", "x"} & set(kept)
    assert "dining" not in kept  # a fragment: it hardly occurs without "table"
    assert "table" in kept
    assert "dining tables" in kept  # its own score is too low, its singular's is not
    score = dict(zip(sequences.texts().to_pylist(), collocation(sequences, 1000), strict=True))
    assert score["red table"] == pytest.approx(0.0)


def test_stop_words_are_those_of_the_phrases_language() -> None:
    counts = {"die": 90, "lampe": 80, "mit": 70, "die lampe": 60}
    assert set(select(sequences_of(counts, "de"), 1000, VocabularyConfig())) == {"lampe"}
    assert set(select(sequences_of(counts, "de-AT"), 1000, VocabularyConfig())) == {"lampe"}
    english = select(sequences_of(counts, "en"), 1000, VocabularyConfig(fragment_fraction=1.1))
    assert set(english) == set(counts)
    off = VocabularyConfig(language_stop_words=False, fragment_fraction=1.1)
    assert set(select(sequences_of(counts, "de"), 1000, off)) == set(counts)
    french = {"pomme": 9, "de": 90, "terre": 9, "pomme de": 9, "de terre": 9, "pomme de terre": 9}
    assert set(select(sequences_of(french, "fr"), 1000, VocabularyConfig())) == {"pomme de terre"}


def test_a_small_language_is_not_crowded_out() -> None:
    words = {f"word{i}": 500 - i for i in range(5)} | {"lampe": 9, "sofa": 8}
    found = sequences_of(words)
    language = np.array([text in ("lampe", "sofa") for text in found.texts().to_pylist()])
    found = dataclasses.replace(found, language=language.astype(np.int32), languages=("en", "de"))
    capped = VocabularyConfig(max_phrases_per_language=2)
    assert set(select(found, 9999, capped)) == {"word0", "word1", "lampe", "sofa"}


def test_a_record_counts_for_the_language_that_has_it_first() -> None:
    rows = [
        {"record": 0, "source": 0, "language": "de", "words": ["lampe", "gift"]},
        {"record": 0, "source": 1, "language": "en", "words": ["gift", "box"]},
        {"record": 1, "source": 0, "language": "en", "words": ["gift", "box"]},
        {"record": 2, "source": 0, "language": "en", "words": ["gift", "box"]},
        {"record": 3, "source": 0, "language": "und", "words": ["lampe"]},
        {"record": 4, "source": 0, "language": "und", "words": ["lampe"]},
    ]
    found = mine(pa.RecordBatch.from_pylist(rows, schema=WORDS_SCHEMA))
    spoken = {
        text: found.languages[code]
        for text, code in zip(found.texts().to_pylist(), found.language, strict=True)
    }
    assert counts_of(found) == {"box": 3, "gift": 3, "lampe": 3, "gift box": 3}
    assert spoken == {"box": "en", "gift": "en", "gift box": "en", "lampe": "de"}


@given(SHORT, SHORT)
def test_edit_distance_is_a_metric_on_short_words(a: str, b: str) -> None:
    distance = edit_distance(a, b)
    assert (distance == 0) == (a == b)
    assert distance == edit_distance(b, a)
    assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b))


def test_rare_misspellings_fold_into_the_frequent_word() -> None:
    counts = {
        "sofa": 200,
        "sfoa": 1,
        "soofa": 2,
        "skirt": 50,
        "shirt": 60,
        "sofas": 3,
        "ab": 1,
        "abc": 90,
    }
    words, totals = pa.array(sorted(counts)), np.array([counts[w] for w in sorted(counts)])
    folded = rare_misspellings(words, totals, VocabularyConfig())
    assert folded == {"sfoa": "sofa", "soofa": "sofa"}  # no plural, nothing frequent, nothing short
    assert rare_misspellings(words, totals, VocabularyConfig(spelling_ratio=0.0)) == {}


def nearest_one_by_one(counts: dict[str, int], config: VocabularyConfig) -> list[tuple[str, str]]:
    """`near_spellings` of words among themselves: every pair is looked at."""

    def edits(length: int) -> int:
        return (length >= config.spelling_min_length) + (length >= 2 * config.spelling_min_length)

    pairs = []
    for form in counts:
        near = [
            (edit_distance(form, target), -counts[target], target)
            for target in counts
            if form != target
            and counts[target] >= config.spelling_ratio * counts[form]
            and target not in singulars(form)
            and form not in singulars(target)
            and edit_distance(form, target) <= min(edits(len(form) + 1), edits(len(target)))
        ]
        pairs += [(form, min(near)[2])] if near else []
    return pairs


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.sampled_from("aevfysiö"), min_size=3, max_size=9), st.integers(1, 50), max_size=9
    )
)
def test_near_spellings_are_those_that_looking_at_every_pair_finds(counts: dict[str, int]) -> None:
    config = VocabularyConfig(spelling_ratio=2.0)
    assert near_spellings(counts, counts, config) == nearest_one_by_one(counts, config)


def test_long_words_may_be_two_edits_apart() -> None:
    assert near_spellings({"turqouisse": 1}, {"turquoise": 99}, VocabularyConfig())
    assert not near_spellings({"stool": 1}, {"stove": 99}, VocabularyConfig())


def test_plurals_fold_into_a_frequent_singular() -> None:
    phrases = {
        "sofas": 30,
        "sofa": 50,
        "dining tables": 9,
        "dining table": 40,
        "glass": 40,
        "jeans": 90,
        "jean": 2,
    }
    assert dict(plural_pairs(phrases)) == {"sofas": "sofa", "dining tables": "dining table"}
    assert "bookshelf" in singulars("bookshelves")
    assert "accessory" in singulars("accessories")


def test_endings_fold_by_the_language_of_the_phrase() -> None:
    counts = {"stühle": 30, "stuhl": 20, "lampen": 9, "lampe": 9, "esstische": 8, "esstisch": 20}
    found = dict(plural_pairs(counts, dict.fromkeys(counts, "de")))
    assert found == {"stühle": "stuhl", "lampen": "lampe", "esstische": "esstisch"}
    assert plural_pairs(counts, dict.fromkeys(counts, "en")) == []
    # A Latvian nominative ends in s, and short words are left alone.
    counts = {"namas": 30, "nama": 30, "mesa": 20, "mes": 20, "rote lampen": 5, "lampe": 9}
    tongues = {"namas": "lv", "nama": "lv", "mesa": "es", "mes": "es"}
    tongues |= dict.fromkeys(("rote lampen", "lampe"), "de")
    assert plural_pairs(counts, tongues) == []


def test_chains_resolve_and_circles_do_not() -> None:
    assert resolve([("c", "b"), ("b", "a")]) == {"c": "a", "b": "a"}
    for pairs in itertools.permutations([("a", "b"), ("b", "c"), ("c", "a")]):
        ends = resolve(pairs)
        assert len(ends) == 2
        assert len(set(ends.values())) == 1
