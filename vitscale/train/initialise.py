"""Starting from another run's parameters: which ones are taken, how they are made to fit, and what stays fresh."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from vitscale.config import InitConfig
from vitscale.errors import UserError
from vitscale.models.adapt import PATCH_KERNEL, POSITIONS, adapt, compare_shapes
from vitscale.models.multitask import ModelDefinition, define_model
from vitscale.models.weights import find_step, read_description, read_meta, read_params

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class RestoreReport:
    """What became of every parameter and statistic of this model, and of the checkpoint's."""

    checkpoint: Path
    taken: tuple[str, ...]  # as they were, or stacked or unstacked only
    resized: tuple[str, ...]  # "name (16, 32) -> (24, 32)": taken and resampled
    left: tuple[str, ...]  # of this model: they keep their fresh values
    unused: tuple[str, ...]  # of the checkpoint

    def text(self) -> str:
        """A few lines with counts, names in groups."""
        rows = {
            "taken": self.taken,
            "resized": self.resized,
            "left fresh": self.left,
            "not used of the checkpoint": self.unused,
        }
        lines = [
            f"  {what}: {len(names)}{f' ({_grouped(names)})' if names else ''}"
            for what, names in rows.items()
        ]
        return "\n".join([f"parameters from {self.checkpoint}:", *lines])


def initial_params(
    config: InitConfig,
    definition: ModelDefinition,
    shardings: Mapping[str, NamedSharding] | None = None,
) -> tuple[dict[str, Any], RestoreReport]:
    """The variables that `init` takes from another run. Every one of them must be there and fit.

    Layers are stacked or unstacked, and positions and patch kernel resized, to this model's layout and resolution;
    these pass through the host. All others are read straight into their shards.

    Args:
        shardings: where each variable of this model lies; None: on one device.
    """
    folder = find_step(Path(config.checkpoint))
    meta = read_meta(folder)
    model, tasks = read_description(meta)
    theirs = define_model(model, tasks, meta["classes"]).variable_shapes()
    ours = definition.variable_shapes()
    wanted = [name for name in ours if re.search(config.include, name)]
    if not wanted:
        raise UserError(f"init.include={config.include!r} matches no parameter of this model.")
    same_layout = model.scan_layers == definition.config.scan_layers
    direct = _same(wanted, ours, theirs) if same_layout else []
    others = [n for n in theirs if n not in direct and (n in wanted or not same_layout)]
    before = read_params(folder, {name: theirs[name] for name in others})
    after = adapt(before, model, definition.config)
    found = {name: after[name].shape for name in after} | {n: theirs[n].shape for n in direct}
    problems = compare_shapes({n: ours[n].shape for n in wanted}, found)
    if problems:
        raise UserError(
            f"init.checkpoint {folder}: {problems}; narrow init.include, or change the model."
        )
    adapted = {name: after[name] for name in wanted if name not in direct}
    if shardings is not None:
        # From the host: a process may place the shards of its own devices only.
        adapted = {n: _place(np.asarray(v), shardings[n]) for n, v in adapted.items()}
    values = {**adapted, **read_params(folder, {n: ours[n] for n in direct}, shardings)}
    resized = {
        name: f"{name} {before[name].shape} -> {after[name].shape}"
        for name in adapted
        if name in before and not _equal(before[name], after[name])
    }
    left = tuple(name for name in ours if name not in wanted)
    unused = tuple(sorted(set(theirs if same_layout else after) - set(wanted)))
    taken = tuple(name for name in wanted if name not in resized)
    report = RestoreReport(folder, taken, tuple(resized.values()), left, unused)
    return {name: values[name] for name in wanted}, report


def _same(wanted: Iterable[str], ours: Shapes, theirs: Shapes) -> list[str]:
    """What fits as it is: the same name and shape, and nothing that `adapt` may resample in place."""
    return [
        name
        for name in wanted
        if name not in (POSITIONS, PATCH_KERNEL)
        and name in theirs
        and theirs[name].shape == ours[name].shape
    ]


def _equal(a: Any, b: Any) -> bool:
    return a is b or (a.shape == b.shape and bool(np.array_equal(a, b)))


def _place(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _grouped(names: Iterable[str], limit: int = 6) -> str:
    """Patterns such as `backbone/blocks/* 24, backbone/norm/* 2`; lone names are written out."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        groups.setdefault("/".join(parts[:2]), []).append(name)
    shown = [
        members[0] if len(members) == 1 else f"{group}/* {len(members)}"
        for group, members in groups.items()
    ]
    more = f" and {len(shown) - limit} more groups" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more
