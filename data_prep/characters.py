"""What each character of Unicode is to this package, as tables that compiled code reads.

Almost every text is made of characters that can be handled one by one: what becomes of them does not depend on their
neighbours. `scan` finds the other texts, which take the way of strings and patterns (data_prep.text). The tables are
made by that way itself, a character at a time, so that both agree.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from data_prep.compiled import compiled
from data_prep.text import is_invisible

_JAMO = re.compile("[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")
CODES = 0x20000  # characters that have an entry: all but rare ideographs, tags and private use

# Properties of a character, and of a text that holds one
COMPLEX = 1  # is not handled alone: marks, joiners, Hangul's parts, what is past CODES
IN_WORD = 2  # \w
UPPER = 4  # str.isupper
CASED = 8  # lower or title case
DIGIT = 16  # one that \d matches, here or in its compatibility form
AT = 32  # "@", here or in its compatibility form
BRACKET = 64  # one that opens, likewise
MARKUP = 128  # <
ADDRESS = 256  # "://", "www." or the end of a domain
HASHTAG = 512
WIDE = 1024  # is not ASCII
ENTITY = 2048  # & that may begin one
UNSTABLE = 4096  # is not in NFC


@dataclass(frozen=True)
class Characters:
    """By code point: its properties, and the UTF-8 bytes that it becomes."""

    properties: np.ndarray  # [CODES] uint16
    starts: np.ndarray  # [CODES + 1] int32: of its bytes in `data`
    data: np.ndarray  # uint8

    @staticmethod
    def build(told: np.ndarray, forms: list[str], longest: int) -> Characters:
        """Of properties and forms, `[CODES]` each; a form has at most `longest` bytes."""
        encoded = [form.encode() for form in forms]
        assert max(map(len, encoded)) <= longest
        starts = np.zeros(CODES + 1, np.int32)
        np.cumsum([len(form) for form in encoded], out=starts[1:])
        return Characters(told, starts, np.frombuffer(b"".join(encoded), np.uint8))


@cache
def properties() -> np.ndarray:
    """`[CODES] uint16`."""
    found = np.zeros(CODES, np.uint16)
    for code, form in enumerate(each_character(lambda text: unicodedata.normalize("NFKC", text))):
        c = chr(code)
        told = WIDE if code > 127 else 0
        told |= IN_WORD if c.isalnum() or c == "_" else 0
        told |= UPPER if c.isupper() else CASED if c.islower() or c.istitle() else 0
        if is_invisible(c) or holds_mark(c + form) or 0xD800 <= code < 0xE000:
            told |= COMPLEX
        told |= UNSTABLE if unicodedata.normalize("NFC", c) != c else 0
        told |= DIGIT if any(x.isdecimal() for x in form) else 0
        told |= AT if "@" in form else 0
        told |= BRACKET if any(x in "[({" for x in form) else 0
        told |= MARKUP if c == "<" else HASHTAG if c in "#＃" else 0
        found[code] = told
    return found


def each_character(function: Callable[[str], str]) -> list[str]:
    """What `function`, which must not look across "\\0", makes of every character; halves of pairs are "?"."""
    codes = (chr(code) if not 0xD800 <= code < 0xE000 else "?" for code in range(1, CODES))
    forms = function("\x00".join(codes)).split("\x00")
    assert len(forms) == CODES - 1
    return [" ", *forms]


def scan(
    offsets: np.ndarray, data: np.ndarray, told: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Properties of each text `[n] int32`: those of its characters, joined; and its number of digits `[n] int64`.

    Args:
      offsets, data: of UTF-8 texts, as of `string_buffers`.
      told: `[CODES]`, what is known of each character; default: `properties()`.
    """
    return _scan(offsets, data, properties() if told is None else told)


def replace(texts: pa.Array, chosen: np.ndarray, by: pa.Array) -> pa.Array:
    """`texts` with `by [chosen.sum()]` in the places that are `chosen [n] bool`."""
    if not chosen.any():
        return texts
    place = np.arange(len(texts))
    place[chosen] = len(texts) + np.arange(len(by))
    return pa.concat_arrays([texts, by]).take(pa.array(place))


def holds_mark(text: str) -> bool:
    """Whether a character may join its neighbour: a mark, or a part of a Hangul syllable."""
    return not text.isascii() and any(
        unicodedata.category(c)[0] == "M" or _JAMO.match(c) is not None for c in text
    )


@compiled
def decode(data: np.ndarray, at: int, stop: int) -> tuple[int, int]:
    """Code point of the UTF-8 character at `at`, and where the next begins; `CODES` for one past the tables."""
    first = int(data[at])
    if first < 0x80:
        return first, at + 1
    size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if at + size > stop:
        return CODES, stop
    code = first & (0x7F >> size)
    for i in range(1, size):
        code = code << 6 | int(data[at + i]) & 0x3F
    return min(code, CODES), at + size


@compiled
def _scan(
    offsets: np.ndarray, data: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    found = np.zeros(len(offsets) - 1, np.int32)
    digits = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(found)):
        at, stop = int(offsets[text]), int(offsets[text + 1])
        told, count = 0, 0
        while at < stop:
            begin = at
            code, at = decode(data, at, stop)
            if code >= CODES:
                told |= COMPLEX | WIDE
                continue
            told |= table[code]
            count += (table[code] & DIGIT) != 0
            if code == 38 or code == 58 or code == 46:  # & : .
                told |= _special(data, begin, stop)
        found[text], digits[text] = told, count
    return found, digits


@compiled
def _special(data: np.ndarray, at: int, stop: int) -> int:
    """What begins with the &, : or . that is at `at`, or ends with it."""
    if data[at] == 38:
        after = data[at + 1] if at + 1 < stop else 32
        return 0 if after in (9, 10, 12, 32, 59) else ENTITY  # as html.unescape has it
    if data[at] == 58:
        return ADDRESS if at + 2 < stop and data[at + 1] == 47 and data[at + 2] == 47 else 0
    if (
        at >= 3
        and data[at - 1] | 32 == 119
        and data[at - 2] | 32 == 119
        and data[at - 3] | 32 == 119
    ):
        return ADDRESS  # www.
    if at + 3 >= stop:
        return 0
    a, b, c = data[at + 1], data[at + 2], data[at + 3]
    com = a == 99 and b == 111 and c == 109
    net = a == 110 and b == 101 and c == 116
    org = a == 111 and b == 114 and c == 103
    return ADDRESS if com or net or org else 0
