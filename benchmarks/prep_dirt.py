"""Label quality of `vitscale prep` over worse and worse dirt of the generated catalogue: a JSON line a level.

    python benchmarks/prep_dirt.py [--products 1000] [--levels 0.25 0.5 1 2 4 8] [--each] [--plot FILE.svg]

A level multiplies the odds of every kind of dirt (`data_prep.shop.text.TextConfig`): 0 is clean, 1 the default.
precision, recall, synonym_ari: as in benchmarks/prep.py; at level 0 there are no synonyms to join.
readable: of the true types, colours and materials, the share that some text of the image names and spells right, in
any of their synonyms. To go beyond it, misspellings must be mended.
own_text: the share of images whose text is about the image, and not another product's.
--each: one kind of dirt at a time at the worst level, all others as by default: which of them costs how much.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from prep import CONFIG, KINDS, measure_clusters, measure_labels, surface_concepts

from data_prep.pipeline import run_prep
from data_prep.schema import PrepConfig
from data_prep.shop.catalogue import ShopConfig, generate_shop
from data_prep.shop.text import TextConfig
from data_prep.text import tokenize
from vitscale.config_loading import load_config

LONGEST_FORM = 6  # words
LINES = {
    "precision": ("label precision", "#3f6ae0", "-"),
    "recall": ("label recall", "#d9622b", "-"),
    "readable": ("named in the text and spelled right", "#d9622b", ":"),
    "synonym_ari": ("clusters against synonyms (ARI)", "#2f9e6b", "-"),
}


def dirtier(level: float, only: str | None = None) -> TextConfig:
    """The default dirt with the odds of each kind, or of one `only`, times `level`."""
    default = dataclasses.asdict(TextConfig())
    return TextConfig(
        **{name: scaled(p, level if only in (None, name) else 1.0) for name, p in default.items()}
    )


def scaled(probability: float, level: float) -> float:
    """The probability whose odds are `level` times as high."""
    return level * probability / (1.0 - probability + level * probability)


def measure(level: float, products: int, seed: int, only: str | None = None) -> dict[str, object]:
    """Generates a catalogue of this much dirt, labels it, and compares with its truth."""
    # Any number of images may be left without a label: that is what is measured here.
    overrides = ["max_unlabelled_fraction=1.0", "report_examples=0"]
    config = load_config(PrepConfig, str(CONFIG), overrides)
    with tempfile.TemporaryDirectory() as folder:
        shop, prep = Path(folder) / "shop", Path(folder) / "prep"
        text = dirtier(level, only)
        generate_shop(ShopConfig(products=products, seed=seed, scenes=0, text=text), shop)
        run_prep(config, shop / "catalogue.jsonl", prep)
        quality = measure_labels(prep, shop)
        counts = json.loads((prep / "manifest.json").read_text(encoding="utf-8"))["counts"]
        return {
            "dirt": level,
            **({"only": only} if only else {}),
            "precision": round(quality["label_precision"], 4),
            "recall": round(quality["label_recall"], 4),
            "readable": round(readable(shop), 4),
            "own_text": round(1.0 - text.wrong_product_text, 4),
            "synonym_ari": round(measure_clusters(prep, shop), 4),
            "rows": counts["records"],
            "labelled": counts["labelled"],
        }


def readable(shop: Path) -> float:
    """Share of the true types, colours and materials that a text of their image holds in some form."""
    concept_of = surface_concepts(shop)
    truth = {row["id"]: row for row in pq.read_table(shop / "truth" / "truth.parquet").to_pylist()}
    found = wanted = 0
    with open(shop / "catalogue.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            said = {concept_of[form] for form in forms_in(row) if form in concept_of}
            true = {truth[row["id"]][kind] for kind in KINDS} - {None}
            found += len(true & said)
            wanted += len(true)
    return found / max(wanted, 1)


def forms_in(row: Mapping[str, object]) -> Iterator[str]:
    """All sequences of words in the texts of a record, each also without the "s" of its end."""
    texts: list[str] = []
    for value in (row[name] for name in row if name not in ("id", "image")):
        items = value if isinstance(value, list) else [value]
        texts += [item["text"] if isinstance(item, dict) else item for item in items if item]
    words, lengths = tokenize(texts)
    ends = np.cumsum(lengths)
    for first, last in zip(ends - lengths, ends, strict=True):
        for start in range(first, last):
            for stop in range(start + 1, min(start + LONGEST_FORM, last) + 1):
                form = " ".join(words[start:stop])
                yield from (form, form.removesuffix("s"), form.removesuffix("es"))


def plot(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Quality over dirt as an SVG that can be read on light and on dark pages."""
    import matplotlib
    from matplotlib.figure import Figure

    grey = "#7d8590"
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name in LINES:
            values[name].append(float(str(row[name])))
    settings = {"svg.hashsalt": "prep-dirt", "svg.fonttype": "none", "font.size": 9}
    settings |= {name: grey for name in ("text.color", "axes.edgecolor", "axes.labelcolor")}
    settings |= {"xtick.color": grey, "ytick.color": grey}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))
        for name, (label, colour, style) in LINES.items():
            axes.plot(places, values[name], style, label=label, color=colour, marker=".")
        axes.set_xticks(places, [f"×{row['dirt']:g}" for row in rows])
        axes.set_xlabel("odds of every kind of dirt (×1: the default)")
        axes.set_ylim(0.0, 1.02)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4, 8])
    parser.add_argument("--each", action="store_true", help="one kind at a time, at the last level")
    parser.add_argument("--plot", type=Path, help="SVG file of the levels")
    arguments = parser.parse_args()
    rows = []
    kinds = [field.name for field in dataclasses.fields(TextConfig)]
    runs = [(level, None) for level in arguments.levels]
    if arguments.each:
        runs = [(arguments.levels[-1], kind) for kind in kinds]
    for level, only in runs:
        rows.append(measure(level, arguments.products, arguments.seed, only))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.plot and not arguments.each:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
