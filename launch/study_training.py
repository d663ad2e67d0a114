"""A training of a study, read from its workdir: what it was trained on, what it starts from, and what that cost."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.trained import last_step
from vitscale.config import FREE_KEYS, ModelConfig, OptimConfig, TaskConfig, TrainConfig
from vitscale.config_loading import from_mapping
from vitscale.errors import UserError
from vitscale.models.flops import backbone_flops, num_parameters, train_flops
from vitscale.models.multitask import ModelDefinition, define_model
from vitscale.train.optim import make_optimizer
from vitscale.train.parameter_rules import BACKBONE
from vitscale.train.workdir import CLASSES_FILE, CONFIG_FILE

TRAINING_METRICS = "metrics.jsonl"
VALIDATION = ("val/", "val_ema/")  # begin the metrics that a run measures of itself
# Where and how a run goes, and by which dice: not what it is.
UNCOUNTED = (*(key for key in FREE_KEYS if key != "data.root"), "seed", "init.checkpoint")


@dataclass(frozen=True)
class Training:
    """What a workdir says of the run in it. None: it does not say."""

    workdir: Path
    config: TrainConfig = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)  # `config.json` by dotted key, less `UNCOUNTED`
    identity: str  # the same for runs that differ in their seed only, or in that of their start
    start_identity: str
    step: int  # that it has reached
    facts: Mapping[str, float | None]  # see `FACTS`
    validation: Mapping[str, float] = field(repr=False)
    start: str  # what it starts from; empty: from nothing
    unknown_start: str  # the one, of all before it, whose cost is not known


# Column of the tables -> what it is.
FACTS = {
    "images": "images that it was trained on",
    "pretraining_images": "images that the first run of its line was trained on: its own where it starts from nothing",
    "labels": "classes of its tasks together",
    "pretraining_labels": "classes of the tasks of the first run of its line",
    "pretraining_steps": "steps of the first run of its line",
    "pretraining_passes": "how often that one has seen each image",
    "steps": "steps that it has trained",
    "images_seen": "images that it has seen, each as often as it was drawn",
    "passes": "how often it has seen each image",
    "parameters": "parameters of the model",
    "train_flops": "model FLOPs of its training",
    "total_train_flops": "model FLOPs of its training and of the runs that it starts from",
    "serve_flops": "FLOPs of embedding one image",
    "seconds": "productive seconds of its training",
    "images_per_sec": "median over its logged steps",
    "mfu": "median over its logged steps",
}


def read_training(workdir: Path) -> Training:
    """Raises `UserError` for files that are missing, torn, or of another version of vitscale."""
    return _read_training(workdir, ())


def _read_training(workdir: Path, line: tuple[Path, ...]) -> Training:
    """line: the runs that start from this one, for a start that comes round to itself."""
    if workdir in line:
        raise UserError(f"{workdir} starts from itself: {' <- '.join(path.name for path in line)}.")
    tree = read_json(workdir / CONFIG_FILE)
    config = from_mapping(TrainConfig, tree)
    if not isinstance(config.duration, int):
        raise UserError(f"{workdir / CONFIG_FILE} has a duration that is no number of steps.")
    classes = read_json(workdir / CLASSES_FILE)
    tasks = [t for t in config.tasks if not config.only_tasks or t.name in config.only_tasks]
    definition = define_model(config.model, tasks, classes)
    rows = list(_rows(workdir / TRAINING_METRICS))
    step = max([int(rows[-1]["step"]) if rows else 0, last_step(workdir) or 0])
    start = _start_of(config.init.checkpoint)
    before = None if start is None else _read_training(start, (*line, workdir))
    settings = {key: value for key, value in _leaves(tree) if not _is_uncounted(key)}
    facts = _facts(config, definition, rows, step)
    facts |= _facts_of_line(facts, before)
    unknown = config.init.checkpoint if start is None else before.unknown_start if before else ""
    start_identity = before.identity if before else unknown
    return Training(
        workdir=workdir,
        config=config,
        settings=settings,
        identity=identity_of(settings, start_identity),
        start_identity=start_identity,
        step=step,
        facts=facts,
        validation={
            key: float(row[key])
            for row in rows
            for key in row
            if key.startswith(VALIDATION) and isinstance(row[key], (int, float))
        },
        start=config.init.checkpoint,
        unknown_start=unknown,
    )


def _start_of(checkpoint: str) -> Path | None:
    """The workdir of the run that a checkpoint is of; None: there is none, or it is of public weights."""
    if not checkpoint or "://" in checkpoint:
        return None
    path = Path(checkpoint).resolve()
    # A workdir, its checkpoints, or one step of them.
    return next((p for p in (path, *list(path.parents)[:2]) if (p / CLASSES_FILE).is_file()), None)


def _facts(
    config: TrainConfig,
    definition: ModelDefinition,
    rows: Sequence[Mapping[str, Any]],
    step: int,
) -> dict[str, float | None]:
    images = _distinct_images(rows)
    seen = step * config.data.global_batch_size
    counts = tuple(definition.num_classes.items())
    parameters, train, serve = _costs(
        config.model,
        definition.tasks,
        counts,
        config.optim,
        config.total_steps,
        config.data.image_sizes,
    )
    return {
        "images": images,
        "labels": float(sum(definition.num_classes[t.label_field] for t in definition.tasks)),
        "steps": float(step),
        "images_seen": float(seen),
        "passes": seen / images if images else None,
        "parameters": parameters,
        "train_flops": train * seen,
        "serve_flops": serve,
        "seconds": _last(rows, "productive_seconds"),
        "images_per_sec": _median(rows, "images_per_sec"),
        "mfu": _median(rows, "mfu"),
    }


@functools.lru_cache(maxsize=256)
def _costs(
    model: ModelConfig,
    tasks: tuple[TaskConfig, ...],
    counts: tuple[tuple[str, int], ...],
    optim: OptimConfig,
    total_steps: int,
    image_sizes: tuple[int, ...],
) -> tuple[float, float, float]:
    """Parameters, and FLOPs of training on an image and of embedding one; the runs of a study share many."""
    definition = ModelDefinition(model, tasks, dict(counts))
    shapes, axes = definition.shapes(), definition.axes()
    optimizer = make_optimizer(optim, total_steps, {name: axes[name] for name in shapes}, shapes)
    frozen = not any(name.startswith(BACKBONE) for name in optimizer.trainable)
    train = train_flops(definition, image_sizes, frozen_backbone=frozen)
    return float(num_parameters(definition)), train, _serve_flops(definition)


def _facts_of_line(
    own: Mapping[str, float | None], before: Training | None
) -> dict[str, float | None]:
    """What a run takes over from those that it starts from."""
    first = {f"pretraining_{name}": own[name] for name in ("images", "labels", "steps", "passes")}
    if before is None:
        return {**first, "total_train_flops": own["train_flops"]}
    total = (own["train_flops"] or 0.0) + (before.facts["total_train_flops"] or 0.0)
    return {**{name: before.facts[name] for name in first}, "total_train_flops": total}


def _serve_flops(definition: ModelDefinition) -> float:
    """Of the backbone and the heads that give embeddings: a classifier is not served."""
    heads = tuple(f"heads/{t.name}/" for t in definition.tasks if t.kind == "embedding")
    shapes = [
        s.shape for name, s in definition.shapes().items() if heads and name.startswith(heads)
    ]
    return backbone_flops(definition.config) + sum(
        2.0 * math.prod(s) for s in shapes if len(s) == 2
    )


def _distinct_images(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Sizes of the sources together: how many were drawn of each, over how often it was passed through."""
    for row in reversed(rows):
        sources = [key for key in row if key.startswith("data/") and key.endswith("/epochs")]
        sizes = [
            row[key.removesuffix("epochs") + "drawn"] / row[key] for key in sources if row[key]
        ]
        if sizes and len(sizes) == len(sources):
            return float(sum(map(round, sizes)))
    return None


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(values[-1]) if values else None


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = sorted(row[name] for row in rows if row.get(name) is not None)
    return float(values[len(values) // 2]) if values else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that a kill has cut off is left out."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def identity_of(settings: Mapping[str, Any], start: str) -> str:
    """start: the identity of what it starts from."""
    text = json.dumps([settings, start], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_uncounted(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in UNCOUNTED)


def _leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, (dict, list)) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is not there.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
