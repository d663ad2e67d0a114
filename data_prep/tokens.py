"""Words of a column of texts, without a Python object for any of them.

`tokenize_texts` says what `data_prep.text.tokenize` does. Texts whose characters can be handled one by one
(data_prep.characters) are split by compiled code; the others go through `tokenize` itself.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pyarrow as pa

from data_prep.characters import (
    ADDRESS,
    COMPLEX,
    ENTITY,
    HASHTAG,
    IN_WORD,
    MARKUP,
    Characters,
    decode,
    each_character,
    holds_mark,
    properties,
    scan,
)
from data_prep.compiled import compiled
from data_prep.schema_text import TextConfig
from data_prep.spellings import string_buffers
from data_prep.text import SINGLE, normalize, tokenize

SPACE = 32
_NO_LETTER = r"[^\w\x00]|_"
LONGEST = 256  # bytes that a character becomes, at most: emoji have names


def tokenize_texts(texts: pa.Array, config: TextConfig) -> tuple[pa.Array, np.ndarray]:
    """Words of all `texts [n]` (string, no nulls) in order, and how many each text has: `[n] int64`."""
    offsets, data = string_buffers(texts)
    table = load_characters(config)
    told, _ = scan(offsets, data, table.properties)
    slow = told & (COMPLEX | MARKUP | ENTITY | ADDRESS | HASHTAG) != 0
    ends, out, lengths = _split(
        offsets, data, slow, table.properties, table.starts, table.data, LONGEST
    )
    words = pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(out))
    if not slow.any():
        return words, lengths
    others, lengths[slow] = tokenize(texts.filter(pa.array(slow)).to_pylist(), config)
    begins = np.empty(len(texts), np.int64)  # of a text's words in both lists, one after the other
    begins[~slow] = np.cumsum(lengths[~slow]) - lengths[~slow]
    begins[slow] = len(words) + np.cumsum(lengths[slow]) - lengths[slow]
    place = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    return pa.concat_arrays([words, pa.array(others, pa.string())]).take(pa.array(place)), lengths


@cache
def load_characters(config: TextConfig) -> Characters:
    """What each character becomes on the way to words: letters, and spaces where a word begins or ends."""
    text = "\x00".join(each_character(lambda text: normalize(text, config)))
    no_letter = _NO_LETTER
    if config.cjk == "characters":
        text = SINGLE.sub(r" \g<0> ", text)
        no_letter = f"(?!{SINGLE.pattern})(?:{_NO_LETTER})"  # that range has gaps
    told = properties().copy()
    told[[holds_mark(form) for form in text.split("\x00")]] |= COMPLEX
    return Characters.build(told, re.sub(no_letter, " ", text).split("\x00"), LONGEST)


@compiled
def _split(
    offsets: np.ndarray,
    data: np.ndarray,
    skipped: np.ndarray,
    properties: np.ndarray,
    starts: np.ndarray,
    forms: np.ndarray,
    longest: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends of the words `[W + 1] int32` in the bytes that follow, and words of each text, none of a `skipped` one."""
    ends = np.zeros(1024, np.int32)
    out = np.empty(len(data) + longest + 1024, np.uint8)
    lengths = np.zeros(len(offsets) - 1, np.int64)
    words, size = 0, 0
    for text in range(len(lengths)):
        if skipped[text]:
            continue
        at, stop = int(offsets[text]), int(offsets[text + 1])
        before, first = 0, words
        while at < stop:
            code, at = decode(data, at, stop)
            quote = code == 39 or code == 0x2019
            if quote and before & IN_WORD and _is_s(data, at, stop, properties):
                before, at = IN_WORD, at + 1
                continue
            before = properties[code]
            if size + longest > len(out):
                out = _grown(out)
            if words + longest > len(ends):
                ends = _grown(ends)
            for i in range(starts[code], starts[code + 1]):
                if forms[i] != SPACE:
                    out[size] = forms[i]
                    size += 1
                elif size > ends[words]:
                    words += 1
                    ends[words] = size
        if size > ends[words]:
            words += 1
            ends[words] = size
        lengths[text] = words - first
    return ends[: words + 1], out[:size], lengths


@compiled
def _is_s(data: np.ndarray, at: int, stop: int, properties: np.ndarray) -> bool:
    """Whether an "s" stands at `at` that ends a word."""
    if at >= stop or data[at] != 115:
        return False
    if at + 1 >= stop:
        return True
    return properties[decode(data, at + 1, stop)[0]] & IN_WORD == 0


@compiled
def _grown(array: np.ndarray) -> np.ndarray:
    larger = np.empty(2 * len(array), array.dtype)
    larger[: len(array)] = array
    return larger
