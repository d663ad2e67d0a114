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

from data_prep.compiled import compiled
from data_prep.matching import list_offsets
from data_prep.schema_text import LanguageConfig
from data_prep.spellings import string_buffers
from data_prep.text import SEPARATOR, join_texts, plain_text
from vitscale.errors import UserError

MAX_CHARACTERS = 500  # of a text that are looked at; more change nothing
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
    plain = unicodedata.normalize("NFC", plain_text(join_texts(texts))).split(SEPARATOR)
    short = [text[:MAX_CHARACTERS] for text in plain]
    lower = pa.array([text.lower() if text.isupper() else text for text in short], pa.string())
    best, confidence = _classify(
        *string_buffers(lower),
        group,
        model.next_state,
        model.row,
        model.feature,
        model.weights,
        model.prior,
        model.label_of,
    )
    return [model.labels[i] for i in best], confidence


def identify_batch(batch: pa.RecordBatch, config: LanguageConfig) -> pa.RecordBatch:
    """A `RECORD_SCHEMA` batch whose texts all have a language: what they come with, or what is identified."""
    texts = batch.column("texts")
    items = texts.flatten()
    fields = {field.name: items.field(field.name) for field in items.type}
    record = np.repeat(np.arange(batch.num_rows), np.diff(list_offsets(texts)))
    given = fields["language"].to_pylist()
    if config.identify and not all(given):
        found = _identify_sources(
            fields["text"].to_pylist(), record, fields["source"].to_numpy(), config
        )
    else:
        found = [config.default] * len(given)
    chosen = [tag or other for tag, other in zip(given, found, strict=True)]
    fields["language"] = pa.array(chosen, pa.string())
    structs = pa.StructArray.from_arrays(list(fields.values()), fields=list(items.type))
    lists = pa.ListArray.from_arrays(pa.array(list_offsets(texts), pa.int32()), structs)
    column = batch.schema.get_field_index("texts")
    return batch.set_column(column, batch.schema.field(column), lists)


def _identify_sources(
    texts: list[str], record: np.ndarray, source: np.ndarray, config: LanguageConfig
) -> list[str]:
    """Language of each text: of its source in its record, else of the record, else the default."""
    model = load_model(config.languages)
    chosen = [config.default] * len(texts)
    for key in (record, record * 256 + source):  # what is known more closely overwrites
        group = np.cumsum(np.diff(key, prepend=key[:1]) != 0)
        languages, confidence = identify(texts, group, model)
        for text, index in enumerate(group):
            if confidence[index] >= config.min_confidence and languages[index] != NO_LANGUAGE:
                chosen[text] = languages[index]
    return chosen


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
    text = 0
    while text < len(group):
        stop = text
        while stop < len(group) and group[stop] == group[text]:
            stop += 1
        found = _walk(offsets[text : stop + 1], data, next_state, row, feature)
        found.sort()
        scores = prior.copy() if len(found) else np.zeros_like(prior)
        i = 0
        while i < len(found):
            j = i
            while j < len(found) and found[j] == found[i]:
                j += 1
            scores += np.float32(math.log1p(j - i)) * weights[found[i]]
            i = j
        # The library's temperature, which keeps the probabilities calibrated whatever the length.
        scores /= np.float32(math.sqrt(max(offsets[stop] - offsets[text], 1)))
        likely = np.exp(scores - scores.max())
        total = np.zeros(label_of.max() + 1, np.float32)
        for c in range(len(likely)):
            total[label_of[c]] += likely[c]
        best[group[text]] = total.argmax()
        confidence[group[text]] = total.max() / total.sum()
        text = stop
    return best, confidence


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
