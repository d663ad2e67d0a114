"""The input's rows as Arrow record batches of one schema.

Every batch has `RECORD_SCHEMA`; a record that cannot be read as configured has a non-empty
`problem` and is rejected by the next stage, never dropped here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.inputs import Piece, RowPlace, column_names, iterate_rows
from data_prep.schema import PrepConfig, TextSourceConfig
from data_prep.text_forms import hashtag_texts, path_words
from vitscale.errors import UserError

TEXT_TYPE = pa.struct(
    [
        ("source", pa.int8()),
        ("weight", pa.float32()),
        ("text", pa.string()),
        ("language", pa.string()),  # BCP 47; null until it is identified
    ]
)
RECORD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image_path", pa.string()),  # as the record has it; one of the two or none is set
        ("image_bytes", pa.binary()),
        ("group", pa.string()),  # records of one group share their split
        ("category", pa.string()),  # of the catalogue; null without a category_field
        ("texts", pa.list_(TEXT_TYPE)),  # every non-empty text, with the index of its source
        ("problem", pa.string()),  # why the record cannot be used; null: it can
    ]
)
SNIFFED_RECORDS = 1000  # in which a configured field must appear once


def check_fields(config: PrepConfig, path: Path) -> None:
    """Raises `UserError` when the file is empty or a configured field is in none of its records."""
    known = dict.fromkeys(column_names(path))
    count = 0
    for _, row in iterate_rows(path, SNIFFED_RECORDS):
        known.update(dict.fromkeys(row))
        count += 1
        if count == SNIFFED_RECORDS:
            break
    if count == 0:
        raise UserError(f"input {path} is empty: it has no records.")
    for name in configured_fields(config):
        if name not in known:
            raise UserError(f"input {path} has no field {name!r}; it has {', '.join(known)}.")


def configured_fields(config: PrepConfig) -> list[str]:
    fields = [config.id_field]
    fields += [name for source in config.sources for name in source.input_fields]
    others = (config.image_field, config.split.group_field, config.category_field)
    fields += [name for name in others if name]
    return list(dict.fromkeys(fields))


def read_batches(config: PrepConfig, file: Path | Piece) -> Iterator[pa.RecordBatch]:
    """Streams the file as record batches of `config.batch_rows` rows in `RECORD_SCHEMA`."""
    fields = configured_fields(config)
    records: list[dict[str, Any]] = []
    for place, row in iterate_rows(file, config.batch_rows, fields):
        records.append(to_record(config, row, RowPlace(file.name, place)))
        if len(records) == config.batch_rows:
            yield pa.RecordBatch.from_pylist(records, schema=RECORD_SCHEMA)
            records = []
    if records:
        yield pa.RecordBatch.from_pylist(records, schema=RECORD_SCHEMA)


def to_record(config: PrepConfig, row: Mapping[str, Any], place: object) -> dict[str, Any]:
    """One input row as a row of `RECORD_SCHEMA`; a row without id gets `place` for its id."""
    raw_id = row.get(config.id_field)
    record: dict[str, Any] = {"id": "" if raw_id is None else _clean(raw_id), "texts": []}
    try:
        if not record["id"]:
            record["id"] = str(place)
            raise ValueError("record has no id")
        group = row.get(config.split.group_field) if config.split.group_field else None
        record["group"] = record["id"] if group is None else _clean(group)
        record["category"] = read_category(config, row)
        if config.image_field:
            record.update(image_value(row.get(config.image_field)))
        for index, source in enumerate(config.sources):
            language = read_language(source, row)
            for text, weight in read_texts(source, row):
                item = {"source": index, "weight": weight, "text": text, "language": language}
                record["texts"].append(item)
    except ValueError as error:
        record["problem"] = str(error)
    return record


def read_texts(source: TextSourceConfig, row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Texts with weights of one source. Empty texts are left out; a wrong type raises ValueError."""
    value = row.get(source.input_field)
    if value is None:
        return []
    if source.kind == "text" and not isinstance(value, (str, int, float)):
        raise ValueError(f"field {source.input_field!r} should be text")
    items = [value] if source.kind == "text" else list(_items(source, value))
    texts = []
    for item, weight in zip(items, _weights(source, row, len(items)), strict=True):
        if source.kind == "weighted_list" and isinstance(item, Mapping):
            weight = item.get(source.weight_key)
            item = item.get(source.text_key)
        amount = _weight(source, weight)
        if item is None:
            continue
        if not isinstance(item, (str, int, float)):
            raise ValueError(f"field {source.input_field!r} should be a list of texts")
        found = [text for text in _in_form(source, _clean(item)) if text.strip()]
        texts += [(text, amount) for text in found if amount > 0]
    return texts


def read_category(config: PrepConfig, row: Mapping[str, Any]) -> str | None:
    """The record's category, None where it has none; a wrong type raises ValueError."""
    value = row.get(config.category_field) if config.category_field else None
    if value is None:
        return None
    if not isinstance(value, (str, int)):
        raise ValueError(f"field {config.category_field!r} should be one category")
    return _clean(value).strip() or None


def read_language(source: TextSourceConfig, row: Mapping[str, Any]) -> str | None:
    """The language that the record says its text is in."""
    value = row.get(source.language_field) if source.language_field else None
    return _clean(value).strip() or None if value is not None else None


def _clean(value: Any) -> str:
    """Text that UTF-8 can hold: JSON may escape half of a surrogate pair, which becomes "?"."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def image_value(value: Any) -> dict[str, Any]:
    """An image cell as `image_path` or `image_bytes` of `RECORD_SCHEMA`; nothing for an empty one."""
    if isinstance(value, Mapping):  # {"bytes", "path"}, as Hugging Face datasets store images
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return {}
    if isinstance(value, bytes):
        return {"image_bytes": value}
    if not isinstance(value, str):
        raise ValueError("image should be a path or bytes")
    return {"image_path": _clean(value)}


def _items(source: TextSourceConfig, value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return value.split(source.separator)
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return value.split(source.separator)
    if not isinstance(value, list):
        raise ValueError(f"field {source.input_field!r} should be a list")
    return value


def _in_form(source: TextSourceConfig, text: str) -> list[str]:
    if source.form == "hashtags":
        return hashtag_texts(text)
    return [path_words(text)] if source.form == "path" else [text]


def _weights(source: TextSourceConfig, row: Mapping[str, Any], count: int) -> Sequence[Any]:
    """What the record's weight field says of each of `count` items, None where it says nothing."""
    value = row.get(source.weight_field) if source.weight_field else None
    if value is None or source.kind == "text":
        return [value] * count
    if isinstance(value, str):
        value = list(_items(source, value))
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(
            f"field {source.weight_field!r} should list a weight for each item of "
            f"{source.input_field!r}"
        )
    return value


def _weight(source: TextSourceConfig, value: Any) -> float:
    name = source.weight_field or source.weight_key
    try:
        number = 1.0 if value is None else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise ValueError(f"{name!r} of field {source.input_field!r} is not a weight")
    if source.weights == "counts":
        return number**source.weight_power
    if number > 1.0:
        raise ValueError(
            f"{name!r} of field {source.input_field!r} is not a confidence from 0 to 1"
        )
    return number
