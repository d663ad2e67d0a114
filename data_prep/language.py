"""Which language a text is in: py3langid's model (naive Bayes over byte n-grams), a batch at a time.

The library walks one text at a time in Python; the same walk compiled takes a batch. `tests/data_prep` holds the two
against each other. A source's texts are judged together, for a title alone is short; where that leaves doubt the
whole record decides.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.characters import (
    ADDRESS,
    CASED,
    COMPLEX,
    ENTITY,
    MARKUP,
    UNSTABLE,
    UPPER,
    WIDE,
    decode,
    properties,
    replace,
    scan,
)
from data_prep.compiled import compiled
from data_prep.matching import list_offsets
from data_prep.schema_text import LanguageConfig
from data_prep.spellings import string_buffers
from data_prep.text import SEPARATOR, join_texts, plain_text
from vitscale.errors import UserError

MAX_CHARACTERS = 500  # of a text that are looked at; more change nothing
SPACE = 32
NO_LANGUAGE = "zxx"  # the model's word for "no linguistic content"


@dataclass(frozen=True)
class LanguageModel:
    """A finite automaton that finds F features in bytes, and their log-probability in each of C classes."""

    labels: tuple[str, ...]
    label_of: np.ndarray  # [C] int64: several classes (scripts) can be one label
    next_state: np.ndarray  # [R * 256] uint32
    row: np.ndarray  # [S] int64: where a state's 256 next states begin
    feature: np.ndarray  # [S] int64: found on arrival, or -1
    weights: np.ndarray  # [F, C] float32
    prior: np.ndarray  # [C] float32


@cache
def load_model(languages: tuple[str, ...]) -> LanguageModel:
    """py3langid's model for `languages`, or for all that it knows."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as error:
        raise UserError(
            f"language.identify needs {error.name}, which is not installed: pip install 'vitscale[prep]'."
        ) from error
    library = LanguageIdentifier.from_model_file(MODEL_FILE)
    if unknown := sorted(set(languages) - set(library.labels)):
        raise UserError(
            f"language.languages: {unknown[0]!r} is none of {', '.join(sorted(library.labels))}."
        )
    library.set_languages(languages or None)
    labels = tuple(library.labels)
    return LanguageModel(
        labels,
        np.array([labels.index(name) for name in library.nb_classes], np.int64),
        np.asarray(library.tk_nextmove),
        np.asarray(library.tk_row).astype(np.int64) << 8,
        np.asarray(library.tk_output).astype(np.int64),
        np.ascontiguousarray(library.nb_ptc, np.float32),
        np.asarray(library.nb_pc, np.float32),
    )


def identify(
    texts: list[str], group: np.ndarray, model: LanguageModel
) -> tuple[list[str], np.ndarray]:
    """The likeliest language of each group of texts, and its probability `[G] float32`.

    Args:
      group: `[len(texts)] int64`: 0, 1, 2, ... ascending.
    """
    if not texts:
        return [], np.zeros(0, np.float32)
    best, confidence = _identify(readable(pa.array(texts, pa.string())), group, model)
    return [model.labels[i] for i in best], confidence


def readable(texts: pa.Array) -> pa.Array:
    """The texts as the model reads them: plain, in NFC, no longer than it takes, none in capitals alone."""
    told, _ = scan(*string_buffers(texts))
    slow = told & (COMPLEX | MARKUP | ENTITY | ADDRESS | UNSTABLE) != 0
    offsets, data, again = _copy(*string_buffers(texts), slow, properties(), MAX_CHARACTERS)
    copied = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(data))
    slow |= again
    if not slow.any():
        return copied
    joined = join_texts(texts.filter(pa.array(slow)).to_pylist())
    plain = unicodedata.normalize("NFC", plain_text(joined)).split(SEPARATOR)
    short = [text[:MAX_CHARACTERS] for text in plain]
    lower = pa.array([text.lower() if text.isupper() else text for text in short], pa.string())
    return replace(copied, slow, lower)


