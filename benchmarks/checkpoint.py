"""What a checkpoint costs a run: the time that saving keeps it from its steps, beside writing at once.

    .venv/bin/python benchmarks/checkpoint.py --model B/16 --rounds 3

Prints the seconds blocked by an asynchronous save, the seconds until it is complete and those of a blocking save of the
same state, and the first as a share of `checkpoint.every_steps` steps of the given length (on an accelerator; a step
of a CPU would make it look smaller than it is).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax

from vitscale.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TaskConfig,
    TrainConfig,
)
from vitscale.models.multitask import define_model_from_counts
from vitscale.parallel.mesh import make_mesh
from vitscale.train.checkpoint import CheckpointStore
from vitscale.train.setup import build
from vitscale.train.state import TrainState, init_state


def make_state(model: str) -> TrainState:
    config = TrainConfig(
        data=DataConfig((SourceConfig("csv", "none"),)),
        tasks=(TaskConfig("label", "single_label", num_classes=1000),),
        duration=1000,
        model=ModelConfig(model),
        optim=OptimConfig(),
    )
    definition = define_model_from_counts(config.model, config.tasks, {"label": 1000})
    setup = build(definition, config, make_mesh(config.mesh, jax.devices()[:1]))
    return jax.jit(lambda: init_state(definition, setup.optimizer, 0))()


def measure(state: TrainState, rounds: int, folder: Path) -> dict[str, float]:
    blocked, complete, synchronous = [], [], []
    with CheckpointStore(folder, CheckpointConfig(every_steps=1)) as store:
        for step in range(1, 2 * rounds + 1, 2):
            began, before = time.perf_counter(), store.blocked_seconds
            store.save(step, state, {"config": {}}, {})
            blocked.append(store.blocked_seconds - before)
            store.wait()
            complete.append(time.perf_counter() - began)
            began = time.perf_counter()
            store.save(step + 1, state, {"config": {}}, {})
            store.wait()
            synchronous.append(time.perf_counter() - began)
    return {
        "blocked_s": statistics.median(blocked),
        "complete_s": statistics.median(complete),
        "synchronous_s": statistics.median(synchronous),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="B/16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--step-ms", type=float, default=85.0, help="roofline of B/16 at batch 512 on an H200"
    )
    arguments = parser.parse_args()
    state = make_state(arguments.model)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    folder = Path(tempfile.mkdtemp(prefix="vitscale-checkpoint-"))
    try:
        figures = measure(state, arguments.rounds, folder)
    finally:
        shutil.rmtree(folder)
    every = CheckpointConfig().every_steps
    times = figures["synchronous_s"] / figures["blocked_s"]
    share = figures["blocked_s"] / (every * arguments.step_ms / 1000)
    print(f"{arguments.model}: a state of {size / 2**30:.2f} GiB, median of {arguments.rounds}")
    print(f"  blocked by the save       {figures['blocked_s']:.3f} s")
    print(f"  written and checked after {figures['complete_s']:.2f} s")
    print(
        f"  a blocking save           {figures['synchronous_s']:.2f} s: {times:.0f} times as long"
    )
    print(f"  share of {every} steps of {arguments.step_ms:g} ms: {share:.2%}")
    print(
        json.dumps(
            {
                "benchmark": "checkpoint",
                "model": arguments.model,
                "bytes": size,
                **figures,
                "share": share,
            }
        )
    )


if __name__ == "__main__":
    main()
