"""The runs of a study, read from what they left on disk, each with its evaluations; those that do not count say why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.study_training import Training, read_json, read_training
from launch.sweep_state import SWEEP_FILE
from vitscale.errors import UserError
from vitscale.evals.evaluation_folder import FACTS_FILE, METRICS_FILE
from vitscale.evals.stats import Estimate
from vitscale.train.workdir import CONFIG_FILE

FINISHED = "finished"
REDONE = re.compile(r"\.old-\d+$")  # what `--redo` of a sweep has put aside


@dataclass(frozen=True)
class StudyRun:
    """A run of the study; one that cannot be used has no `training`, or a state that says why it does not count."""

    name: str
    folder: Path
    state: str  # FINISHED, or what is wrong
    overrides: Mapping[str, Any]
    training: Training | None
    metrics: Mapping[str, Estimate]  # of its evaluations, "<suite>/<metric>"

    @property
    def counts(self) -> bool:
        return self.state == FINISHED


def collect_runs(roots: Sequence[Path]) -> list[StudyRun]:
    """Every run below the folders: those that a sweep names, and those that lie there.

    A run is a workdir of `vitscale train` with evaluations in folders `eval*`, or a folder with the workdir as `train`
    and the evaluations beside it (`benchmarks/claims.py`).

    Raises:
        UserError: a folder that is not there, or nothing that is a run in it.
    """
    found: dict[Path, tuple[str, Mapping[str, Any] | None]] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(
                f"{root} is no folder; give the --workdir of a sweep, or a folder of runs."
            )
        sweep = _read_sweep(root)
        folders = [root / name for name in sweep]
        folders += [path for path in _children(root) if path not in folders and _workdir(path)]
        if not folders:
            raise UserError(
                f"{root} has no runs: no {SWEEP_FILE}, and no folder with the {CONFIG_FILE} of a training."
            )
        for folder in folders:
            name = folder.name if len(roots) == 1 else f"{root.name}/{folder.name}"
            found.setdefault(folder, (name, sweep.get(folder.name)))
    plain = len({path.name for folder in found for path in _evaluations(folder)}) <= 1
    return [_read_run(name, folder, state, plain) for folder, (name, state) in found.items()]


def _children(root: Path) -> list[Path]:
    """Everything in the folder and in its `runs`, in the order of a reader: n200 before n1600."""

    def order(path: Path) -> list[tuple[int, str]]:
        parts = re.findall(r"\d+|\D+", str(path.relative_to(root)))
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    found = [path for base in (root, root / "runs") if base.is_dir() for path in base.iterdir()]
    return sorted(found, key=order)


def _workdir(folder: Path) -> Path | None:
    """Where the training of a run lies."""
    if REDONE.search(folder.name) or _is_redone_beside(folder):
        return None
    for path in (folder, folder / "train"):
        # An evaluation has a config too, of another kind.
        if (path / CONFIG_FILE).is_file() and not (path / METRICS_FILE).is_file():
            return path
    return None


def _is_redone_beside(folder: Path) -> bool:
    """Where a sweep does not see its folders, `--redo` of NAME runs in NAME.redo-1, and of that in NAME.redo-2."""
    name, _, number = folder.name.partition(".redo-")
    later = int(number) + 1 if number.isdecimal() else 1
    return folder.with_name(f"{name}.redo-{later}").is_dir()


def _evaluations(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"eval*/{METRICS_FILE}"))


def _read_sweep(root: Path) -> dict[str, Mapping[str, Any]]:
    """Name of a run -> its state in `sweep.json`; empty without."""
    path = root / SWEEP_FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no sweep's state ({error}); move it away, and the runs are found by their folders."
        ) from error


def _read_run(name: str, folder: Path, sweep: Mapping[str, Any] | None, plain: bool) -> StudyRun:
    """plain: the study has one kind of evaluation, so that metrics need not say of which they are."""
    overrides = dict(sweep.get("overrides", {})) if sweep else {}
    workdir = _workdir(folder)
    if workdir is None:
        state = f"{sweep.get('state', 'unknown')} in {SWEEP_FILE}" if sweep else "no training"
        return StudyRun(name, folder, f"not started ({state})", overrides, None, {})
    try:
        training = read_training(workdir.resolve())
    except UserError as error:
        return StudyRun(name, folder, _unreadable(error), overrides, None, {})
    state = _complaint(training, sweep) or FINISHED
    metrics: dict[str, Estimate] = {}
    for path in _evaluations(folder):
        prefix = "" if plain else f"{path.name}: "
        try:
            measured, step = _read_evaluation(path)
        except UserError as error:
            return StudyRun(name, folder, _unreadable(error), overrides, training, {})
        metrics |= {f"{prefix}{metric}": estimate for metric, estimate in measured.items()}
        if state == FINISHED and step is not None and step != training.step:
            state = f"{path.name} is of step {step:,} of {training.step:,}: evaluate it again"
    for key, value in training.validation.items():
        metrics.setdefault(key, Estimate(value, math.nan, math.nan, 0))
    if state == FINISHED and not metrics:
        state = "not evaluated: no eval*/metrics.json"
    return StudyRun(name, folder, state, overrides, training, metrics)


def _unreadable(error: UserError) -> str:
    return f"unreadable: {str(error).rstrip('.')}"


def _complaint(training: Training, sweep: Mapping[str, Any] | None) -> str:
    """Why a run does not count; a half-trained one would bend a law."""
    last = training.config.total_steps
    if training.step < last:
        said = f" ({sweep['state']} in {SWEEP_FILE})" if sweep and "state" in sweep else ""
        return f"at step {training.step:,} of {last:,}{said}"
    return ""


def _read_evaluation(folder: Path) -> tuple[dict[str, Estimate], int | None]:
    """The metrics, and the step that they are of where the evaluation says it."""
    metrics, facts = read_json(folder / METRICS_FILE), {}
    if (folder / FACTS_FILE).is_file():
        facts = read_json(folder / FACTS_FILE)
    try:
        estimates = {
            name: Estimate(
                _number(each["value"]), _number(each["low"]), _number(each["high"]), each["n"]
            )
            for name, each in metrics.items()
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / METRICS_FILE} is not that of an evaluation ({error})."
        ) from error
    return estimates, facts.get("step")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
