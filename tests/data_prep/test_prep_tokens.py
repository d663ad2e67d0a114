"""The compiled way of a column of texts against the way of strings and patterns, which defines the result."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.characters import CODES
from data_prep.language import MAX_CHARACTERS, readable
from data_prep.privacy import redact, redact_texts
from data_prep.schema_text import PrivacyConfig, TextConfig
from data_prep.text import plain_text, tokenize
from data_prep.tokens import tokenize_texts

PIECE = st.one_of(
    st.sampled_from("aBzZ ß'’s<>/&;#＃\x00.é日の-_1\tﬁ\n\u200d\u0301!©™½Å가ᄀİǰΐςÉ"),
    st.sampled_from(
        ["women's ", "& ", "&amp;", "www.", ".com", "://", "ÉCOLE", "🛋️", "👍🏽", "&#64;"]
    ),
    st.sampled_from(
        ["a@b.example", "＠x", "555 010 99 88", "(at)", "１２３４５６７", "THE BIG SOFA"]
    ),
    st.characters(codec="utf-8"),
)
TEXTS = st.lists(st.lists(PIECE, max_size=20).map("".join), max_size=8)
CONFIGS = (
    TextConfig(),
    TextConfig(accents="fold"),
    TextConfig(emoji="names"),
    TextConfig(cjk="runs", accents="fold"),
)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    for config in CONFIGS:  # compiles and makes the tables, which takes longer than a property may
        tokenize_texts(pa.array(["é&lt;"]), config)
    readable(pa.array(["é"]))


def assert_same_words(texts: list[str], config: TextConfig) -> None:
    words, lengths = tokenize_texts(pa.array(texts, pa.string()), config)
    expected, expected_lengths = tokenize(texts, config)
    assert words.to_pylist() == expected
    np.testing.assert_array_equal(lengths, expected_lengths)


@pytest.mark.parametrize("config", [TextConfig(), TextConfig("fold", "names", "runs")], ids=str)
def test_every_character_becomes_the_same_words(config: TextConfig) -> None:
    codes = [code for code in range(CODES + 0x400) if not 0xD800 <= code < 0xE000]
    assert_same_words([f"a{chr(code)}b {chr(code)}'s" for code in codes], config)


@given(TEXTS, st.sampled_from(CONFIGS))
def test_texts_become_the_same_words(texts: list[str], config: TextConfig) -> None:
    assert_same_words(texts, config)


@given(TEXTS, TEXTS)
def test_a_slice_of_a_column_is_read_from_where_it_begins(
    before: list[str], texts: list[str]
) -> None:
    column = pa.array([*before, *texts], pa.string())[len(before) :]
    words, _ = tokenize_texts(column, TextConfig())
    assert words.to_pylist() == tokenize(texts)[0]


@given(TEXTS)
def test_the_same_is_redacted(texts: list[str]) -> None:
    for config in (PrivacyConfig(), PrivacyConfig(emails=False, phones=False)):
        found = redact_texts(pa.array(texts, pa.string()), config)
        assert found.to_pylist() == redact(texts, config)


@given(TEXTS)
def test_languages_are_identified_from_plain_text(texts: list[str]) -> None:
    def read(text: str) -> str:
        plain = plain_text(text.replace("\x00", " "))
        short = unicodedata.normalize("NFC", plain)[:MAX_CHARACTERS]
        return short.lower() if short.isupper() else short

    assert readable(pa.array(texts, pa.string())).to_pylist() == [read(text) for text in texts]


def test_long_texts_are_cut_for_languages_only() -> None:
    long = "Äpfel und " * 1000
    column = pa.array([long, "x" * 2_000_000, long.upper()], pa.string())
    assert [len(text) for text in readable(column).to_pylist()] == [MAX_CHARACTERS] * 3
    assert len(tokenize_texts(column, TextConfig())[0]) == 4001
