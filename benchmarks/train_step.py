"""Speed of one complete training step (augmentation, forward, backward, clipping, AdamW) beside its rivals in one run.

    python benchmarks/train_step.py --model B/16 --batch 256                 # ours alone
    python benchmarks/train_step.py --model Ti/16 --batch 16 --vs plain timm # beside plain jnp and timm

Rivals: `plain`, the same ViT written plainly in jnp (benchmarks/plain_vit.py); `timm`, under torch.compile with bf16
autocast, fused AdamW and flash attention on a GPU, eager in float32 on a CPU; `malloc`, ours with glibc's default
memory settings (vitscale.parallel.host_memory); `dot_product_attention`, ours on a CPU with jax.nn's attention.

Every side is a process of its own; sides take turns for `--rounds` rounds, and the fastest step of each counts, so that
a busy machine slows all of them alike. Prints a table and one JSON line: images/s, MFU (model FLOPs over the device's
dense bf16 peak; a CPU's peak is measured in float32), peak memory, seconds to trace and compile the step (timm: its
first step), and the ratio of our rate to each rival's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

CLASSES = 1000
RIVALS = ("plain", "timm", "malloc", "dot_product_attention")
TIMM_NAMES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}


def training_config(arguments: argparse.Namespace, compute_dtype: str) -> Any:
    from vitscale.config import TrainConfig
    from vitscale.config_loading import apply_override, from_mapping

    tree: dict[str, Any] = {
        "model": {
            "variant": arguments.model,
            "image_size": arguments.image_size,
            "compute_dtype": compute_dtype,
        },
        "data": {
            "sources": [{"kind": "csv", "path": "none"}],
            "global_batch_size": arguments.batch,
        },
        "tasks": [{"name": "concepts", "kind": "multi_label"}],
        "duration": 1000,
    }
    for override in arguments.set:
        apply_override(tree, override, TrainConfig)
    return from_mapping(TrainConfig, tree)


def measure_steps(step: Callable[[], None], count: int) -> float:
    """Seconds of the fastest of `count` steps; `step` waits for the device itself."""
    best = float("inf")
    for _ in range(count):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best


def measure_jax(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    if side != "malloc":
        from vitscale.parallel.host_memory import keep_freed_memory

        keep_freed_memory()
    import jax

    if side == "dot_product_attention":
        from vitscale.models import attention

        attention._head_major = lambda q, k, v, _: jax.nn.dot_product_attention(q, k, v)
    on_gpu = jax.default_backend() != "cpu"
    dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    config = training_config(arguments, dtype)
    step, compile_seconds = plain_step(config) if side == "plain" else our_step(config)
    step()
    seconds = measure_steps(step, arguments.steps)
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use") or peak_host_bytes()
    return {"seconds": seconds, "compile_seconds": compile_seconds, "peak_memory_bytes": peak}


def our_step(config: Any) -> tuple[Callable[[], None], float]:
    """The trainer's own step on one random batch, and the seconds that tracing and compiling it took."""
    import jax

    from vitscale.models.multitask import define_model
    from vitscale.parallel.mesh import make_mesh
    from vitscale.train.loop import build
    from vitscale.train.state import init_state

    definition = define_model(config.model, config.tasks, {"concepts": ["class"] * CLASSES})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    setup = build(definition, config, mesh)
    seed = config.seed
    create = jax.jit(
        lambda: init_state(definition, setup.optimizer, seed), out_shardings=setup.shardings
    )
    state, batch = create(), jax.device_put(random_batch(config))
    start = time.perf_counter()
    compiled = setup.step.lower(state, batch, None).compile()
    seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return run, seconds


def plain_step(config: Any) -> tuple[Callable[[], None], float]:
    import jax
    import plain_vit  # beside this file

    batch = random_batch(config)
    images, labels = jax.device_put((batch["image"], batch["labels"]["concepts"][:, 0]))
    jitted, params, state = plain_vit.create_step(config, CLASSES, cls_token=False)
    start = time.perf_counter()
    step = jitted.lower(params, state, images, labels).compile()
    seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal params, state
        params, state, loss = step(params, state, images, labels)
        jax.block_until_ready(loss)

    return run, seconds


def random_batch(config: Any) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    size, k = config.data.global_batch_size, config.data.max_labels
    return {
        "image": rng.integers(0, 255, (size, *config.model.image_hw, 3), np.uint8),
        "position": np.arange(size, dtype=np.uint32),
        "labels": {"concepts": rng.integers(0, CLASSES, (size, k), np.int32)},
        "weights": {"concepts": np.ones((size, k), np.float32)},
        "valid": np.ones(size, bool),
        "task_mask": {"concepts": np.ones(size, bool)},
    }


