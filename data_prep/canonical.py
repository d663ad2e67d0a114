"""Which surface forms are one phrase: plurals of a singular, misspellings of a frequent word."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.near_words import MAX_SPELLED, WordList, nearest_words, word_list
from data_prep.schema import VocabularyConfig
from data_prep.word_forms import ENGLISH, LEAST_LETTERS, has_english_plurals, has_stemmer, stems

RARE_AT_ONCE = 1_000_000  # rare words that are looked up together, about 0.5 GB


def rare_misspellings(
    words: pa.StringArray, counts: np.ndarray, config: VocabularyConfig
) -> dict[str, str]:
    """Words `[n]` too rare to be vocabulary -> the frequent word they are an edit away from.

    The spelling alone decides here: a word that stayed below the minimum has no context to speak of, and it would
    be lost otherwise. Frequent near-spellings ("skirt", "shirt") are left to their contexts.
    """
    if config.spelling_ratio <= 0:
        return {}
    frequent = counts >= config.min_document_frequency
    targets, index = _spelled(words.filter(pa.array(frequent)), counts[frequent], config, 0)
    rare = np.flatnonzero(~frequent)
    found: dict[str, str] = {}
    for begin in range(0, len(rare), RARE_AT_ONCE):
        chosen = rare[begin : begin + RARE_AT_ONCE]
        forms, spelled = _spelled(words.take(pa.array(chosen)), counts[chosen], config, 1)
        near = nearest_words(forms, targets, config.spelling_ratio)
        for form in np.flatnonzero(near >= 0).tolist():
            found[spelled[form]] = index[int(near[form])]
    return found


def near_spellings(
    forms: Mapping[str, int], targets: Mapping[str, int], config: VocabularyConfig
) -> list[tuple[str, str]]:
    """(form, target): the nearest target, then the most frequent, that is `spelling_ratio` times as frequent.

    Plural pairs are no misspellings. (data_prep.near_words)
    """
    names = [pa.array(words, pa.string()) for words in (forms, sorted(targets))]
    counts = [np.array([forms[w] for w in forms], np.int64)]
    counts.append(np.array([targets[w] for w in sorted(targets)], np.int64))
    known, index = _spelled(names[1], counts[1], config, 0)
    asked, spelled = _spelled(names[0], counts[0], config, 1)
    near = nearest_words(asked, known, config.spelling_ratio)
    return [(spelled[f], index[int(t)]) for f, t in enumerate(near.tolist()) if t >= 0]


def plural_pairs(
    phrases: Mapping[str, int], languages: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """(plural, singular) of phrases that are both in the vocabulary, by the last word's ending.

    Args:
      phrases: with their frequency; a singular that is ten times rarer than the plural is none.
      languages: of the phrases; their endings are English where they have none, or one that has such plurals.
    """
    tongues = languages or {}
    pairs = []
    inflected: dict[str, list[str]] = {}
    for phrase, count in phrases.items():
        language = tongues.get(phrase, ENGLISH)
        if has_stemmer(language):
            inflected.setdefault(language, []).append(phrase)
        if not has_english_plurals(language):
            continue
        for target in singular_phrases(phrase):
            if phrases.get(target, 0) * 10 >= count:
                pairs.append((phrase, target))
                break
    for language, found in sorted(inflected.items()):
        pairs += _same_stems(found, phrases, language)
    return pairs


def _same_stems(
    phrases: Sequence[str], counts: Mapping[str, int], language: str
) -> list[tuple[str, str]]:
    """(form, shortest form) of the phrases of one language that differ in the ending of the last word alone."""
    lasts = [phrase.rpartition(" ")[2] for phrase in phrases]
    words = sorted(set(lasts))
    stem = dict(zip(words, stems(words, language), strict=True))
    groups: dict[str, list[str]] = {}
    for phrase, last in zip(phrases, lasts, strict=True):
        if len(last) < LEAST_LETTERS:
            continue
        groups.setdefault(phrase[: len(phrase) - len(last)] + stem[last], []).append(phrase)
    pairs = []
    for forms in groups.values():
        if len(forms) > 1:
            most = max(counts[form] for form in forms)
            base = min(
                (form for form in forms if counts[form] * 10 >= most),
                key=lambda form: (len(form), -counts[form], form),
            )
            pairs += [(form, base) for form in forms if form != base]
    return pairs


def singular_phrases(phrase: str) -> tuple[str, ...]:
    """Possible singulars of a phrase: of its last word."""
    head, space, last = phrase.rpartition(" ")
    return tuple(head + space + word for word in singulars(last))


def singulars(word: str) -> tuple[str, ...]:
    """Possible singulars of a word, likeliest first; empty when it does not end like a plural."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return ()
    forms = [word[:-1]]
    if word.endswith("ies"):
        forms.insert(0, word[:-3] + "y")
    elif word.endswith("ves"):
        forms += [word[:-3] + "f", word[:-3] + "fe"]
    elif word.endswith("es"):
        forms.append(word[:-2])
    return tuple(forms)


