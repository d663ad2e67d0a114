import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.schema_text import TextConfig
from data_prep.text import join_ideographs, normalize, tokenize

PIECE = st.one_of(
    st.sampled_from("aB ß'’s<>/&;#\x00.é日の-_1\tﬁ\n\u200d\u0301!"),
    st.sampled_from(["<script>", "</script>", "<!--", "-->", "&amp;lt;", "www.", "#aB", "://"]),
    st.characters(codec="utf-8"),
)
MESSY = st.lists(PIECE, max_size=30).map("".join)


@given(st.lists(MESSY, max_size=8))
def test_a_batch_gives_what_each_text_gives_alone(texts: list[str]) -> None:
    words, lengths = tokenize(texts)
    alone = [tokenize([text])[0] for text in texts]
    assert words == [word for text in alone for word in text]
    assert lengths.tolist() == [len(text) for text in alone]


@given(MESSY)
def test_words_are_lower_case_runs_of_letters_and_digits(text: str) -> None:
    for word in tokenize([text])[0]:
        assert word == normalize(word)
        assert all(character.isalnum() or not character.isascii() for character in word)


def test_markup_urls_entities_and_possessives_go() -> None:
    text = "<p class='x'>Women’s ﬁne&nbsp;SOFA</p> at https://a.example/b?c=d&e, 3 < 4 m²"
    assert tokenize([text])[0] == ["women", "fine", "sofa", "at", "3", "4", "m2"]


def words(text: str, **choices: str) -> list[str]:
    return tokenize([text], TextConfig(**choices))[0]  # type: ignore[arg-type]


def test_scripts_comments_and_escaped_markup_go() -> None:
    text = "a<script>var b = '<i>';</script> c <!-- <b>d</b> --> e &amp;lt;b&amp;gt; f <STYLE >g</style>"
    assert words(text) == ["a", "c", "e", "f"]
    assert words("a <script> b") == ["a", "b"]  # never closed: only the tag goes
    assert words("shop.example.com/a?b c.org d.x") == ["shop", "example", "c", "d", "x"]


def test_accents_are_kept_or_folded() -> None:
    text = "Canapé Øre ŁÓDŹ Καφές й が"
    assert words(text) == ["canapé", "øre", "łódź", "καφέσ", "й", "が"]
    assert words(text, accents="fold") == ["canape", "ore", "lodz", "καφεσ", "й", "が"]


def test_emoji_are_dropped_or_named() -> None:
    text = "new\U0001f6cb\ufe0f sofa \U0001f44d\U0001f3fd"
    assert words(text) == ["new", "sofa"]
    assert words(text, emoji="names") == [
        "new",
        "couch",
        "and",
        "lamp",
        "sofa",
        "thumbs",
        "up",
        "sign",
    ]


def test_ideographs_are_words_and_other_scripts_keep_their_marks() -> None:
    assert words("红色沙发 sofa") == ["红", "色", "沙", "发", "sofa"]
    assert words("赤いソファ") == ["赤", "い", "ソファ"]
    assert words("红色沙发", cjk="runs") == ["红色沙发"]
    assert words("빨간 소파") == ["빨간", "소파"]
    assert words("सोफ़ा") == ["सोफ़ा"]
    assert words("so\xadfa so\u200bfa") == ["sofa", "sofa"]
    assert join_ideographs("红 色 ソファ red sofa") == "红色 ソファ red sofa"


def test_hashtags_in_prose_are_words() -> None:
    assert words("my #MidCenturyModern #DIYHome #boho_chic") == [
        *("my", "mid", "century", "modern", "diy", "home", "boho", "chic")
    ]


@pytest.mark.parametrize(
    "piece",
    [
        "<script>",
        "<",
        "&amp;",
        "&#",
        "www.",
        "a.",
        "#aB",
        "<!--",
        "a://",
        "\u0301",
        "<style></script",
    ],
)
def test_long_text_of_anything_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    tokenize([piece * (2_000_000 // len(piece))])
    assert time.process_time() - began < 10


def test_nothing_in_nothing_out() -> None:
    assert tokenize([])[0] == []
    words, lengths = tokenize(["", "a", " "])
    assert words == ["a"]
    assert lengths.tolist() == [0, 1, 0]
