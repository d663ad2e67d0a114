"""From what a data set stores as a label to ids in the classes of a run."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from vitscale.data.records import BadExample, Labels
from vitscale.errors import UserError

SEPARATOR = "|"  # a cell "red|blue" holds two labels
NO_LABELS = Labels.of([])
UNLABELLED = -1  # what TFDS and Hugging Face data sets write as the class of an unlabelled example

# What a source brings to a field's classes: a list in its own numbering, or a set of values that have none.
Classes = Mapping[str, list[str] | set[str]]


@dataclass(frozen=True)
class NameEncoder:
    """Labels stored as text. A value that the run has no class for is not a label."""

    ids: Mapping[str, int]

    @staticmethod
    def of(names: Sequence[str]) -> NameEncoder:
        return NameEncoder({name: i for i, name in enumerate(names)})

    def __call__(self, cell: object) -> Labels:
        found = [self.ids[value] for value in split_cell(cell) if value in self.ids]
        return Labels.of(found) if found else NO_LABELS

    def count_unknown(self, cell: object) -> int:
        return sum(value not in self.ids for value in split_cell(cell))


@dataclass(frozen=True)
class IdEncoder:
    """Labels stored as numbers of the source's own classes, renumbered to those of the run."""

    new_ids: Int[np.ndarray, " C"]  # int64, -1 where the run has no such class

    @staticmethod
    def of(stored: Sequence[str], wanted: Sequence[str]) -> IdEncoder:
        ids = {name: i for i, name in enumerate(wanted)}
        return IdEncoder(np.array([ids.get(name, -1) for name in stored], np.int64))

    @functools.cached_property
    def knows_all(self) -> bool:
        return bool((self.new_ids >= 0).all())

    @functools.cached_property
    def changes_nothing(self) -> bool:
        return bool((self.new_ids == np.arange(len(self.new_ids))).all())

    def __call__(self, stored: Labels) -> Labels:
        """Raises `BadExample` for a number outside of the source's own classes."""
        numbers = stored.ids.tolist()  # a few: Python's min and max are faster than NumPy's
        if not numbers:
            return stored
        if min(numbers) < 0 or max(numbers) >= len(self.new_ids):
            raise BadExample("label out of range")
        if self.changes_nothing:
            return stored
        ids = self.new_ids[stored.ids]
        known = ids >= 0
        return Labels(ids[known], stored.weights[known])

    def count_unknown(self, stored: Labels) -> int:
        """Labels whose class the run lacks; numbers out of range are not labels of any class."""
        inside = stored.ids[(stored.ids >= 0) & (stored.ids < len(self.new_ids))]
        return int((self.new_ids[inside] < 0).sum())


def of_class_numbers(value: object) -> Labels:
    """One class number or several, of a ClassLabel feature; -1 stands for "not labelled"."""
    ids = np.atleast_1d(np.asarray(value, np.int64))
    return Labels.of(ids[ids != UNLABELLED])


def split_cell(cell: object) -> list[str]:
    """The labels in a cell, without repetition, in the order they are written.

    Text may hold several, separated by "|"; a list holds one an entry; a number is the name of its class.
    """
    if cell is None:
        return []
    parts = cell.split(SEPARATOR) if isinstance(cell, str) else cell
    if not isinstance(parts, list | tuple):
        parts = [parts]
    values = (str(part).strip() for part in parts if part is not None)
    return list(dict.fromkeys(value for value in values if value))


def distinct_values(cells: pa.ChunkedArray) -> set[str]:
    """Every label that a column holds."""
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        cells = pc.list_flatten(cells)
        return {value for cell in pc.unique(cells).to_pylist() for value in split_cell([cell])}
    return {value for cell in pc.unique(cells).to_pylist() for value in split_cell(cell)}


def sorted_values(values: Iterable[str]) -> list[str]:
    """As numbers if all of them are integers, else as text."""
    values = list(values)
    try:
        return sorted(values, key=lambda value: (int(value), value))
    except ValueError:
        return sorted(values)


def classes_of(
    classes: Mapping[str, Sequence[str]], fields: Iterable[str], source: str
) -> dict[str, Sequence[str]]:
    """The classes of the fields that a source reads."""
    for field in fields:
        if field not in classes:
            raise UserError(
                f"source {source} reads the label field {field!r}, but there are classes only for "
                f"{', '.join(classes) or 'no field'}."
            )
    return {field: classes[field] for field in fields}


def require(names: Iterable[str | None], known: Iterable[str], where: str, what: str) -> None:
    """Raises `UserError` with the nearest name for the first of `names` that is not known."""
    known = list(known)
    for name in names:
        if name is not None and name not in known:
            raise UserError(f"{where} has no {what} {name!r}: {nearest(name, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    if not known:
        return "it has none."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"it has {', '.join(known)}." + "".join(f" Did you mean {n!r}?" for n in near)
