"""Rate and label quality of `vitscale prep` on the generated catalogue: one JSON line.

    python benchmarks/prep.py [--products 1000] [--seed 0] [--shop FOLDER] [--details]

label_precision: of the derived labels that name a type, a colour or a material, the share that is true of the image.
label_recall: of the true types, colours and materials of all images, the share that was derived.
synonym_ari: adjusted Rand index of the clusters against the true synonym sets, over the phrases in both.
The truth is read here, after the run, and nowhere else.

    python benchmarks/prep.py --rows 100000 1000000

prints instead what each step costs on so many synthetic rows (benchmarks/prep_scale.py), with `--phrases 1000000` for a
vocabulary of a million.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from prep_scale import print_sizes
from sklearn.metrics import adjusted_rand_score

from data_prep.pipeline import run_prep
from data_prep.schema import PrepConfig
from data_prep.shop.catalogue import ShopConfig, generate_shop
from data_prep.text import tokenize
from vitscale.config_loading import load_config

CONFIG = Path(__file__).parent.parent / "configs" / "prep" / "shop.py"
KINDS = ("type", "colour", "material")


def measure_labels(prep: Path, shop: Path) -> dict[str, float]:
    """Precision and recall of the derived labels, over all kinds and for each."""
    concept_of = surface_concepts(shop)
    truth = pq.read_table(shop / "truth" / "truth.parquet").to_pylist()
    true = {row["id"]: {row[kind]: kind for kind in KINDS if row[kind]} for row in truth}
    kind_of = {name: kind for row in true.values() for name, kind in row.items()}
    cluster_concepts = name_concepts(prep, concept_of)
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    other = 0
    labels = pq.read_table(prep / "labels.parquet", columns=["id", "labels"]).to_pylist()
    for row in labels:
        concepts = {cluster_concepts.get(label) for label in row["labels"]} - {None}
        concepts = {concept for concept in concepts if concept in kind_of}
        other += len(row["labels"]) - len(concepts)
        for concept in concepts:
            found[kind_of[concept]] += 1
            right[kind_of[concept]] += concept in true[row["id"]]
    rejects = pq.read_table(prep / "rejects.parquet", columns=["id"])["id"].to_pylist()
    ids = [row["id"] for row in labels] + [i for i in rejects if i in true]
    wanted = Counter(kind for i in ids for kind in true[i].values())
    result = {
        "label_precision": right.total() / max(found.total(), 1),
        "label_recall": right.total() / max(wanted.total(), 1),
    }
    for kind in KINDS:
        result[f"{kind}_precision"] = right[kind] / max(found[kind], 1)
        result[f"{kind}_recall"] = right[kind] / max(wanted[kind], 1)
    return result | {"other_labels_per_image": other / max(len(labels), 1)}


def measure_clusters(prep: Path, shop: Path) -> float:
    """Adjusted Rand index over the phrases that are a surface form of exactly one concept."""
    concept_of = surface_concepts(shop)
    rows = [(concept_of[p], c) for p, c, _ in canonical_phrases(prep) if p in concept_of]
    return float(adjusted_rand_score([a for a, _ in rows], [b for _, b in rows])) if rows else 0.0


def surface_concepts(shop: Path) -> dict[str, str]:
    """Normalised surface form -> concept, without the forms of two concepts."""
    synonyms = json.loads((shop / "truth" / "synonyms.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = defaultdict(set)
    for concept, forms in synonyms.items():
        for form in forms:
            found[" ".join(tokenize([form])[0])].add(concept)
    return {form: concepts.pop() for form, concepts in found.items() if len(concepts) == 1}


def canonical_phrases(prep: Path) -> list[tuple[str, int, int]]:
    """(phrase, cluster, document frequency) of every clustered phrase."""
    clusters = pq.read_table(prep / "clusters.parquet").to_pylist()
    vocabulary = {
        row["phrase_id"]: row for row in pq.read_table(prep / "vocabulary.parquet").to_pylist()
    }
    return [
        (
            vocabulary[row["phrase_id"]]["phrase"],
            row["cluster_id"],
            vocabulary[row["phrase_id"]]["document_frequency"],
        )
        for row in clusters
    ]


def name_concepts(prep: Path, concept_of: Mapping[str, str]) -> dict[int, str]:
    """The concept that most of a cluster's text means; none where no phrase of it is a surface form."""
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for phrase, cluster, frequency in canonical_phrases(prep):
        if phrase in concept_of:
            votes[cluster][concept_of[phrase]] += frequency
    return {cluster: counts.most_common(1)[0][0] for cluster, counts in votes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs="+", help="cost on so many synthetic rows")
    parser.add_argument(
        "--phrases", type=int, default=0, help="with --rows: a vocabulary of so many"
    )
    parser.add_argument("--shop", type=Path, help="an existing folder of `vitscale shop`")
    parser.add_argument(
        "--details", action="store_true", help="precision and recall by kind, stage times"
    )
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.rows:
        print_sizes(arguments.rows, arguments.phrases)
        return
    with tempfile.TemporaryDirectory() as folder:
        shop = arguments.shop or Path(folder) / "shop"
        if arguments.shop is None:
            generate_shop(ShopConfig(products=arguments.products, seed=arguments.seed), shop)
        prep = Path(folder) / "prep"
        start = time.perf_counter()
        run_prep(
            load_config(PrepConfig, str(CONFIG), arguments.config), shop / "catalogue.jsonl", prep
        )
        seconds = time.perf_counter() - start
        manifest = json.loads((prep / "manifest.json").read_text(encoding="utf-8"))
        quality = measure_labels(prep, shop)
        result: dict[str, object] = {
            "benchmark": "prep",
            "rows": manifest["counts"]["records"],
            "rows_per_sec": round(manifest["counts"]["records"] / seconds, 1),
            "label_precision": round(quality.pop("label_precision"), 4),
            "label_recall": round(quality.pop("label_recall"), 4),
            "synonym_ari": round(measure_clusters(prep, shop), 4),
        }
        if arguments.details:
            result |= {name: round(value, 4) for name, value in quality.items()}
            result |= {"clusters": manifest["counts"]["clusters"], "seconds": manifest["seconds"]}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
