from hypothesis import given
from hypothesis import strategies as st

from data_prep.text import normalize, tokenize

MESSY = st.text(
    st.sampled_from("aB ß'’s<>/&;#\x00.é日-_1\tﬁ\n") | st.characters(codec="utf-8"), max_size=30
)


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


def test_nothing_in_nothing_out() -> None:
    assert tokenize([])[0] == []
    words, lengths = tokenize(["", "a", " "])
    assert words == ["a"]
    assert lengths.tolist() == [0, 1, 0]