def _identify(
    texts: pa.Array, group: np.ndarray, model: LanguageModel
) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of each group of `readable` texts: `[G]` int64, float32."""
    return _classify(
        *string_buffers(texts),
        group,
        model.next_state,
        model.row,
        model.feature,
        model.weights,
        model.prior,
        model.label_of,
    )


def identify_batch(batch: pa.RecordBatch, config: LanguageConfig) -> pa.RecordBatch:
    """A `RECORD_SCHEMA` batch whose texts all have a language: what they come with, or what is identified."""
    texts = batch.column("texts")
    items = texts.flatten()
    fields = {field.name: items.field(field.name) for field in items.type}
    record = np.repeat(np.arange(batch.num_rows), np.diff(list_offsets(texts)))
    if fields["language"].null_count or pc.any(pc.equal(fields["language"], "")).as_py():
        found = pa.scalar(config.default)
        if config.identify:
            source = fields["source"].to_numpy()
            found = _identify_sources(fields["text"], record, source, config)
        given = pc.fill_null(pc.not_equal(fields["language"], ""), False)
        fields["language"] = pc.if_else(given, fields["language"], found)
    structs = pa.StructArray.from_arrays(list(fields.values()), fields=list(items.type))
    lists = pa.ListArray.from_arrays(pa.array(list_offsets(texts), pa.int32()), structs)
    column = batch.schema.get_field_index("texts")
    return batch.set_column(column, batch.schema.field(column), lists)


def _identify_sources(
    texts: pa.Array, record: np.ndarray, source: np.ndarray, config: LanguageConfig
) -> pa.Array:
    """Language of each text: of its source in its record, else of the record, else the default."""
    model = load_model(config.languages)
    labels = pa.array([*model.labels, config.default], pa.string())
    plain = readable(texts)
    chosen = _sure(plain, record * 256 + source, model, config)
    doubted = np.isin(record, record[chosen < 0])
    of_record = _sure(plain.filter(pa.array(doubted)), record[doubted], model, config)
    chosen[doubted] = np.where(chosen[doubted] >= 0, chosen[doubted], of_record)
    return labels.take(pa.array(np.where(chosen >= 0, chosen, len(model.labels))))


def _sure(
    texts: pa.Array, key: np.ndarray, model: LanguageModel, config: LanguageConfig
) -> np.ndarray:
    """Label of each of the `texts [n]`, identified with those beside it that share its `key [n]`; -1 in doubt."""
    if len(texts) == 0:
        return np.zeros(0, np.int64)
    group = np.cumsum(np.diff(key, prepend=key[:1]) != 0)
    label, confidence = _identify(texts, group, model)
    said = np.array([name != NO_LANGUAGE for name in model.labels])
    return np.where((confidence >= config.min_confidence) & said[label], label, -1)[group]


@compiled
def _classify(
    offsets: np.ndarray,
    data: np.ndarray,
    group: np.ndarray,
    next_state: np.ndarray,
    row: np.ndarray,
    feature: np.ndarray,
    weights: np.ndarray,
    prior: np.ndarray,
    label_of: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    groups = group[-1] + 1
    best, confidence = np.zeros(groups, np.int64), np.zeros(groups, np.float32)
    damped = np.array([np.float32(math.log1p(count)) for count in range(64)])
    scores, total = np.empty_like(prior), np.empty(label_of.max() + 1, np.float32)
    text = 0
    while text < len(group):
        stop = text
        while stop < len(group) and group[stop] == group[text]:
            stop += 1
        found = _walk(offsets[text : stop + 1], data, next_state, row, feature)
        found.sort()
        scores[:] = 0
        if len(found):
            scores[:] = prior
        i = 0
        while i < len(found):
            j = i
            while j < len(found) and found[j] == found[i]:
                j += 1
            told = damped[j - i] if j - i < len(damped) else np.float32(math.log1p(j - i))
            _add(scores, told, weights[found[i]])
            i = j
        # The library's temperature, which keeps the probabilities calibrated whatever the length.
        scores /= np.float32(math.sqrt(max(offsets[stop] - offsets[text], 1)))
        likely = np.exp(scores - scores.max())
        total[:] = 0
        for c in range(len(likely)):
            total[label_of[c]] += likely[c]
        best[group[text]] = total.argmax()
        confidence[group[text]] = total.max() / total.sum()
        text = stop
    return best, confidence


@compiled
def _add(scores: np.ndarray, factor: np.float32, row: np.ndarray) -> None:
    for c in range(len(scores)):
        scores[c] += factor * row[c]


@compiled
def _walk(
    offsets: np.ndarray,
    data: np.ndarray,
    next_state: np.ndarray,
    row: np.ndarray,
    feature: np.ndarray,
) -> np.ndarray:
    """Features of the texts between `offsets`, each as often as it occurs."""
    found = np.empty(offsets[-1] - offsets[0], np.int64)
    count = 0
    for text in range(len(offsets) - 1):
        state = np.int64(0)
        for i in range(offsets[text], offsets[text + 1]):
            state = np.int64(next_state[row[state] + data[i]])
            if feature[state] >= 0:
                found[count] = feature[state]
                count += 1
    return found[:count]


@compiled
def _copy(
    offsets: np.ndarray, data: np.ndarray, skipped: np.ndarray, told: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets and bytes of texts whose characters stand alone; and those in capitals that are not ASCII.

    Texts in capitals are in lower case there.
    """
    ends = np.zeros(len(offsets), np.int32)
    out = np.empty(offsets[-1] - offsets[0], np.uint8)
    again = np.zeros(len(offsets) - 1, np.bool_)
    size = 0
    for text in range(len(again)):
        first = size
        at, stop = int(offsets[text]), int(offsets[text + 1])
        count, seen = 0, 0
        while at < stop and count < longest and not skipped[text]:
            begin = at
            code, at = decode(data, at, stop)
            seen |= told[code]
            for i in range(begin, at):
                out[size] = data[i] if data[i] else SPACE
                size += 1
            count += 1
        if seen & UPPER and not seen & CASED:
            again[text] = seen & WIDE != 0
            for i in range(first, size):
                out[i] += SPACE if 65 <= out[i] <= 90 else 0
        ends[text + 1] = size
    return ends, out[:size], again
