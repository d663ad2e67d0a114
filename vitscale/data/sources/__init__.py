"""Where examples come from: one interface over shards, tables, archives and data sets of other libraries.

`collect_classes` decides the class ids of a run; `open_source` opens one source with its labels mapped to those ids, so
that sources with different vocabularies mix, and a checkpoint's classes can be evaluated on other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitscale.config import SourceConfig
from vitscale.data.sources.base import Source
from vitscale.data.sources.guess import available_fields, guess_source, module_of
from vitscale.data.sources.labels import sorted_values
from vitscale.errors import UserError

__all__ = ["Source", "available_fields", "collect_classes", "guess_source", "open_source"]


def collect_classes(configs: Sequence[SourceConfig], root: str) -> dict[str, list[str]]:
    """The class names of every label field over all sources; a label's id is its place in the list.

    Sources with a numbering of their own (shards, ClassLabel features) keep it. Columns of names bring their distinct
    values in the rows of the source's split, sorted (as numbers if all of them are integers), after those.
    """
    classes: dict[str, list[str]] = {}
    values: dict[str, set[str]] = {}
    for config in configs:
        for field, names in module_of(config, root).read_classes(config, root).items():
            if isinstance(names, set):
                values.setdefault(field, set()).update(names)
                continue
            known = classes.setdefault(field, [])
            if known[: len(names)] != names[: len(known)]:
                raise UserError(
                    f"{config.path} and an earlier source number the classes of {field!r} "
                    "differently; write both with the same vocabulary."
                )
            known.extend(names[len(known) :])
    for field, found in values.items():
        known = classes.setdefault(field, [])
        known.extend(sorted_values(found - set(known)))
    return classes


def open_source(config: SourceConfig, root: str, classes: Mapping[str, Sequence[str]]) -> Source:
    """Opens a source, its labels mapped to ids in `classes` (of this run, or of a checkpoint).

    A value that its field's classes lack is not a label; `source.unknown_labels` counts those. Raises `UserError` for
    missing files and columns, an empty split, duplicate ids, and a field that `classes` does not have.
    """
    return module_of(config, root).open_source(config, root, classes)
