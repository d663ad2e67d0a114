"""Before paying: where everything lies, whether it fits, what the chips send each other, how long, and what it costs.

The step is compiled for the real chips when their compiler is installed (libtpu for TPUs, jax's CUDA plugin for GPUs),
else for as many fake CPU devices, which partition alike but do not tell a chip's memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass

import jax

from launch.chips import rent
from launch.plan_memory import (
    DeviceMemory,
    compiled_memory,
    memory_traffic,
    refused_memory,
    state_memory,
)
from vitscale.config import TrainConfig
from vitscale.config.selection import trained_tasks
from vitscale.data.sources import collect_classes
from vitscale.errors import UserError
from vitscale.models.resnet import is_cnn
from vitscale.models.vit_shape import resolve_shape
from vitscale.parallel import aot
from vitscale.parallel.collectives import Totals, collectives, theory, total_bytes
from vitscale.parallel.roofline import StepBounds, seconds_of_collectives
from vitscale.parallel.rules import layout_warnings
from vitscale.train.setup import Setup, lower, setup_for

# Threads of a host for each of its chips: machine types of cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
# (ct4p, ct5lp, ct5p, ct6e-standard-4t, tpu7x-standard-4t), a2-highgpu-8g,
# a2-ultragpu-8g, a3-highgpu-8g and a3-ultragpu-8g.
THREADS_PER_CHIP = {
    "v4": 60,
    "v5e": 28,
    "v5p": 52,
    "v6e": 45,
    "tpu7x": 56,
    "a100-40gb": 12,
    "a100-80gb": 12,
    "h100": 26,
    "h200": 28,
}
# What one core decodes and crops to 224 pixels: docs/input.md, "ours, worker processes" (benchmarks/input.py).
IMAGES_PER_CORE = 1316.0


@dataclass(frozen=True)
class Plan:
    """What one compile tells about a config on a topology."""

    setup: Setup
    topology: str
    chip: aot.Chip
    hosts: int
    compiled: bool  # False: of the memory the state alone is known
    on_real_chips: bool  # False: compiled for fake CPU devices
    compile_seconds: float
    refused: bool  # the compiler said that it cannot fit; nothing is known of what would be sent
    memory: DeviceMemory
    sent: Totals
    flops: float  # of a step's model, on all devices
    bounds: StepBounds
    warnings: tuple[str, ...]  # of the layout

    @property
    def peak_bytes(self) -> int:
        return self.memory.peak

    @property
    def fits(self) -> bool:
        return not self.refused and self.memory.peak <= self.chip.device_memory

    @property
    def chips(self) -> int:
        return self.setup.mesh.size // self.chip.devices_per_chip

    @property
    def hours(self) -> tuple[float, float]:
        """Of the whole run at best: with everything hidden behind the slowest part, and with nothing hidden."""
        steps = self.setup.config.total_steps
        return steps * self.bounds.hidden / 3600, steps * self.bounds.serial / 3600

    @property
    def mfu(self) -> tuple[float, float]:
        """Model FLOPs over the data sheet's rate, of the same two."""
        floor = self.flops / self.chips / self.chip.flops
        return floor / self.bounds.hidden, floor / self.bounds.serial

    @property
    def images_per_host(self) -> float:
        """Images a second that every host has to read and decode, at best."""
        return self.setup.config.data.global_batch_size / self.bounds.hidden / self.hosts

    @property
    def cores_per_host(self) -> float:
        """Of the usual machine for these chips: two threads a core."""
        chips = self.chips / self.hosts
        # A v6e's machine of 8 chips has the processors of one of 4.
        counted = min(chips, 4) if self.chip.name == "v6e" else chips
        return THREADS_PER_CHIP[self.chip.name] * counted / 2


def has_compiler(chip: aot.Chip) -> bool:
    """Whether programs for this chip can be compiled here."""
    return aot.has_tpu_compiler() if chip.torus else aot.has_gpu_compiler()


