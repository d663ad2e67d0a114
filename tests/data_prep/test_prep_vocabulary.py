import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.candidates import WORDS_SCHEMA
from data_prep.canonical import (
    deletions,
    edit_distance,
    near_spellings,
    plural_pairs,
    rare_misspellings,
    resolve,
    singulars,
)
from data_prep.matching import PhraseTrie
from data_prep.schema import VocabularyConfig
from data_prep.vocabulary import (
    collocation,
    count_extensions,
    count_words,
    frequent_extensions,
    frequent_words,
    select_phrases,
)

CONFIG = VocabularyConfig(min_document_frequency=2)
SHORT = st.text(st.sampled_from("abc"), max_size=5)
CORPUS = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=7), max_size=8)


def words_batch(texts: list[list[str]]) -> pa.RecordBatch:
    rows = [
        {"record": i, "source": 0, "weight": 1.0, "words": text}
        for i, text in enumerate(texts)
        if text
    ]
    return pa.RecordBatch.from_pylist(rows, schema=WORDS_SCHEMA)


@settings(deadline=None)  # the first call compiles
@given(CORPUS)
def test_level_wise_counting_finds_every_frequent_sequence(texts: list[list[str]]) -> None:
    batch = words_batch(texts)
    counts = frequent_words(pa.Table.from_batches([count_words(batch)]), {}, CONFIG)
    for length in range(2, 5):
        trie = PhraseTrie.build(list(counts))
        extensions = pa.Table.from_batches([count_extensions(batch, trie, length)])
        counts |= frequent_extensions(extensions, list(counts), trie.words, CONFIG)
    expected: dict[str, int] = {}
    for text in texts:
        spans = {" ".join(text[i : i + n]) for n in range(1, 5) for i in range(len(text) - n + 1)}
        for span in spans:
            expected[span] = expected.get(span, 0) + 1
    assert counts == {span: count for span, count in expected.items() if count >= 2}


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
    kept = select_phrases(counts, 1000, VocabularyConfig())
    assert "dining table" in kept
    assert not {"table in", "red table", "the red", "the", "9", "x"} & set(kept)
    assert "dining" not in kept  # a fragment: it hardly occurs without "table"
    assert "table" in kept
    assert "dining tables" in kept  # its own score is too low, its singular's is not
    assert collocation("red table", counts, 1000) == pytest.approx(0.0)


@given(SHORT, SHORT)
def test_edit_distance_is_a_metric_on_short_words(a: str, b: str) -> None:
    distance = edit_distance(a, b)
    assert (distance == 0) == (a == b)
    assert distance == edit_distance(b, a)
    assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b))


@given(SHORT, SHORT)
def test_words_an_edit_apart_share_a_deletion(a: str, b: str) -> None:
    if edit_distance(a, b) <= 1:
        assert deletions(a, 1) & deletions(b, 1)


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
    folded = rare_misspellings(counts, VocabularyConfig())
    assert folded == {"sfoa": "sofa", "soofa": "sofa"}  # no plural, nothing frequent, nothing short
    assert rare_misspellings(counts, VocabularyConfig(spelling_ratio=0.0)) == {}


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


def test_chains_resolve_and_circles_do_not() -> None:
    assert resolve([("c", "b"), ("b", "a")]) == {"c": "a", "b": "a"}
    for pairs in itertools.permutations([("a", "b"), ("b", "c"), ("c", "a")]):
        ends = resolve(pairs)
        assert len(ends) == 2
        assert len(set(ends.values())) == 1
