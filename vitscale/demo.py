"""`vitscale demo`: the whole loop on the generated catalogue, and the comparison that carries the mission's claim.

shop → prep → pretrain on weak labels → multi-task training from scratch and from the pretrained backbone, on the same
budget → evaluation of both, of the frozen backbone and of a random one, on products never trained on → one report.
Every stage is complete or absent, so a demo that was stopped goes on where it ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.pipeline import run_prep
from data_prep.schema import PrepConfig
from data_prep.shop.catalogue import ShopConfig, generate_shop
from vitscale.config import EvalConfig, TrainConfig
from vitscale.config_loading import load_config
from vitscale.demo_report import write_demo_report
from vitscale.errors import UserError
from vitscale.evals.evaluate import evaluate
from vitscale.models.weights import LoadedModel, load_model, random_model
from vitscale.progress import Task
from vitscale.terminal import format_interval, format_value, print_table
from vitscale.train.loop import train

SUMMARY_FILE, SETTINGS_FILE, REPORT_FILE = "summary.json", "demo.json", "report.html"
VARIANTS = ("random", "pretrained_frozen", "multitask_scratch", "multitask_pretrained")


@dataclass(frozen=True)
class DemoSize:
    """How much of everything. The two multi-task runs always get the same number of steps."""

    products: int
    pretrain_steps: int
    multitask_steps: int


SIZES = {
    "tiny": DemoSize(products=1500, pretrain_steps=2200, multitask_steps=700),
    "small": DemoSize(products=4000, pretrain_steps=16_000, multitask_steps=3000),
}


class Stages:
    """Says which stage runs, and how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        print(f"── {name}", flush=True)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        return result


def run_demo(workdir: Path, size_name: str, seed: int) -> dict[str, Any]:
    """Runs or finishes the demo in `workdir`; returns what `summary.json` holds."""
    size = SIZES[size_name]
    claim(workdir, {"size": size_name, "seed": seed})
    stages = Stages()
    shop, prep = workdir / "shop", workdir / "prep"
    stages.run("generate the catalogue", lambda: make_shop(shop, size, seed))
    stages.run("derive weak labels", lambda: make_labels(shop, prep))
    runs = {
        name: workdir / name for name in ("pretrain", "multitask_scratch", "multitask_pretrained")
    }
    pretrain = configure("pretrain", prep, size.pretrain_steps, seed)
    stages.run("pretrain on the weak labels", lambda: train(pretrain, runs["pretrain"]))
    scratch = configure("multitask", shop, size.multitask_steps, seed)
    stages.run("multi-task from scratch", lambda: train(scratch, runs["multitask_scratch"]))
    started = f"init.checkpoint={runs['pretrain']}"
    warm = configure("multitask", shop, size.multitask_steps, seed, started)
    stages.run(
        "multi-task from the pretrained backbone", lambda: train(warm, runs["multitask_pretrained"])
    )
    metrics = stages.run(
        "evaluate on unseen products", lambda: evaluate_all(workdir, shop, runs, seed)
    )
    summary: dict[str, Any] = {
        **metrics,
        "seconds": sum(stages.seconds.values()),
        "stages": stages.seconds,
    }
    write_demo_report(workdir, summary)
    summary["seconds"] = sum(stages.seconds.values())
    _write_json(workdir / SUMMARY_FILE, summary)
    show(summary, workdir)
    return summary


def make_shop(output: Path, size: DemoSize, seed: int) -> None:
    if output.exists():
        return
    with Task("render images", size.products) as progress:
        config = ShopConfig(products=size.products, seed=seed)
        generate_shop(
            config, output, progress=lambda done, total: progress.update(done, total=total)
        )


def make_labels(shop: Path, output: Path) -> None:
    if output.exists():
        return
    run_prep(load_config(PrepConfig, config_path("prep/shop")), shop / "catalogue.jsonl", output)


def configure(name: str, data_root: Path, steps: int, seed: int, *overrides: str) -> TrainConfig:
    """A config of `configs/demo/` with the demo's sizes: what `vitscale train --config.key=value` would read."""
    return load_config(
        TrainConfig,
        config_path(f"demo/{name}"),
        [
            f"data.root={data_root}",
            f"duration={steps}",
            f"optim.warmup={max(steps // 10, 1)}",
            f"seed={seed}",
            *overrides,
        ],
    )


def config_path(name: str) -> str:
    import configs

    return str(Path(configs.__path__[0]) / f"{name}.py")


def evaluate_all(
    workdir: Path, shop: Path, runs: dict[str, Path], seed: int
) -> dict[str, dict[str, Any]]:
    """The four models of the comparison, measured by one config."""
    config = load_config(EvalConfig, config_path("eval/shop"), [f"root={shop}", f"seed={seed}"])
    pretrained = load_model(runs["pretrain"])
    models: dict[str, LoadedModel] = {
        "random": random_model(pretrained.model, pretrained.tasks, pretrained.classes, seed),
        "pretrained_frozen": pretrained,
        "multitask_scratch": load_model(runs["multitask_scratch"]),
        "multitask_pretrained": load_model(runs["multitask_pretrained"]),
    }
    return {name: evaluate(config, models[name], workdir / "eval" / name) for name in VARIANTS}


def claim(workdir: Path, settings: dict[str, Any]) -> None:
    """A workdir belongs to one size and seed."""
    path = workdir / SETTINGS_FILE
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise UserError(
            f"{workdir} holds a demo with other settings ({path.read_text().strip()}); take a new --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    _write_json(path, settings)


def show(summary: dict[str, Any], workdir: Path) -> None:
    rows = []
    for name in VARIANTS:
        cells = [name.replace("_", " ")]
        for metric in ("retrieval/P@1", "retrieval/R@10", "retrieval/mAP@10"):
            m = summary[name][metric]
            cells.append(f"{format_value(m['value'])} ({format_interval(m['low'], m['high'])})")
        rows.append(cells)
    columns = ["model", "P@1 (95 %)", "R@10 (95 %)", "mAP@10 (95 %)"]
    print_table(
        "photos in the wild search catalogue shots of products never trained on", columns, rows
    )
    print(f"{summary['seconds']:.0f} s; open {workdir / REPORT_FILE}")


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)
