"""Which surface forms are one phrase: plurals of a singular, misspellings of a frequent word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from data_prep.schema import VocabularyConfig

# Letters of a word that is looked up: a word of n has n * n / 2 spellings with two letters deleted, and a text of
# megabytes can be one word.
MAX_SPELLED = 40


def rare_misspellings(counts: Mapping[str, int], config: VocabularyConfig) -> dict[str, str]:
    """Words too rare to be vocabulary -> the frequent word they are an edit away from.

    The spelling alone decides here: a word that stayed below the minimum has no context to speak of, and it would
    be lost otherwise. Frequent near-spellings ("skirt", "shirt") are left to their contexts.
    """
    if config.spelling_ratio <= 0:
        return {}
    frequent = {w: c for w, c in counts.items() if c >= config.min_document_frequency}
    rare = {w: c for w, c in counts.items() if c < config.min_document_frequency}
    return dict(near_spellings(rare, frequent, config))


def near_spellings(
    forms: Mapping[str, int], targets: Mapping[str, int], config: VocabularyConfig
) -> list[tuple[str, str]]:
    """(form, target): the nearest target, then the most frequent, that is `spelling_ratio` times as frequent.

    Candidates share a word after deleting up to one (two for long words) letters from each (SymSpell); the edit
    distance counts insertions, deletions, substitutions and swaps of neighbours. Plural pairs are no misspellings.
    """
    index: dict[str, list[str]] = {}
    for target in targets:
        if _edits(target, config) and target.isalpha():
            for key in deletions(target, _edits(target, config)):
                index.setdefault(key, []).append(target)
    pairs = []
    for form, count in forms.items():
        edits = _edits(form + "?", config)  # a letter may be missing
        if not edits or not form.isalpha():
            continue
        best: tuple[int, int, str] | None = None
        near = dict.fromkeys(t for key in deletions(form, edits) for t in index.get(key, ()))
        for target in near:
            if target == form or targets[target] < config.spelling_ratio * count:
                continue
            if target in singulars(form) or form in singulars(target):
                continue
            distance = edit_distance(form, target)
            if distance <= min(edits, _edits(target, config)):
                best = min(best or (99, 0, ""), (distance, -targets[target], target))
        if best is not None:
            pairs.append((form, best[2]))
    return pairs


def plural_pairs(phrases: Mapping[str, int]) -> list[tuple[str, str]]:
    """(plural, singular) of phrases that are both in the vocabulary, by the last word's ending (English)."""
    pairs = []
    for phrase, count in phrases.items():
        for target in singular_phrases(phrase):
            if phrases.get(target, 0) * 10 >= count:
                pairs.append((phrase, target))
                break
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


def deletions(word: str, count: int) -> set[str]:
    """The word and everything that deleting up to `count` letters makes of it."""
    found = level = {word}
    for _ in range(count):
        level = set(_one_less(level))
        found = found | level
    return found


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


def _edits(word: str, config: VocabularyConfig) -> int:
    if not config.spelling_min_length <= len(word) <= MAX_SPELLED:
        return 0
    return 2 if len(word) >= 2 * config.spelling_min_length else 1


def _one_less(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        for i in range(len(word)):
            yield word[:i] + word[i + 1 :]
