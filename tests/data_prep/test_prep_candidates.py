import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.candidates import (
    WORDS_SCHEMA,
    count_cooccurrence,
    match_batch,
    tokenize_batch,
)
from data_prep.matching import PhraseTrie, find_phrases
from data_prep.schema_text import TextConfig
from data_prep.sources import RECORD_SCHEMA

SHARED = np.zeros(2, bool)  # weights of both sources are counts
WORD = st.sampled_from(["a", "b", "c", "d"])
PHRASES = st.lists(st.lists(WORD, min_size=1, max_size=6).map(" ".join), unique=True, max_size=12)
TEXTS = st.lists(st.lists(WORD | st.just("x"), max_size=12), max_size=6)


def reference(
    phrases: list[str], texts: list[list[str]], overlap: str
) -> list[tuple[int, int, int]]:
    """Every phrase at every place by a dict; then, for "longest", those within no longer one."""
    ids = {phrase: i for i, phrase in enumerate(phrases)}
    found = []
    base = 0
    for text in texts:
        spans = [
            (base + start, length, ids[" ".join(text[start : start + length])])
            for start in range(len(text))
            for length in range(1, len(text) - start + 1)
            if " ".join(text[start : start + length]) in ids
        ]
        if overlap == "longest":
            spans = [
                a
                for a in spans
                if not any(
                    b[1] > a[1] and b[0] <= a[0] and a[0] + a[1] <= b[0] + b[1] for b in spans
                )
            ]
        found += spans
        base += len(text)
    return sorted(found)


@settings(deadline=None)  # the first call compiles
@given(PHRASES, TEXTS, st.sampled_from(["longest", "all"]))
def test_matches_are_those_of_a_plain_dict(
    phrases: list[str], texts: list[list[str]], overlap: str
) -> None:
    trie = PhraseTrie.build(phrases)
    words = pa.array([word for text in texts for word in text], pa.string())
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    found = find_phrases(words, offsets, trie, overlap)  # type: ignore[arg-type]
    assert sorted(zip(*(a.tolist() for a in found), strict=True)) == reference(
        phrases, texts, overlap
    )


def test_a_misspelling_matches_as_its_word() -> None:
    trie = PhraseTrie.build(["dining table"], {"dinning": "dining", "other": "unknown"})
    words = pa.array(["dinning", "table"])
    assert find_phrases(words, np.array([0, 2]), trie, "all")[2].tolist() == [0]


def words_batch(rows: list[tuple[int, int, float, str]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            dict(zip(WORDS_SCHEMA.names, (r, s, w, f"l{s}", t.split()), strict=True))
            for r, s, w, t in rows
        ],
        schema=WORDS_SCHEMA,
    )


def test_support_is_the_share_of_a_sources_weight() -> None:
    batch = words_batch(
        [(0, 0, 1.0, "red sofa sofa"), (0, 1, 3.0, "sofas"), (0, 1, 1.0, "red"), (2, 1, 1.0, "red")]
    )
    trie = PhraseTrie.build(["sofa", "sofas", "red"])
    hits = match_batch(batch, trie, np.array([0, 0, 2], np.int32), "longest", SHARED).to_pylist()
    found = {(h["record"], h["source"], h["phrase_id"]): h["support"] for h in hits}
    assert found == {
        (0, 0, 0): 1.0,
        (0, 0, 2): 1.0,
        (0, 1, 0): 0.75,
        (0, 1, 2): 0.25,
        (2, 1, 2): 1.0,
    }


def test_pairs_count_across_sources_or_within_records() -> None:
    batch = words_batch(
        [(0, 0, 1.0, "red sofa"), (0, 1, 1.0, "couch"), (1, 0, 1.0, "sofa"), (1, 1, 1.0, "sofa")]
    )
    trie = PhraseTrie.build(["sofa", "couch", "red"])
    hits = match_batch(batch, trie, np.arange(3, dtype=np.int32), "longest", SHARED)
    across = count_cooccurrence(hits, 3, "cross_source").to_pylist()
    pairs = {(row["row"], row["column"]): row["count"] for row in across}
    assert pairs == {(0, 1): 1, (1, 2): 1, (0, 0): 2}
    within = count_cooccurrence(hits, 3, "record").to_pylist()
    assert {(row["row"], row["column"]) for row in within} == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize("texts", [[], [{"source": 0, "weight": 1.0, "text": "..."}]])
def test_records_without_words_have_no_row(texts: list[dict[str, object]]) -> None:
    record = {"id": "a", "texts": texts}
    batch = tokenize_batch(pa.RecordBatch.from_pylist([record], schema=RECORD_SCHEMA), TextConfig())
    assert batch.num_rows == 0
    empty = match_batch(batch, PhraseTrie.build([]), np.zeros(0, np.int32), "longest", SHARED)
    assert empty.num_rows == 0
    assert count_cooccurrence(empty, 0, "cross_source").num_rows == 0
