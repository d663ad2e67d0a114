"""Bytes, FLOPs and memory of one complete training step on an H100 or H200, counted from the compiled program.

    make .venv-aot/.ready
    .venv-aot/bin/python benchmarks/hlo_traffic.py --model B/16 --batch 512 --rival plain

Needs no GPU: the step (augmentation, forward, backward, clipping, AdamW) is compiled ahead of time, and every kernel's
bytes are read from the optimised HLO (`vitscale.parallel.hlo`). Prints a table, the greatest consumers outside matrix
products with the source lines they come from, and last one JSON line. Times are a roofline's, not measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax: the GPU is only compiled for
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # "no CUDA driver": known

import jax

from vitscale.config import TrainConfig
from vitscale.config_loading import apply_override, from_mapping
from vitscale.models.flops import train_flops
from vitscale.models.multitask import define_model
from vitscale.parallel.aot import (
    CHIPS,
    GIB,
    Chip,
    assume_cudnn,
    gpu_topology,
    peak_memory,
)
from vitscale.parallel.hlo import Traffic, top, traffic
from vitscale.train.setup import GPU_COMPILER_OPTIONS, lower_step

TASK = "concepts"
GPUS = sorted(name for name, chip in CHIPS.items() if not chip.torus)


@dataclass(frozen=True)
class Program:
    """A compiled training step: what it moves, and what it keeps."""

    text: str  # optimised HLO
    batch: int
    memory_bytes: int  # at its peak, arguments included
    compile_seconds: float

    def traffic(self) -> Mapping[str, Traffic]:
        return traffic(self.text)

    def overhead_bytes_per_image(self) -> float:
        """Bytes of everything but matrix products, convolutions and attention."""
        kinds = self.traffic()
        return sum(kinds[kind].bytes for kind in ("other", "copy", "collective")) / self.batch


def training_config(
    model: str, batch: int, image_size: int = 224, overrides: Sequence[str] = ()
) -> TrainConfig:
    """The run that is compiled: bf16 compute, float32 masters, one softmax over multi-label concepts."""
    tree: dict[str, Any] = {
        "model": {
            "variant": model,
            "image_size": image_size,
            "compute_dtype": "bfloat16",
            "attention": "cudnn",
        },
        "data": {"sources": [{"kind": "csv", "path": "none"}], "global_batch_size": batch},
        "tasks": [{"name": TASK, "kind": "multi_label"}],
        "duration": 1000,
    }
    for override in overrides:
        apply_override(tree, override, TrainConfig)
    return from_mapping(TrainConfig, tree)


def compile_step(
    config: TrainConfig, classes: int, target: str, options: Mapping[str, Any] | None = None
) -> Program:
    """The step that `vitscale train` jits, compiled for one `target` GPU."""
    with assume_cudnn():
        _, lowered = lower_step(config, gpu_topology(target), {TASK: classes})
    return compile_program(lowered, config.data.global_batch_size, options)


def compile_program(
    lowered: jax.stages.Lowered, batch: int, options: Mapping[str, Any] | None = None
) -> Program:
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=dict(options) if options else None)
    seconds = time.perf_counter() - start
    return Program(compiled.as_text(), batch, peak_memory(compiled), seconds)


def report(name: str, program: Program, gpu: Chip) -> dict[str, Any]:
    """Prints the table of one program; returns its figures."""
    rows: dict[str, Any] = {}
    bound = 0.0
    print(f"{name}: {program.batch} images, compiled in {program.compile_seconds:.0f} s")
    print("  class        kernels      GB   ms at bandwidth   TFLOP   ms at peak")
    for kind, total in program.traffic().items():
        if not total.count:
            continue
        move = 1e3 * total.bytes / gpu.achieved_bandwidth
        compute = 1e3 * total.flops / gpu.achieved_flops
        bound += max(move, compute)
        print(
            f"  {kind:<12} {total.count:>7} {total.bytes / 1e9:>7.2f} {move:>17.1f}"
            f" {total.flops / 1e12:>7.2f} {compute:>12.1f}"
        )
        rows[kind] = {**asdict(total), "bytes_per_image": round(total.bytes / program.batch)}
    memory = program.memory_bytes / GIB
    print(
        f"  memory {memory:.1f} GiB of {gpu.memory_bytes / GIB:.0f}; step at least {bound:.0f} ms: "
        f"at most {1e3 * program.batch / bound:,.0f} images/s"
    )
    return {
        "kinds": rows,
        "overhead_bytes_per_image": round(program.overhead_bytes_per_image()),
        "memory_gib": round(memory, 2),
        "bound_ms": round(bound, 2),
        "compile_seconds": round(program.compile_seconds, 1),
    }


def print_top(program: Program, count: int) -> None:
    print(f"\n  greatest {count} outside matrix products and attention\n       GB kernels  where")
    for row in top(program.text, count, ("other", "copy", "collective")):
        print(f"  {row.bytes / 1e9:>7.3f} {row.count:>7}  {row.source or row.kind}  {row.op_name}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="B/16")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--target", choices=GPUS, default="h200")
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--rival", choices=["plain"], help="a textbook ViT, in the same run")
    parser.add_argument(
        "--triton",
        action="store_true",
        help="XLA's default products instead of the trainer's choice",
    )
    parser.add_argument("--dump", help="write the optimised HLO to this file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. model.remat=full"
    )
    arguments = parser.parse_args()
    config = training_config(arguments.model, arguments.batch, arguments.image_size, arguments.set)
    gpu = CHIPS[arguments.target]
    options = {"xla_gpu_enable_triton_gemm": True} if arguments.triton else None
    program = compile_step(config, arguments.classes, arguments.target, options)
    figures = {"vitscale": report("vitscale", program, gpu)}
    print_top(program, arguments.top)
    if arguments.dump:
        with open(arguments.dump, "w") as file:
            file.write(program.text)
    definition = define_model(config.model, config.tasks, {TASK: ["class"] * arguments.classes})
    figures["model_tflop"] = round(train_flops(definition) * arguments.batch / 1e12, 2)
    if arguments.rival:
        from plain_vit import lower_plain

        rival = compile_program(
            lower_plain(config, arguments.classes, gpu_topology(arguments.target)),
            arguments.batch,
            GPU_COMPILER_OPTIONS,
        )
        figures["plain"] = report("plain ViT", rival, gpu)
        ratio = rival.overhead_bytes_per_image() / program.overhead_bytes_per_image()
        print(f"  the plain ViT moves {ratio:.2f} times the bytes outside products and attention")
        figures["overhead_ratio"] = round(ratio, 3)
    print(
        json.dumps(
            {
                "benchmark": "hlo_traffic",
                "model": arguments.model,
                "batch": arguments.batch,
                "target": arguments.target,
                **figures,
            }
        )
    )


if __name__ == "__main__":
    main()
