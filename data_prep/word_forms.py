"""What depends on the language of a phrase: its stop words, and which of its words' endings are plurals.

Languages are BCP 47 tags, of which the first part counts ("pt" of "pt-BR").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from data_prep.schema_text import TextConfig
from data_prep.text import tokenize
from vitscale.errors import UserError

_STOP_WORDS = """
a about above after all also am an and any are as at be been but by can could do does for from get had has have he
her here hers him his how i if in into is it its just like me more most my new no nor not now of off on once only or
other our ours out over own per she so some such than that the their them then there these they this those through to
too under until up upon us use very via was we were what when where which while who whom why will with within without
would you your yours
"""
# English, of every text: product texts mix it in. The package's English list has "man", "room" and "thin" too.
STOP_WORDS = frozenset(_STOP_WORDS.split())
ENGLISH = "en"
_SAME_LIST = {"no": "nb", "nn": "nb", "gl": "pt"}  # that a language without a list reads
_STEMMERS = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "nb": "norwegian",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "norwegian",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}
# Whose plurals end in an s, as English ones do, at least those of borrowed words
_ENGLISH_LIKE = frozenset(("en", "ca", "de", "es", "fr", "gl", "nl", "oc", "pt"))
LEAST_LETTERS = 4  # of a word that has forms: Spanish "mes" (month) is none of "mesa" (table)


def primary(language: str) -> str:
    """The language of a tag, without region or script."""
    return language.partition("-")[0].lower()


@cache
def stop_words(language: str, text: TextConfig) -> frozenset[str]:
    """The stop words of a language besides `STOP_WORDS`, as texts spell them; none where no list is known."""
    try:
        import stop_words as package
    except ModuleNotFoundError as error:
        raise UserError(
            f"vocabulary.language_stop_words needs {error.name}, which is not installed: "
            "pip install 'vitscale[prep]'."
        ) from error
    name = _SAME_LIST.get(language, language)
    if name == ENGLISH or name not in package.LANGUAGE_MAPPING:
        return frozenset()
    words, lengths = tokenize(package.get_stop_words(name), text)
    starts = lengths.cumsum() - lengths
    return frozenset(
        words[i] for i, n in zip(starts.tolist(), lengths.tolist(), strict=True) if n == 1
    )


def has_english_plurals(language: str) -> bool:
    """Whether an English ending tells plurals: in some languages, and where nobody knows the language."""
    return primary(language) in _ENGLISH_LIKE or len(primary(language)) != 2


def has_stemmer(language: str) -> bool:
    return primary(language) in _STEMMERS


def stems(words: Sequence[str], language: str) -> list[str]:
    """The stem of each word (Snowball), in a language that `has_stemmer`."""
    try:
        import snowballstemmer
    except ModuleNotFoundError as error:
        raise UserError(
            f"vocabulary.fold_plurals needs {error.name} for {language!r}, which is not installed: "
            "pip install 'vitscale[prep]'."
        ) from error
    found: list[str] = snowballstemmer.stemmer(_STEMMERS[primary(language)]).stemWords(list(words))
    return found
