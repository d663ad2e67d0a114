import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.matching import PhraseTrie, find_phrases, prefixes_of_length, sum_by_source
from data_prep.spellings import Spellings

# Alike in their first bytes, in their length, or short and long forms of one another.
WORDS = st.one_of(
    st.sampled_from(
        ["a", "aa", "aaaaaaa", "aaaaaaaa", "aaaaaaab", "aaaaaaaaa", "é", "éé", "\x01a"]
    ),
    st.text(min_size=1, max_size=12),
    st.text(st.sampled_from("ab"), min_size=7, max_size=9),
)


@settings(deadline=None)  # the first call compiles
@given(st.lists(WORDS, unique=True, max_size=30), st.lists(WORDS, max_size=30), st.integers(0, 3))
def test_ids_of_words_are_those_of_a_dict(known: list[str], words: list[str], skip: int) -> None:
    ids = {word: 7 * i for i, word in enumerate(known)}
    asked = known + words
    found = Spellings.build(ids).look_up(pa.array(asked, pa.string()).slice(skip))
    assert found.tolist() == [ids.get(word, -1) for word in asked[skip:]]


def test_every_phrase_of_a_large_vocabulary_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 300, (20_000, 6))
    phrases = list(
        dict.fromkeys(" ".join(f"w{w}" for w in r[: 1 + i % 6]) for i, r in enumerate(drawn))
    )
    trie = PhraseTrie.build(phrases)
    texts = [phrase.split(" ") for phrase in phrases]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    words = pa.array([word for text in texts for word in text])
    start, length, phrase = find_phrases(words, offsets, trie, "longest")
    assert phrase.tolist() == list(range(len(phrases)))
    assert start.tolist() == offsets[:-1].tolist()
    assert length.tolist() == np.diff(offsets).tolist()
    start, length, phrase = find_phrases(words, offsets, trie, "all")
    ids = {phrase: i for i, phrase in enumerate(phrases)}
    text_of = np.searchsorted(offsets, start, side="right") - 1
    for s, n, p, t in zip(start, length, phrase, text_of, strict=True):
        begin = s - offsets[t]
        assert ids[" ".join(texts[t][begin : begin + n])] == p
    expected = sum(
        " ".join(text[i:j]) in ids
        for text in texts
        for i in range(len(text))
        for j in range(i + 1, len(text) + 1)
    )
    assert len(phrase) == expected
    at = prefixes_of_length(trie.encode(words), offsets, trie, 3)
    assert (at >= 0).sum() == (length == 3).sum()


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 4), max_size=90)), max_size=9))
def test_sums_are_those_of_a_dict(texts: list[tuple[int, list[int]]]) -> None:
    texts = sorted(texts, key=lambda text: text[0])
    group = np.unique([g for g, _ in texts], return_inverse=True)[1].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(words) for _, words in texts])]).astype(np.int64)
    weight = 1.0 + np.arange(len(texts))
    phrase = np.array([word for _, words in texts for word in words], np.int64)
    expected: dict[tuple[int, int], tuple[float, int, int]] = {}
    for text, (_, words) in enumerate(texts):
        for word in set(words):
            key = (int(group[text]), word)
            total, count, position = expected.get(key, (0.0, 0, 99))
            expected[key] = (
                total + weight[text],
                count + words.count(word),
                min(position, words.index(word)),
            )
    divisor = np.full(4, 100.0)
    sums = sum_by_source(phrase, np.arange(len(phrase)), offsets, weight, group, divisor)
    keys = list(zip(sums.group.tolist(), sums.phrase.tolist(), strict=True))
    assert keys == sorted(expected)
    told = zip(sums.weight.tolist(), sums.count.tolist(), sums.position.tolist(), strict=True)
    assert list(told) == [expected[key] for key in keys]
    np.testing.assert_allclose(sums.support, [expected[key][0] / 100 for key in keys], atol=1e-6)
