"""One training run: optimiser, mesh, checkpoints, survival, logging."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from vitscale.config.checks import check_positive, check_range, nearest_name
from vitscale.config.data import DataConfig, SourceConfig
from vitscale.config.durations import Duration, check_duration
from vitscale.config.model import ModelConfig
from vitscale.config.selection import check_several_tasks
from vitscale.config.tasks import TaskConfig
from vitscale.errors import UserError

NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What may change between two starts of one run: where and how it runs, not what it computes.
FREE_KEYS = (
    *("mesh", "log", "checkpoint", "survival", "validation"),
    *("data.root", "data.num_workers", "data.num_threads", "data.prefetch_batches"),
    *("model.attention", "model.remat"),
)
# Kinds of tasks whose head is a row of weights for each class.
CLASSIFIERS = ("single_label", "multi_label")


# --8<-- [start:schema]
@dataclass(frozen=True)
class ParameterRule:
    """How the parameters are trained whose names the regular expression finds (`re.search`)."""

    pattern: str
    lr: float = 1.0  # multiplier of the learning rate
    weight_decay: float | None = None  # multiplier; default: 1 for matrices, 0 for vectors
    freeze: bool = False  # no gradient, no optimiser state
    start: Duration = 0  # kept as they are in the steps before, while their moments are gathered


@dataclass(frozen=True)
class OptimConfig:
    """Clip by global norm → optimiser → decoupled weight decay → learning rate.

    Durations are a number of steps, or text: "10 epochs", "1e9 examples", "5 percent" (of the run).
    """

    name: Literal["adamw", "adafactor", "lion", "sgd", "muon"] = "adamw"
    lr: float = 1e-3  # peak
    # after the warm-up: constant; cosine to the end; 1/sqrt(step); constant until the cooldown (WSD)
    schedule: Literal["constant", "cosine", "rsqrt", "wsd"] = "cosine"
    warmup: Duration = 100  # linear, from lr / warmup
    cooldown: Duration = 0  # linear, at the end (rsqrt, wsd); wsd needs one
    timescale: Duration = 10_000  # rsqrt: steps after which the LR falls as 1/sqrt(step)
    final_lr_fraction: float = 0.0  # of cosine and cooldown: last LR / peak LR
    weight_decay: float = 0.05  # on matrices only, unless a rule says so; scaled by the LR
    b1: float = 0.9  # first moment; momentum of sgd and muon
    b2: float = 0.999  # second moment (lion: of the momentum; adafactor: its cap); sgd has none
    eps: float = 1e-8  # of adamw, and of what muon leaves to it
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment
    grad_clip_norm: float = 1.0  # global norm; 0 switches it off
    # The first rule that matches a parameter holds. When there are rules, every parameter needs one (end with
    # {"pattern": ".*"}), and every rule must hold for a parameter.
    rules: tuple[ParameterRule, ...] = ()
    # LR of block i of n is lr * layer_decay^(n - i), of what lies before the blocks lr * layer_decay^(n + 1)
    layer_decay: float = 1.0
    accumulate_steps: int = 1  # parts that the global batch is computed in, one after another
    ema_decay: float = (
        0.0  # moving average of the parameters, evaluated beside them; 0 switches it off
    )

    def __post_init__(self) -> None:
        check_positive(self, "accumulate_steps")
        check_range(
            "optim",
            self,
            {
                "lr": (0.0, 1e6),
                "b1": (0.0, 0.99999),
                "b2": (0.0, 0.9999999),
                "final_lr_fraction": (0.0, 1.0),
                "layer_decay": (1e-3, 1.0),
                "ema_decay": (0.0, 0.9999999),
                "weight_decay": (0.0, 1e6),
                "grad_clip_norm": (0.0, 1e30),
            },
        )


@dataclass(frozen=True)
class MeshConfig:
    """Device mesh: sizes of its axes (-1 takes the rest, None is the layout's choice) and where parameters lie.

    dp: parameters on every device. fsdp: parameters split over `fsdp`, by default all devices of a slice. fsdp_tp:
    also split over `tensor`. hybrid: split inside one slice or GPU host, copies across them. The batch is split over
    replica, data and fsdp.
    """

    layout: Literal["dp", "fsdp", "fsdp_tp", "hybrid"] = "dp"
    replica: int | None = None  # across slices
    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None
    # parameter: optimiser state lies where its parameter does; zero1: also split over `data`
    optimizer_sharding: Literal["parameter", "zero1"] = "parameter"


@dataclass(frozen=True)
class ClassifierInit:
    """Rows of the checkpoint's classifier that start this run's, by the classes' names (CatLIP, arXiv 2404.15653)."""

    task: str  # of this run, a single_label or multi_label task
    from_task: str  # of the checkpoint
    # folder of `vitscale prep`: a class may then be named by any phrase of a cluster
    prep: str = ""


@dataclass(frozen=True)
class InitConfig:
    """Start from another run's parameters."""

    checkpoint: str = ""  # a workdir or one step's folder; empty: random
    include: str = "^backbone/"  # regex over parameter names that are taken
    classifiers: tuple[ClassifierInit, ...] = ()  # heads made of its heads' rows

    def __post_init__(self) -> None:
        tasks = [each.task for each in self.classifiers]
        if tasks and not self.checkpoint:
            raise UserError(
                "init.classifiers takes rows of a checkpoint's classifier, and init.checkpoint is empty; name a "
                "workdir there."
            )
        for task in tasks:
            if tasks.count(task) > 1:
                raise UserError(f"init.classifiers names the task {task!r} twice; keep one.")


@dataclass(frozen=True)
class TaskWeightingConfig:
    """How the tasks' mean losses add up, besides the factor `weight` that each task has.

    fixed: as they are. uncertainty: exp(-s) * loss + s with a learnt s a task (Kendall et al., 2018, arXiv 1705.07115).
    grad_norm: factors that make the gradients of all tasks at the backbone's features as long as each other, longer
    for those that learn slower than others (after GradNorm, Chen et al., 2018, arXiv 1711.02257). A task's factor is 1
    for its first 1 / (1 - decay) steps with a gradient, and fully learnt after twice as many.
    """

    kind: Literal["fixed", "uncertainty", "grad_norm"] = "fixed"
    lr: float = 0.01  # uncertainty: of s
    decay: float = 0.99  # grad_norm: of the moving averages of norms and losses
    alpha: float = 0.5  # grad_norm: 0: equal norms; more: the more for slow tasks

    def __post_init__(self) -> None:
        check_range(
            "task_weighting",
            self,
            {"lr": (1e-9, 1.0), "decay": (0.0, 0.99999), "alpha": (0.0, 10.0)},
        )
        readers = {"lr": "uncertainty", "decay": "grad_norm", "alpha": "grad_norm"}
        for name, kind in readers.items():
            default = type(self).__dataclass_fields__[name].default
            if kind != self.kind and getattr(self, name) != default:
                raise UserError(
                    f"task_weighting.{name}={getattr(self, name)} is read by kind={kind!r} only, and kind is "
                    f"{self.kind!r}; leave it at {default}."
                )


@dataclass(frozen=True)
class TeacherConfig:
    """A trained specialist whose outputs a task imitates on the same images, besides its labels."""

    task: str  # of this run
    # workdir or step folder of the specialist; of a workdir, the step that is its newest when this run starts first:
    # later starts take the same one
    checkpoint: str
    teacher_task: str = ""  # of the specialist; default: the same name
    weight: float = 1.0  # of the imitation, beside the task's own loss
    # of both softmaxes (Hinton et al., 2015, arXiv 1503.02531; default: 2); embeddings: of the cosines within the
    # batch (default: 0.1); regression has none
    temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if getattr(self, name) == math.inf:
                raise UserError(f"teachers: {name}=inf of {self.task!r} must be finite.")


@dataclass(frozen=True)
class ValidationConfig:
    """Losses and accuracies of every task on held-out examples, with the raw and the averaged parameters."""

    sources: tuple[SourceConfig, ...] = ()  # none: no validation
    every: Duration = 1000


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 500
    keep: int = 2  # newest ones
    keep_every_steps: int = 0  # steps divisible by this are kept for good; 0: none
    # a logged metric ("val/embedding/accuracy"): its best checkpoint is kept as well
    best_metric: str = ""
    best_mode: Literal["max", "min"] = "max"


@dataclass(frozen=True)
class SurvivalConfig:
    """What a run bears before it stops. Steps with a non-finite loss or gradient are always skipped."""

    max_grad_norm: float = 0.0  # a step whose gradient norm is above is skipped too; 0: no limit
    max_skipped: int = 10  # more skipped steps within `window` → back to the last good checkpoint
    window: int = 100  # steps
    max_rollbacks: int = 2  # more → the run stops
    step_timeout: float = 600.0  # seconds; longer → all threads' stacks are printed; 0: never
    peer_timeout: float = 100.0  # seconds without a sign of another process → this one stops


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 20
    tensorboard: bool = True
    wandb_project: str = ""  # Weights & Biases (extra [wandb]); empty: off
    wandb_mode: Literal["online", "offline"] = "online"
    profile_start: int = 0  # first step of a profiler trace in WORKDIR/profile; 0: none
    profile_steps: int = 5


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The same schema serves pretraining, multi-task training and probes."""

    data: DataConfig
    tasks: tuple[TaskConfig, ...]
    duration: Duration  # steps, or "90 epochs", "1e9 examples"
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    init: InitConfig = field(default_factory=InitConfig)
    # of `tasks`, the ones that are trained: a specialist is the same config with one; default: all
    only_tasks: tuple[str, ...] = ()
    task_weighting: TaskWeightingConfig = field(default_factory=TaskWeightingConfig)
    teachers: tuple[TeacherConfig, ...] = ()
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    survival: SurvivalConfig = field(default_factory=SurvivalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 0

    # --8<-- [end:schema]
    @property
    def total_steps(self) -> int:
        """`duration` in steps; `resolve_durations` comes first."""
        if not isinstance(self.duration, int):
            raise ValueError(f"duration={self.duration!r} is not resolved to steps")
        return self.duration

    @property
    def loader_image_hw(self) -> tuple[int, int]:
        """(height, width) of the images of training batches: the largest that a step trains or validates at."""
        largest = max(self.data.image_sizes, default=0)
        height, width = self.model.image_hw
        return max(height, largest), max(width, largest)

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "timescale"):
            check_duration(getattr(self.optim, name), f"optim.{name}")
        for index, rule in enumerate(self.optim.rules):
            check_duration(rule.start, f"optim.rules.{index}.start")
        check_classifiers(self.init, self.tasks)
        check_duration(self.validation.every, "validation.every")
        check_duration(self.duration, "duration")
        if isinstance(self.validation.every, int):
            check_positive(self.validation, "every")
        check_positive(self.log, "every_steps")
        check_positive(self.checkpoint, "every_steps", "keep")
        check_positive(self.survival, "window")
        if isinstance(self.duration, int) and self.duration < 1:
            raise UserError(f"duration={self.duration} must be at least one step.")
        if self.data.image_sizes and len(set(self.model.image_hw)) > 1:
            raise UserError(
                f"data.image_sizes={self.data.image_sizes} are squares, and model.image_size={self.model.image_size} "
                "is not; leave image_sizes empty."
            )
        if not self.data.sources:
            raise UserError("data.sources is empty: name at least one source of training examples.")
        if not self.tasks:
            raise UserError("tasks is empty: name at least one task to train.")
        if self.data.global_batch_size % self.optim.accumulate_steps:
            raise UserError(
                f"data.global_batch_size={self.data.global_batch_size} does not divide by "
                f"optim.accumulate_steps={self.optim.accumulate_steps}."
            )
        names = [task.name for task in self.tasks]
        for name in names:
            if not NAME_PATTERN.fullmatch(name):
                raise UserError(
                    f"tasks: the name {name!r} must be letters, digits and '_' (it names parameters)."
                )
            if names.count(name) > 1:
                raise UserError(f"tasks: {name!r} is named twice; every task needs its own name.")
        check_several_tasks(self)


def check_classifiers(init: InitConfig, tasks: tuple[TaskConfig, ...]) -> None:
    """Raises `UserError` unless every task of `init.classifiers` has a row of weights for each class."""
    kinds = {task.name: task.kind for task in tasks}
    for index, each in enumerate(init.classifiers):
        where = f"init.classifiers.{index}.task={each.task!r}"
        if each.task not in kinds:
            raise UserError(
                f"{where} is no task of this run; {nearest_name(each.task, list(kinds))}"
            )
        if kinds[each.task] not in CLASSIFIERS:
            raise UserError(
                f"{where} is a task of kind {kinds[each.task]}; only {' and '.join(CLASSIFIERS)} tasks have one row "
                "of weights a class."
            )