def make_plan(config: TrainConfig, topology: str, *, compiles: bool = True) -> Plan:
    """Compiles the step of `config` for `topology` ("v5e:4x4", "4*v5e:16x16", "h100:32").

    Without `compiles` only the state is in the memory, and what is sent is what it should be in theory.
    """
    parsed = aot.parse_topology(topology)
    hosts = count_hosts(
        topology
    )  # before a compile of minutes: a topology that nobody rents is answered with the list
    real = has_compiler(parsed.chip)
    if not real and compiles and parsed.slices > 1:
        raise UserError(
            "several slices need the TPU compiler: pip install 'vitscale[aot-tpu]', plan one of them, or add "
            "--no-compile."
        )
    devices = aot.topology_devices(topology) if real else jax.devices()
    setup = setup_for(config, devices, known_classes(config))
    began = time.perf_counter()
    refused, text = False, ""
    if compiles:
        # Memory is that of the largest images.
        with aot.assume_kernels(parsed.chip) if real else contextlib.nullcontext():
            lowered = lower(setup, image_size=max(config.data.image_sizes, default=None))
        began = time.perf_counter()
        memory, sent, text, refused = _compile(setup, lowered)
    else:
        memory, sent = state_memory(setup), theory_of(setup)
    seconds = time.perf_counter() - began
    flops = setup.flops_per_image * setup.config.data.global_batch_size
    traffic = memory_traffic(setup, text, compiles and real and not parsed.chip.torus)
    return Plan(
        setup,
        topology,
        parsed.chip,
        hosts,
        compiles,
        real,
        seconds,
        refused,
        memory,
        sent,
        flops,
        step_bounds(setup, topology, sent, flops, traffic),
        tuple(layout_warnings(setup.layout())),
    )


def _compile(setup: Setup, lowered: jax.stages.Lowered) -> tuple[DeviceMemory, Totals, str, bool]:
    """Memory, what is sent, the program's text, and whether the compiler refused it for its memory."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = refused_memory(setup, error)
        if found is None:
            raise
        return found, Totals(), "", True
    text = compiled.as_text() or ""
    sent = total_bytes(collectives(text, dict(setup.mesh.shape)))
    return compiled_memory(setup, compiled), sent, text, False


def theory_of(setup: Setup) -> Totals:
    """What the step has to send, from where its parameters lie."""
    config = setup.config
    return theory(
        setup.layout(),
        dict(setup.mesh.shape),
        compute_dtype=config.model.compute_dtype,
        gradient_dtype=config.model.gradient_dtype,
        tokens=config.data.global_batch_size * tokens_of(config),
    )


def tokens_of(config: TrainConfig) -> int:
    """Of an image; a CNN, which `tensor` never splits, has none."""
    if is_cnn(config.model.variant):
        return 0
    shape = resolve_shape(config.model)
    return math.prod(shape.grid) + shape.prefix


def step_bounds(
    setup: Setup, topology: str, sent: Totals, flops: float, traffic: int
) -> StepBounds:
    """The roofline: `traffic` is what a device reads and writes, `flops` are of all devices together."""
    chip = aot.parse_topology(topology).chip
    a_device = flops / setup.mesh.size
    return StepBounds(
        a_device / (chip.achieved_flops / chip.devices_per_chip),
        *seconds_of_collectives(sent, dict(setup.mesh.shape), topology),
        memory=traffic / (chip.achieved_bandwidth / chip.devices_per_chip),
    )


def known_classes(config: TrainConfig) -> dict[str, int]:
    """Classes of every label field that is trained: what the tasks state, else what the data holds. Numbers have one.

    All sources count, as in training: also those that `only_tasks` leaves out.
    """
    tasks = trained_tasks(config)
    stated = {t.label_field: 1 for t in tasks if t.kind == "regression"}
    stated |= {t.label_field: t.num_classes for t in tasks if t.num_classes is not None}
    missing = [t.label_field for t in tasks if t.label_field not in stated]
    if missing:
        try:
            found = collect_classes(config.data.sources, config.data.root)
        except UserError as error:
            raise UserError(
                f"{error} Where the data is not on this machine, set num_classes of the tasks that read "
                f"{', '.join(missing)}."
            ) from error
        stated |= {name: len(values) for name, values in found.items() if name in missing}
    return stated


def count_devices(topology: str) -> int:
    """How many jax devices a topology has."""
    parsed = aot.parse_topology(topology)
    return parsed.slices * parsed.chip.devices_per_chip * math.prod(parsed.shape)


def count_hosts(topology: str) -> int:
    """How many machines a topology has where it is rented: a v5e:2x4 is one, and libtpu would say two."""
    parsed = aot.parse_topology(topology)
    if not parsed.chip.torus:
        return parsed.shape[0]
    rented = rent(topology)
    return rented.slices * rented.hosts


def prepare_environment(topology: str) -> None:
    """Call before jax's first device: it must run on the CPU, with enough fake devices should they be needed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    flag = f"--xla_force_host_platform_device_count={count_devices(topology)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
