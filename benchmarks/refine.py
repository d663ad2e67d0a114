"""What `vitscale prep refine` does to the labels of the generated catalogue: one JSON line.

    python benchmarks/refine.py [--products 1500] [--steps 1200] [--folds 2] [--seed 0] [--workdir DIR] [--memorised]

Catalogue, labels from its text, one small model a fold (`configs/demo/pretrain.py`) trained on the images of the other
folds, refinement by those models; then precision and recall of type, colour and material against the truth, before and
after (`benchmarks/prep.py`), of what was dropped and added, and how well the probabilities are calibrated. The truth is
read here, after the run, and nowhere else.

--memorised also refines with one model that was trained on the very labels that it judges.
A stage that `--workdir` holds already is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from prep import KINDS, measure_labels, name_concepts, surface_concepts

ROOT = Path(__file__).parent.parent
PRETRAIN = ROOT / "configs" / "demo" / "pretrain.py"
CALIBRATION_BINS = 10


def vitscale(*words: object) -> None:
    """Runs the command as a user does."""
    command = [sys.executable, "-m", "vitscale.cli", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def prepare(folder: Path, products: int, seed: int) -> None:
    """shop/ and prep/ in `folder`."""
    shop, prep = folder / "shop", folder / "prep"
    if not shop.exists():
        vitscale("shop", "--output", shop, "--products", products, "--seed", seed)
    if not prep.exists():
        config = ROOT / "configs" / "prep" / "shop.py"
        vitscale(
            *("prep", "--config", config, "--input", shop / "catalogue.jsonl", "--output", prep)
        )


def train(data: Path, workdir: Path, steps: int, seed: int) -> Path:
    """A model of the demo's pretraining."""
    vitscale(
        *("train", "--config", PRETRAIN, "--workdir", workdir, f"--config.data.root={data}"),
        *(f"--config.duration={steps}", f"--config.optim.warmup={max(steps // 10, 1)}"),
        f"--config.seed={seed}",
    )
    return workdir


def refine(folder: Path, models: list[Path], name: str, options: list[str]) -> Path:
    output = folder / name
    shutil.rmtree(output, ignore_errors=True)
    given = [word for model in models for word in ("--checkpoint", model)]
    vitscale("prep", "refine", "--prep", folder / "prep", *given, "--output", output, *options)
    return output


def measure_refinement(prep: Path, refined: Path, shop: Path) -> dict[str, object]:
    """Quality before and after, and of each action, over the labels that name a type, a colour or a material."""
    before, after = measure_labels(prep, shop), measure_labels(refined, shop)
    result: dict[str, object] = {}
    for name in ("label_precision", "label_recall"):
        result[name] = {"before": round(before[name], 4), "after": round(after[name], 4)}
    for kind in KINDS:
        for name in (f"{kind}_precision", f"{kind}_recall"):
            result[name] = {"before": round(before[name], 4), "after": round(after[name], 4)}
    rows = pq.read_table(refined / "refinement.parquet").to_pylist()
    truth = pq.read_table(shop / "truth" / "truth.parquet").to_pylist()
    true = {row["id"]: {row[kind] for kind in KINDS if row[kind]} for row in truth}
    named = set().union(*true.values())
    concept = name_concepts(prep, surface_concepts(shop))
    judged = [
        (row["action"], row["probability"], concept[row["label"]] in true[row["id"]])
        for row in rows
        if concept.get(row["label"]) in named
    ]
    actions = {}
    for action in sorted({action for action, _, _ in judged}):
        right = [r for a, _, r in judged if a == action]
        actions[action] = {"pairs": len(right), "right": round(float(np.mean(right)), 4)}
    result["actions"] = actions
    scored = [(p, r) for _, p, r in judged if p is not None]
    probability, right = (np.array(column, float) for column in zip(*scored, strict=True))
    result["brier"] = round(float(((probability - right) ** 2).mean()), 4)
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    result["calibration"] = [
        [
            round(float(probability[bins == b].mean()), 3),
            round(float(right[bins == b].mean()), 3),
            int((bins == b).sum()),
        ]
        for b in range(CALIBRATION_BINS)
        if (bins == b).any()
    ]
    manifest = json.loads((refined / "manifest.json").read_text(encoding="utf-8"))
    result["records_labelled"] = manifest["counts"]["labelled"]
    result["refine_seconds"] = round(sum(manifest["refinement"]["seconds"].values()), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--products", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=1200, help="of each model's training")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--memorised", action="store_true")
    parser.add_argument("--option", action="append", default=[], help="of `prep refine`; repeated")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.workdir or Path(temporary)
        prepare(folder, arguments.products, arguments.seed)
        folds = folder / f"folds-{arguments.folds}"
        if not folds.exists():
            options = ("--folds", arguments.folds, "--output", folds)
            vitscale("prep", "folds", "--prep", folder / "prep", *options)
        start = time.perf_counter()
        settings = arguments.steps, arguments.seed
        models = [
            train(folds / str(k), folder / f"model-{k}-of-{arguments.folds}", *settings)
            for k in range(arguments.folds)
        ]
        seconds = time.perf_counter() - start
        refined = refine(folder, models, "refined", arguments.option)
        prep, shop = folder / "prep", folder / "shop"
        result = {
            "benchmark": "refine",
            "products": arguments.products,
            "steps": arguments.steps,
            "folds": arguments.folds,
            "train_seconds": round(seconds, 1),
            **measure_refinement(prep, refined, shop),
        }
        if arguments.memorised:
            model = train(prep, folder / "model-all", *settings)
            refined = refine(folder, [model], "refined-memorised", arguments.option)
            result["memorised"] = measure_refinement(prep, refined, shop)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
