"""One training run, top to bottom: config → mesh → data → abstract state → restore or init → steps → hooks."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from vitscale.config import DataConfig, InitConfig, TrainConfig
from vitscale.config_loading import to_json
from vitscale.data.loader import Batch, TrainLoader
from vitscale.data.sources import Source, collect_classes, open_source
from vitscale.errors import Preempted, UserError
from vitscale.models.adapt import adapt, compare_shapes
from vitscale.models.flops import device_peak_flops, num_parameters, train_flops
from vitscale.models.multitask import ModelDefinition, check_model, define_model
from vitscale.models.weights import (
    find_step,
    has_step,
    read_description,
    read_meta,
    read_params,
)
from vitscale.parallel.mesh import batch_sharding, check_batch, make_mesh, replicated
from vitscale.progress import Task
from vitscale.train.checkpoint import CheckpointStore
from vitscale.train.hooks import MetricsWriter, RateMeter, StopSignal
from vitscale.train.optim import make_optimizer, make_schedule
from vitscale.train.state import TrainState, abstract_state, init_state, state_shardings
from vitscale.train.step import Step, make_step, sample_patch_size

logger = logging.getLogger(__name__)
CONFIG_FILE, CLASSES_FILE, REJECTS_FILE = "config.json", "classes.json", "rejects.jsonl"
# What may change between two starts of one run: where and how it runs, not what it computes.
FREE_KEYS = ("mesh", "log", "checkpoint", "data.root", "data.num_threads", "data.prefetch_batches")

# cuBLASLt adds biases and residuals and applies GELU while a product is still in registers; XLA's Triton products
# leave that to kernels of their own: 70 % more bytes outside products for B/16 (docs/performance.md).
GPU_COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Setup:
    """The parts of a run that exist before any array does."""

    definition: ModelDefinition
    optimizer: optax.GradientTransformation
    shardings: TrainState  # of NamedSharding
    step: Step  # jitted


def train(config: TrainConfig, workdir: Path) -> TrainState:
    """Trains to `config.total_steps`, going on from the workdir's newest checkpoint when there is one."""
    check_model(config.model, jax.default_backend())
    mesh = make_mesh(config.mesh)
    check_batch(config.data.global_batch_size, mesh)
    classes, sources = open_data(config.data)
    definition = define_model(config.model, config.tasks, classes)
    claim_workdir(workdir, config, classes)
    logger.info(
        "model: %s, %.4g M parameters, %.4g GFLOP an image and training step",
        config.model.variant,
        num_parameters(definition) / 1e6,
        train_flops(definition) / 1e9,
    )
    setup = build(definition, config, mesh)
    loader = make_loader(config, sources)
    try:
        with CheckpointStore(workdir, config.checkpoint) as store:
            state = restore_or_init(store, setup, config, loader)
            return run_steps(state, setup, config, classes, loader, store, mesh, workdir)
    finally:
        write_rejects(workdir, loader)
        loader.close()


def run_steps(
    state: TrainState,
    setup: Setup,
    config: TrainConfig,
    classes: Mapping[str, Sequence[str]],
    loader: TrainLoader,
    store: CheckpointStore,
    mesh: Mesh,
    workdir: Path,
) -> TrainState:
    """The hot loop. The host waits for the device at logging points only."""
    start, total = int(state.step), config.total_steps
    flops = train_flops(setup.definition)
    peak = device_peak_flops() * jax.device_count()
    writing = MetricsWriter(
        workdir,
        start_step=start,
        tensorboard=config.log.tensorboard,
        enabled=jax.process_index() == 0,
    )
    meter = RateMeter(config.data.global_batch_size)
    # Collectives of several steps in flight starve the thread pool that fake CPU devices share: a deadlock.
    one_at_a_time = jax.default_backend() == "cpu" and jax.device_count() > 1
    with StopSignal() as stop, Task("train", total, start) as progress, writing as writer:
        for step in range(start + 1, total + 1):
            waited = time.perf_counter()
            batch = put_batch(next(loader), mesh)
            meter.waited(time.perf_counter() - waited)
            state, metrics = setup.step(state, batch, sample_patch_size(config, step))
            if one_at_a_time:
                jax.block_until_ready(metrics)
            if step % config.log.every_steps == 0 or step in (1, total):
                values = {f"train/{k}": float(v) for k, v in jax.device_get(metrics).items()}
                values |= meter.read(flops, peak)
                writer.write(step, values)
                progress.update(
                    step,
                    f"loss {values['train/loss']:.3f}, {values['images_per_sec']:.0f} images/s",
                )
            if step % config.checkpoint.every_steps == 0 or step == total or stop.requested:
                store.save(step, state, config, classes, loader.get_state())
            if stop.requested and step < total:
                raise Preempted(
                    f"stopped by SIGTERM after step {step}, which is saved in {workdir}"
                )
    return state