def measure_timm(arguments: argparse.Namespace) -> dict[str, float]:
    # The rival gets the same memory settings: what is compared is the step.
    from vitscale.parallel.host_memory import keep_freed_memory

    keep_freed_memory()
    import torch

    config = training_config(arguments, "float32")
    model = create_timm(config)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = model.to(device).train()
    batch = random_batch(config)
    images = torch.from_numpy(batch["image"]).to(device)
    labels = torch.from_numpy(batch["labels"]["concepts"][:, 0]).long().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    forward = torch.compile(model) if cuda else model

    def step() -> None:
        inputs = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            loss = torch.nn.functional.cross_entropy(forward(inputs).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    start = time.perf_counter()
    step()
    compile_seconds = time.perf_counter() - start
    seconds = measure_steps(step, arguments.steps)
    peak = torch.cuda.max_memory_allocated() if cuda else peak_host_bytes()
    return {"seconds": seconds, "compile_seconds": compile_seconds, "peak_memory_bytes": peak}


def create_timm(config: Any) -> Any:
    """timm's model of the same sizes: GAP without a cls token, as ours by default."""
    import torch

    try:
        import timm
    except (
        RuntimeError
    ):  # torchvision's PyPI wheel beside a CPU torch misses two operators that nobody calls
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor"
            )
        import timm
    from vitscale.models.resnet import is_cnn

    if is_cnn(config.model.variant):
        return timm.create_model(config.model.variant, num_classes=CLASSES)
    from vitscale.models.vit_shape import resolve_shape

    size, patch = (shape := resolve_shape(config.model)).size, shape.patch
    return timm.models.vision_transformer.VisionTransformer(
        img_size=config.model.image_hw,
        patch_size=patch,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_dim / size.width,
        global_pool="avg",
        class_token=False,
        num_classes=CLASSES,
        act_layer="gelu_tanh",
    )


def peak_host_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_side(side: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", side]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{side} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def describe(sides: dict[str, dict[str, float]], arguments: argparse.Namespace) -> dict[str, Any]:
    from vitscale.models.flops import device_peak_flops, train_flops
    from vitscale.models.multitask import define_model

    config = training_config(arguments, "float32")
    definition = define_model(config.model, config.tasks, {"concepts": ["class"] * CLASSES})
    flops, peak = train_flops(definition), device_peak_flops()
    result: dict[str, Any] = {
        "benchmark": "train_step",
        "model": arguments.model,
        "batch": arguments.batch,
        "image_size": arguments.image_size,
        "gflop_per_image": round(flops / 1e9, 2),
        "peak_tflops": round(peak / 1e12, 3),
    }
    for side, values in sides.items():
        rate = arguments.batch / values["seconds"]
        result[side] = {
            "images_per_sec": round(rate, 1),
            "mfu": round(rate * flops / peak, 3),
            "peak_memory_gib": round(values["peak_memory_bytes"] / 2**30, 2),
            "compile_seconds": round(values["compile_seconds"], 1),
        }
    ours = sides["ours"]["seconds"]
    result["ratio"] = {s: round(v["seconds"] / ours, 3) for s, v in sides.items() if s != "ours"}
    return result


def print_result(result: dict[str, Any]) -> None:
    from vitscale.terminal import print_table

    columns = ["images_per_sec", "mfu", "peak_memory_gib", "compile_seconds"]
    sides = [s for s in ("ours", *RIVALS) if s in result]
    rows = [
        [s, *(str(result[s][c]) for c in columns), str(result["ratio"].get(s, ""))] for s in sides
    ]
    title = f"{result['model']}, batch {result['batch']}, {result['image_size']} px"
    print_table(title, ["side", *columns, "ours / it"], rows)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="B/16", help="variant of the model config")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--set", action="append", default=[], help="override, e.g. model.depth=3")
    parser.add_argument("--dtype", help="of our activations; default bfloat16, on a CPU float32")
    parser.add_argument("--vs", nargs="*", choices=RIVALS, default=[])
    parser.add_argument("--steps", type=int, default=10, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=("ours", *RIVALS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        timm = arguments.measure == "timm"
        values = measure_timm(arguments) if timm else measure_jax(arguments.measure, arguments)
        print(json.dumps(values))
        return
    sides: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for side in ("ours", *arguments.vs):
            values = run_side(side)
            if side not in sides or values["seconds"] < sides[side]["seconds"]:
                sides[side] = values
    print_result(describe(sides, arguments))


if __name__ == "__main__":
    main()
