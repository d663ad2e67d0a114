"""From a config and devices to the jitted step with every array placed: one way for training, plans and tests."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vitscale.config import TaskConfig, TrainConfig, resolve_durations, select_tasks
from vitscale.errors import UserError
from vitscale.models.flops import num_parameters, train_flops
from vitscale.models.heads.label_space import FIXED_CLASSES
from vitscale.models.multitask import ModelDefinition, check_model, define_model_from_counts
from vitscale.models.platform import compiling_for
from vitscale.parallel.mesh import batch_sharding, batch_shards, check_batch, make_mesh, replicated
from vitscale.parallel.rules import (
    LAYOUT_COLUMNS,
    LayoutRow,
    layout_table,
    layout_warnings,
    resolve_layout,
)
from vitscale.train.imitation import output_widths
from vitscale.train.optim import Optimizer, make_optimizer
from vitscale.train.parameter_rules import BACKBONE, leave_out_rules
from vitscale.train.state import (
    TrainState,
    abstract_state,
    bytes_per_device,
    state_shardings,
    with_shardings,
)
from vitscale.train.step import TEACHER, Step, make_step

logger = logging.getLogger(__name__)
LAYOUT_FILE = "layout.txt"

# cuBLASLt adds biases and residuals and applies GELU while a product is still in registers; XLA's Triton products
# leave that to kernels of their own: 85 % more bytes outside products for B/16 (docs/performance.md).
GPU_COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Setup:
    """The parts of a run that exist before any array does."""

    config: TrainConfig  # durations resolved
    definition: ModelDefinition
    optimizer: Optimizer
    mesh: Mesh
    abstract: TrainState  # of ShapeDtypeStruct, each with its sharding
    shardings: TrainState  # of NamedSharding
    step: Step  # jitted
    # by task that has a teacher: size of what it gives an example
    teacher_widths: Mapping[str, int]

    @property
    def flops_per_image(self) -> float:
        """Model FLOPs of a training step, per image; through a frozen backbone nothing is differentiated."""
        frozen = not any(name.startswith(BACKBONE) for name in self.optimizer.trainable)
        return train_flops(self.definition, self.config.data.image_sizes, frozen_backbone=frozen)

    def layout(self) -> list[LayoutRow]:
        """Where every parameter lies."""
        shapes, axes = self.definition.shapes(), self.definition.axes()
        return resolve_layout(shapes, axes, dict(self.mesh.shape), self.config.mesh.layout)


def plan_state(definition: ModelDefinition, config: TrainConfig) -> tuple[Optimizer, TrainState]:
    """The optimizer and the shapes and dtypes of all that is trained or kept. Durations of `config` are resolved."""
    axes, shapes = definition.axes(), definition.shapes()
    optimizer = make_optimizer(
        config.optim, config.total_steps, {name: axes[name] for name in shapes}, shapes
    )
    abstract = abstract_state(
        definition,
        optimizer,
        ema=config.optim.ema_decay > 0,
        task_weighting=config.task_weighting,
    )
    return optimizer, abstract


def build(
    definition: ModelDefinition,
    config: TrainConfig,
    mesh: Mesh,
    teacher_widths: Mapping[str, int] | None = None,
) -> Setup:
    """The jitted step with every input and output placed. Durations of `config` are resolved.

    teacher_widths: by task (`Teachers.widths`); None, for plans, which open no teacher: those of the tasks themselves.
    """
    platform = mesh.devices.flat[0].platform
    for image_size in (config.model.image_size, *config.data.image_sizes):
        model = dataclasses.replace(config.model, image_size=image_size)
        check_model(model, "gpu" if platform == "cuda" else platform)
    check_batch(config.data.global_batch_size, mesh, config.optim.accumulate_steps)
    check_pairs(config, mesh)
    check_groups(config, mesh)
    optimizer, abstract = plan_state(definition, config)
    shardings = state_shardings(definition, optimizer, abstract, mesh, config.mesh)
    step = jax.jit(
        on_mesh(make_step(definition, optimizer, config), mesh),
        compiler_options=GPU_COMPILER_OPTIONS if platform in ("gpu", "cuda") else None,
        static_argnums=(2, 3),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    abstract = with_shardings(abstract, shardings)
    widths = output_widths(definition) if teacher_widths is None else teacher_widths
    taught = {teacher.task: widths[teacher.task] for teacher in config.teachers}
    return Setup(config, definition, optimizer, mesh, abstract, shardings, step, taught)


def select_rules(
    config: TrainConfig, definition: ModelDefinition, tasks: Sequence[TaskConfig]
) -> TrainConfig:
    """The config without the rules that are for heads which `only_tasks` left out; a misspelt rule stays.

    Args:
        config: of `select_tasks`; `definition` is its model.
        tasks: all of them, before the selection.
    """
    if not config.only_tasks or not config.optim.rules:
        return config
    # Names do not depend on how many classes there are.
    counts = {
        task.label_field: task.num_classes or FIXED_CLASSES.get(task.kind, 2) for task in tasks
    }
    whole = ModelDefinition(config.model, tuple(tasks), counts)
    optim = leave_out_rules(config.optim, list(definition.shapes()), list(whole.shapes()))
    return dataclasses.replace(config, optim=optim)


def check_pairs(config: TrainConfig, mesh: Mesh) -> None:
    """Raises `UserError` when images are mixed by pairs and a device's share of the batch is odd."""
    shards, size = batch_shards(mesh), config.data.global_batch_size
    if config.data.augment.mixes and size // shards % 2:
        raise UserError(
            f"data.augment mixes pairs of images, and data.global_batch_size={size} gives each of {shards} batch "
            f"shards an odd number; the next one that does not is {math.ceil(size / shards / 2) * 2 * shards}."
        )


