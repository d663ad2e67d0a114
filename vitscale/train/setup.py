"""From a config and devices to the jitted step with every array placed: one way for training, plans and tests."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vitscale.config import TrainConfig, resolve_durations
from vitscale.errors import UserError
from vitscale.models.flops import num_parameters, train_flops
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
from vitscale.train.optim import Optimizer, make_optimizer
from vitscale.train.state import (
    TrainState,
    abstract_state,
    bytes_per_device,
    state_shardings,
    with_shardings,
)
from vitscale.train.step import Step, make_step

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

    def layout(self) -> list[LayoutRow]:
        """Where every parameter lies."""
        shapes, axes = self.definition.shapes(), self.definition.axes()
        return resolve_layout(shapes, axes, dict(self.mesh.shape), self.config.mesh.layout)


def build(definition: ModelDefinition, config: TrainConfig, mesh: Mesh) -> Setup:
    """The jitted step with every input and output placed. Durations of `config` are resolved."""
    platform = mesh.devices.flat[0].platform
    for image_size in (config.model.image_size, *config.data.image_sizes):
        model = dataclasses.replace(config.model, image_size=image_size)
        check_model(model, "gpu" if platform == "cuda" else platform)
    check_batch(config.data.global_batch_size, mesh, config.optim.accumulate_steps)
    check_pairs(config, mesh)
    axes, shapes = definition.axes(), definition.shapes()
    optimizer = make_optimizer(
        config.optim, config.total_steps, {name: axes[name] for name in shapes}, shapes
    )
    abstract = abstract_state(definition, optimizer, ema=config.optim.ema_decay > 0)
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
    return Setup(config, definition, optimizer, mesh, abstract, shardings, step)


def check_pairs(config: TrainConfig, mesh: Mesh) -> None:
    """Raises `UserError` when images are mixed by pairs and a device's share of the batch is odd."""
    shards, size = batch_shards(mesh), config.data.global_batch_size
    if config.data.augment.mixes and size // shards % 2:
        raise UserError(
            f"data.augment mixes pairs of images, and data.global_batch_size={size} gives each of {shards} batch "
            f"shards an odd number; the next one that does not is {math.ceil(size / shards / 2) * 2 * shards}."
        )


def on_mesh(function: Any, mesh: Mesh) -> Any:
    """The function traced with the mesh known: kernels and losses that XLA does not partition ask for it."""

    platform = mesh.devices.flat[0].platform

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), compiling_for(platform):
            return function(*arguments)

    return traced


def lower_step(
    config: TrainConfig,
    devices: Sequence[Any],
    counts: dict[str, int] | None = None,
    image_size: int | None = None,
) -> tuple[Setup, jax.stages.Lowered]:
    """The step of a config lowered for devices that may be described only (`vitscale.parallel.aot`).

    Args:
        counts: classes of every label field; default: `num_classes` of the tasks, as recipes state them.
        image_size: that the step trains at; default: `model.image_size`.
    """
    known = {t.label_field: t.num_classes for t in config.tasks if t.num_classes is not None}
    definition = define_model_from_counts(config.model, config.tasks, counts or known)
    resolved = resolve_durations(config, num_examples=None)
    setup = build(definition, resolved, make_mesh(config.mesh, devices))
    return setup, lower(setup, image_size=image_size)


def lower(
    setup: Setup, patch_size: int | None = None, image_size: int | None = None
) -> jax.stages.Lowered:
    """The step for a batch of the config's size; `.compile()` gives what `step` would run."""
    batch = abstract_batch(setup)
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


def describe_layout(setup: Setup) -> str:
    """The layout as text: a line a parameter (equal blocks share one), and the bytes of the state on each device."""
    rows = [LAYOUT_COLUMNS, *layout_table(setup.layout())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(LAYOUT_COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    sizes = " x ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    held = bytes_per_device(setup.abstract, setup.shardings) / 2**30
    lines.append(f"mesh: {sizes}; state on each device: {held:.4g} GiB")
    return "\n".join(lines) + "\n"


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
        train_flops(setup.definition, setup.config.data.image_sizes) / 1e9,
    )
    logger.info("%s", text if setup.mesh.size > 1 else text.splitlines()[-1])
    if setup.mesh.devices.flat[0].platform == "tpu":
        for sentence in layout_warnings(setup.layout()):
            logger.warning(sentence)