def open_data(config: DataConfig) -> tuple[dict[str, list[str]], list[Source]]:
    """The label spaces that the sources span together, and the sources."""
    classes = collect_classes(config.sources, config.root)
    return classes, [open_source(source, config.root, classes) for source in config.sources]


def make_loader(config: TrainConfig, sources: Sequence[Source]) -> TrainLoader:
    return TrainLoader(
        sources,
        config.data,
        image_size=config.model.image_hw,
        fields=sorted({task.label_field for task in config.tasks}),
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def build(definition: ModelDefinition, config: TrainConfig, mesh: Mesh) -> Setup:
    """The jitted step with every input and output placed."""
    axes = definition.axes()
    optimizer = make_optimizer(
        config.optim, config.total_steps, {name: axes[name] for name in definition.shapes()}
    )
    shardings = state_shardings(definition, optimizer, mesh, config.mesh.layout)
    schedule = make_schedule(config.optim, config.total_steps)
    pure_step = make_step(definition, optimizer, schedule, config)

    def step_on_mesh(
        state: TrainState, batch: dict[str, Any], patch_size: int | None = None
    ) -> Any:
        # Pallas kernels ask for the mesh while they are traced: XLA does not partition them.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return pure_step(state, batch, patch_size)

    on_gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    step = jax.jit(
        step_on_mesh,
        compiler_options=GPU_COMPILER_OPTIONS if on_gpu else None,
        static_argnums=2,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Setup(definition, optimizer, shardings, step)


def restore_or_init(
    store: CheckpointStore, setup: Setup, config: TrainConfig, loader: TrainLoader
) -> TrainState:
    """The newest checkpoint with the data position it was saved at, or a fresh state."""
    latest = store.latest_step()
    if latest is not None:
        abstract = abstract_state(setup.definition, setup.optimizer)
        state, meta = store.restore(latest, abstract, setup.shardings)
        loader.set_state(meta["data"])
        return state
    create = jax.jit(
        lambda seed: init_state(setup.definition, setup.optimizer, seed),
        out_shardings=setup.shardings,
    )
    state = create(config.seed)
    if not config.init.checkpoint:
        return state
    taken = initial_params(config.init, setup.definition)
    places = {**setup.shardings.params, **setup.shardings.statistics}
    placed = {name: jax.device_put(value, places[name]) for name, value in taken.items()}
    return dataclasses.replace(
        state,
        params={name: placed.get(name, value) for name, value in state.params.items()},
        statistics={name: placed.get(name, value) for name, value in state.statistics.items()},
    )


def initial_params(config: InitConfig, definition: ModelDefinition) -> dict[str, Any]:
    """The variables that `init` takes from another run. Every one of them must be there with the same shape.

    Layers are stacked or unstacked, and positions and patch kernel resized, to this model's layout and resolution.
    """
    folder = find_step(Path(config.checkpoint))
    meta = read_meta(folder)
    model, tasks = read_description(meta)
    other = define_model(model, tasks, meta["classes"])
    params = adapt(read_params(folder, other.variable_shapes()), model, definition.config)
    ours = definition.variable_shapes()
    wanted = [name for name in ours if re.search(config.include, name)]
    if not wanted:
        raise UserError(f"init.include={config.include!r} matches no parameter of this model.")
    problems = compare_shapes(
        {n: ours[n].shape for n in wanted}, {n: p.shape for n, p in params.items()}
    )
    if problems:
        raise UserError(
            f"init.checkpoint {folder}: {problems}; narrow init.include, or change the model."
        )
    return {name: params[name] for name in wanted}


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, Any]:
    """This process's rows as part of the global, sharded batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), batch.arrays()
    )


def claim_workdir(workdir: Path, config: TrainConfig, classes: Mapping[str, Sequence[str]]) -> None:
    """Writes `config.json` and `classes.json`; refuses a workdir with checkpoints of another config."""
    text = to_json(config)
    path = workdir / CONFIG_FILE
    changed: list[str] = []
    if path.is_file() and has_step(workdir):
        keys = _changed_keys(json.loads(path.read_text()), json.loads(text))
        changed = [key for key in keys if not key.startswith(FREE_KEYS)]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config (it differs in {', '.join(changed[:5])}); "
            "take a new --workdir, or the old config to go on with that run."
        )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        _write(
            workdir / CLASSES_FILE,
            json.dumps({k: list(v) for k, v in classes.items()}, ensure_ascii=False),
        )
        _write(path, text)


def write_rejects(workdir: Path, loader: TrainLoader) -> None:
    """Every image that could not be decoded so far, with its reason."""
    rejects = loader.rejects
    if rejects and jax.process_index() == 0:
        rows = [
            json.dumps({"id": name, "stage": "decode", "reason": why})
            for name, why in rejects.items()
        ]
        _write(workdir / REJECTS_FILE, "\n".join(rows) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _changed_keys(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            key
            for name in {**old, **new}
            for key in _changed_keys(
                old.get(name), new.get(name), f"{where}.{name}" if where else name
            )
        ]
    return [] if old == new else [where]