def check_groups(config: TrainConfig, mesh: Mesh) -> None:
    """Raises `UserError` when accumulation would tear groups of draws apart."""
    group, parts = config.data.group_size, config.optim.accumulate_steps
    size, shards = config.data.global_batch_size, batch_shards(mesh)
    pieces = shards * parts * group
    if group > 1 and parts > 1 and size % pieces:
        raise UserError(
            f"data.global_batch_size={size} does not divide into groups of {group} on {shards} batch shards in {parts} "
            f"parts; the next one that does is {math.ceil(size / pieces) * pieces}."
        )


def on_mesh(function: Any, mesh: Mesh) -> Any:
    """The function traced with the mesh known: kernels and losses that XLA does not partition ask for it."""

    platform = mesh.devices.flat[0].platform

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), compiling_for(platform):
            return function(*arguments)

    return traced


def setup_for(
    config: TrainConfig, devices: Sequence[Any], counts: dict[str, int] | None = None
) -> Setup:
    """The parts of a run on devices that may be described only (`vitscale.parallel.aot`).

    counts: classes of every label field; default: `num_classes` of the tasks, as recipes state them.
    """
    selected = select_tasks(config)
    known = {t.label_field: t.num_classes for t in selected.tasks if t.num_classes is not None}
    definition = define_model_from_counts(selected.model, selected.tasks, counts or known)
    selected = select_rules(selected, definition, config.tasks)
    resolved = resolve_durations(selected, num_examples=None)
    return build(definition, resolved, make_mesh(config.mesh, devices))


def lower_step(
    config: TrainConfig,
    devices: Sequence[Any],
    counts: dict[str, int] | None = None,
    image_size: int | None = None,
) -> tuple[Setup, jax.stages.Lowered]:
    """`setup_for`, and its step lowered for images of `image_size`; default: `model.image_size`."""
    setup = setup_for(config, devices, counts)
    return setup, lower(setup, image_size=image_size)


def lower(
    setup: Setup, patch_size: int | None = None, image_size: int | None = None
) -> jax.stages.Lowered:
    """The step for a batch of the config's size; `.compile()` gives what `step` would run."""
    batch = abstract_batch(setup)
    if setup.teacher_widths:
        batch[TEACHER] = abstract_teaching(setup)
    return setup.step.lower(setup.abstract, batch, patch_size, image_size)  # type: ignore[attr-defined]


def abstract_batch(setup: Setup) -> dict[str, Any]:
    """Shapes and places of a global batch: what `vitscale.data.loader.Batch.arrays` gives on all hosts together."""
    data, place = setup.config.data, batch_sharding(setup.mesh)
    size = data.global_batch_size
    fields = sorted({task.label_field for task in setup.config.tasks})

    def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=place)

    return {
        "image": struct((*setup.config.loader_image_hw, 3), jnp.uint8),
        "position": struct((), jnp.uint32),
        "labels": {name: struct((data.max_labels,), jnp.int32) for name in fields},
        "weights": {name: struct((data.max_labels,), jnp.float32) for name in fields},
        "valid": struct((), jnp.bool_),
        "task_mask": {task.name: struct((), jnp.bool_) for task in setup.config.tasks},
    }


def abstract_teaching(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and places of what the teachers give for a global batch."""
    size, place = setup.config.data.global_batch_size, batch_sharding(setup.mesh)
    return {
        task: jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=place)
        for task, width in setup.teacher_widths.items()
    }


def describe_layout(setup: Setup) -> str:
    """The layout as text: a line a parameter (equal blocks share one), and the bytes of the state on each device."""
    rows = [LAYOUT_COLUMNS, *layout_table(setup.layout())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(LAYOUT_COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    sizes = " x ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    held = bytes_per_device(setup.abstract, setup.shardings) / 2**30
    lines.append(f"mesh: {sizes}; state on each device: {held:.4g} GiB")
    return "\n".join(lines) + "\n"


def warn_of_parts(config: TrainConfig) -> None:
    """Accumulation changes what a loss over pairs is: an image meets those of its own part only."""
    parts = config.optim.accumulate_steps
    names = [t.name for t in config.tasks if t.kind == "embedding" and t.embedding.compares_pairs]
    if parts > 1 and names:
        logger.warning(
            "optim.accumulate_steps=%d: the pair losses of %s compare images within one part (%d images), not over "
            "the whole batch",
            parts,
            ", ".join(names),
            config.data.global_batch_size // parts,
        )


def report_layout(setup: Setup, workdir: Path) -> None:
    """Writes `layout.txt`, logs where the model lies, and warns of shards that do not fill a TPU's tiles."""
    if jax.process_index() != 0:
        return
    text = describe_layout(setup)
    (workdir / LAYOUT_FILE).write_text(text)
    logger.info(
        "model: %s, %.4g M parameters, %.4g GFLOP an image and training step",
        setup.config.model.variant,
        num_parameters(setup.definition) / 1e6,
        setup.flops_per_image / 1e9,
    )
    logger.info("%s", text if setup.mesh.size > 1 else text.splitlines()[-1])
    if setup.mesh.devices.flat[0].platform == "tpu":
        for sentence in layout_warnings(setup.layout()):
            logger.warning(sentence)