def inflections(
    wanted: Mapping[str, Set[str]], corpus: Sequence[str]
) -> dict[tuple[str, str], list[str]]:
    """(language, word) -> the corpus's words that are its plurals, or in other languages share its stem; sorted.

    Args:
      wanted: words by language.
    """
    found: dict[tuple[str, str], set[str]] = {}
    spoken: dict[str, list[str]] = {}
    for language, words in wanted.items():
        if has_english_plurals(language):
            for word in words:
                spoken.setdefault(word, []).append(language)
    for plural in corpus:
        for word in singulars(plural):
            for language in spoken.get(word, ()):
                found.setdefault((language, word), set()).add(plural)
    for language, words in wanted.items():
        if has_stemmer(language):
            for word, form in _stem_pairs(words, corpus, language):
                found.setdefault((language, word), set()).add(form)
    return {key: sorted(forms) for key, forms in found.items()}


def _stem_pairs(words: Set[str], corpus: Sequence[str], language: str) -> Iterator[tuple[str, str]]:
    """(word, word of the corpus) of the same stem. Only what begins alike is stemmed: the stemmer is slow."""
    asked = sorted(word for word in words if len(word) >= LEAST_LETTERS)
    begin = {_begin(word) for word in asked}
    near = [w for w in corpus if len(w) >= LEAST_LETTERS and _begin(w) in begin]
    forms: dict[str, list[str]] = {}
    for form, stem in zip(near, stems(near, language), strict=True):
        forms.setdefault(stem, []).append(form)
    for word, stem in zip(asked, stems(asked, language), strict=True):
        yield from ((word, form) for form in forms.get(stem, ()) if form != word)


def _begin(word: str) -> str:
    """Three letters without their accents: a plural may have an umlaut."""
    if word[:3].isascii():
        return word[:3]
    letters = unicodedata.normalize("NFD", word[:3])
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def resolve(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Form -> last target of its chain; a pair that would close a circle is left out."""
    step: dict[str, str] = {}
    for form, target in pairs:
        end = target
        while end in step:
            end = step[end]
        if end != form and form not in step:
            step[form] = target
    ends = {}
    for form in step:
        end = step[form]
        while end in step:
            end = step[end]
        ends[form] = end
    return ends


def canonical_ids(phrases: Sequence[str], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """`[P] int32`: position of the phrase that each phrase is a form of."""
    place = {phrase: i for i, phrase in enumerate(phrases)}
    target = resolve(pairs)
    return np.array([place[target.get(phrase, phrase)] for phrase in phrases], np.int32)


def edit_distance(a: str, b: str) -> int:
    """Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours."""
    before: list[int] = []
    previous = list(range(len(b) + 1))
    for i in range(1, len(a) + 1):
        current = [i]
        for j in range(1, len(b) + 1):
            substitution = previous[j - 1] + (a[i - 1] != b[j - 1])
            best = min(previous[j] + 1, current[j - 1] + 1, substitution)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, before[j - 2] + 1)
            current.append(best)
        before, previous = previous, current
    return previous[-1]


def _spelled(
    words: pa.StringArray, counts: np.ndarray, config: VocabularyConfig, missing: int
) -> tuple[WordList, list[str]]:
    """The words of letters alone that are long enough to have misspellings; `missing` letters are counted in."""
    lengths = pc.utf8_length(words).to_numpy() + missing
    fits = (lengths >= config.spelling_min_length) & (lengths <= MAX_SPELLED)
    fits &= pc.utf8_is_alpha(words).to_numpy(zero_copy_only=False)
    edits = np.where(lengths >= 2 * config.spelling_min_length, 2, 1)[fits]
    chosen = words.filter(pa.array(fits)).to_pylist()
    return word_list(np.array(chosen, np.str_), counts[fits], edits), chosen
