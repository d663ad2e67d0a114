"""Images/s of one training step on CPU: glibc told to keep freed memory (as `vitscale train` does) against its default.

python benchmarks/train_step.py --variant S/8 --width 96 --depth 3 --image-size 48 --batch 64

Each side is a process of its own, since the setting is the process's. Prints one JSON line.
"""

import argparse
import json
import subprocess
import sys
import time


def measure(arguments: argparse.Namespace) -> dict:
    from vitscale.parallel.host_memory import keep_freed_memory

    if arguments.keep:
        keep_freed_memory()
    import jax
    import numpy as np

    from vitscale.config import DataConfig, ModelConfig, SourceConfig, TaskConfig, TrainConfig
    from vitscale.models.flops import device_peak_flops, train_flops
    from vitscale.models.multitask import define_model
    from vitscale.parallel.mesh import make_mesh
    from vitscale.train.loop import build
    from vitscale.train.state import init_state

    size, batch_size = arguments.image_size, arguments.batch
    model = ModelConfig(
        arguments.variant, size, arguments.width, arguments.depth, arguments.width // 32
    )
    data = DataConfig((SourceConfig("csv", "none"),), global_batch_size=batch_size)
    config = TrainConfig(data, (TaskConfig("concepts", "multi_label"),), 1000, model)
    definition = define_model(model, config.tasks, {"concepts": ["class"] * 256})
    setup = build(definition, config, make_mesh(config.mesh))
    create = jax.jit(
        lambda: init_state(definition, setup.optimizer, 0), out_shardings=setup.shardings
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (batch_size, size, size, 3), np.uint8),
        "position": np.arange(batch_size, dtype=np.uint32),
        "labels": {"concepts": rng.integers(0, 256, (batch_size, 8), np.int32)},
        "weights": {"concepts": np.ones((batch_size, 8), np.float32)},
    }
    start = time.perf_counter()
    state, metrics = setup.step(create(), batch)
    jax.block_until_ready(metrics)
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(arguments.steps):
        state, metrics = setup.step(state, batch)
    jax.block_until_ready(metrics)
    rate = arguments.steps * batch_size / (time.perf_counter() - start)
    flops = train_flops(definition)
    return {
        "images_per_sec": rate,
        "mfu": rate * flops / device_peak_flops(),
        "compile_seconds": compile_seconds,
        "mflop_per_image": flops / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="S/8")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    sides = {}
    for side, flags in {"default": [], "keep_freed_memory": ["--keep"]}.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", *flags]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        sides[side] = {k: round(v, 3) for k, v in json.loads(output.splitlines()[-1]).items()}
    ratio = sides["keep_freed_memory"]["images_per_sec"] / sides["default"]["images_per_sec"]
    print(json.dumps({"benchmark": "train_step", **sides, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
