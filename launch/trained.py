"""Has a training run reached its end, and with the config that is asked for? Read from what the run itself left.

Without jax, which would cost a sweep seconds and memory: so `last_step` is here once more, and a test
holds it to the trainer's (tests/launch/test_sweep.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vitscale.config import FREE_KEYS

# Parts that a run resolves by looking at data, tasks and checkpoints: `config.json` then has more than was asked for.
RESOLVED = (
    "tasks",
    "teachers",
    "data.sources",
    "validation.sources",
    "optim.rules",
    "init.classifiers",
)


def why_unfinished(workdir: Path, config: Mapping[str, Any], changed: Collection[str]) -> str:
    """A sentence, or "" when the run is done: its last checkpoint is of its last step, and of this config.

    Args:
        config: the plain tree before anything is resolved.
        changed: keys that count although a run may change them, such as `data.root` in a study of data.
    """
    found = read_config(workdir)
    if found is None:
        return "it has not started"
    step, last = last_step(workdir), found.get("duration")
    if step is None:
        return "it has no checkpoint"
    if differences := config_differences(found, config, changed):
        return f"its config differs in {', '.join(differences[:5])}"
    if not isinstance(last, int) or step < last:
        return f"its last checkpoint is of step {step} of {last}"
    return ""


def read_config(workdir: Path) -> dict[str, Any] | None:
    """`WORKDIR/config.json`; None: there is none, or it is torn."""
    try:
        return json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return None


def last_step(workdir: Path) -> int | None:
    """Of the newest complete checkpoint, as `vitscale.models.weights.find_step` finds it: Orbax renames a step to its
    number when it is complete."""
    steps = [
        int(folder.name)
        for folder in (workdir / "checkpoints").glob("*")
        if folder.name.isdigit() and (folder / "meta").is_dir()
    ]
    return max(steps, default=None)


def config_differences(
    found: Mapping[str, Any], asked: Mapping[str, Any], changed: Collection[str] = ()
) -> list[str]:
    """Keys by which `WORKDIR/config.json` is not the config asked for, leaving out what a run may change or resolve."""

    def counts(key: str) -> bool:
        if any(_below(key, each) or _below(each, key) for each in changed):
            return True
        return not any(_below(key, each) for each in (*FREE_KEYS, *RESOLVED))

    old, new = _leaves(found), _leaves(asked)
    return [
        key
        for key in {**new, **old}
        if counts(key) and key in new and key in old and not _equal(old[key], new[key])
    ]


def _equal(found: Any, asked: Any) -> bool:
    # A duration such as "5 percent" has become a number of steps.
    resolved = isinstance(asked, str) and isinstance(found, int)
    return resolved or found == asked


def _below(key: str, parent: str) -> bool:
    return key == parent or key.startswith(f"{parent}.")


def _leaves(tree: Any, where: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: dict[str, Any] = {}
    for key, value in items:
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, (dict, list)) and value:
            found |= _leaves(value, path)
        else:
            found[path] = value
    return found
