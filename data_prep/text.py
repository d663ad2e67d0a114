"""From raw text to words: Unicode normalised, markup and addresses of pages stripped."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

SEPARATOR = "\x00"  # between the texts of one batch; never part of a word
_MARKUP = re.compile(r"<[/!a-zA-Z][^<>\x00]*>")
_URL = re.compile(r"(?:https?://|www\.)[^\s\x00<>\"]+", re.IGNORECASE)
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")
_WORD = re.compile(r"\x00|[^\W_]+")


def tokenize(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Words of all texts in order, and how many each text has: `[len(texts)] int64`.

    NFKC, casefold, HTML tags and entities, URLs and possessive 's removed; a word is a run of
    letters and digits. The whole batch is one string meanwhile, so that every step is one call
    into C; no step looks across the separator.
    """
    if not texts:
        return [], np.zeros(0, np.int64)
    joined = SEPARATOR.join(text.replace(SEPARATOR, " ") for text in texts)
    words = _WORD.findall(normalize(joined))
    is_separator = np.fromiter((word == SEPARATOR for word in words), bool, len(words))
    bounds = np.flatnonzero(is_separator)
    edges = np.concatenate([[-1], bounds, [len(words)]])
    lengths = np.diff(edges) - 1
    return [word for word in words if word != SEPARATOR], lengths.astype(np.int64)


def normalize(text: str) -> str:
    """NFKC and casefold (the Unicode NFKC_Casefold idea), without tags, entities and URLs."""
    text = _URL.sub(" ", _MARKUP.sub(" ", text))
    text = _POSSESSIVE.sub("", html.unescape(text))
    # Case folding can undo the composition ("ŉ"), so it is normalised again.
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)
