"""Words out of hashtags, file names and URLs."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

HASHTAG = re.compile(r"[#＃](\w+)")
_ADDRESS = re.compile(
    r"^\s*(?:[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*|www\.[^/?#]*|(?:[\w-]+\.)+[a-z]{2,}(?=/))"
)
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
_NO_LETTERS = re.compile(r"[\W\d_]+")


def hashtag_texts(text: str) -> list[str]:
    """Each hashtag as words of its own; a text without "#" is one tag.

    "#MidCenturyModern #boho" -> ["Mid Century Modern", "boho"]
    """
    tags = HASHTAG.findall(text) if "#" in text or "＃" in text else [text]
    return [split_camel_case(tag.replace("_", " ")) for tag in tags]


def path_words(text: str) -> str:
    """The words of a file name or URL; scheme, host, query, extension and digits are dropped.

    "https://a.example/p/Sofas/redVelvet-sofa_02.jpg?w=9" -> "p Sofas red Velvet sofa"
    """
    path = re.split(r"[?#]", _ADDRESS.sub("", text), maxsplit=1)[0]
    path = unicodedata.normalize("NFKC", _EXTENSION.sub("", unquote(path)))
    return split_camel_case(_NO_LETTERS.sub(" ", path).strip())


def split_camel_case(text: str) -> str:
    """Spaces where words begin: a capital after a small letter, the last of an acronym ("DIYHome" -> "DIY Home")."""
    if text.islower() or text.isupper():
        return text
    pieces = []
    start = 0
    for i in range(1, len(text)):
        begins = text[i].isupper() and text[i - 1].islower()
        ends = (
            i + 1 < len(text)
            and text[i - 1].isupper()
            and text[i].isupper()
            and text[i + 1].islower()
        )
        if begins or ends:
            pieces.append(text[start:i])
            start = i
    return " ".join([*pieces, text[start:]])
