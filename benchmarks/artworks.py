"""Weak labels of museum records against what curators tagged: one JSON line a figure.

    python benchmarks/artworks.py [--work runs/artworks] [--split record] [--model trees] [--ablation] [--plot FILE.svg]

34,516 records of `../shared/data/artworks`: titles, groups, media, artists and movements are texts; the subjects that a
curator tagged are the truth, which the pipeline never reads. Half of the tagged records fit a scorer, and all figures
are of the other half:

plain:    every subject that the texts name ("plain matching")
hand:     the same, scored by hand-set weights
fitted:   `vitscale prep fit-scorer --tagged`, then `vitscale prep` with `scoring.scorer` and the threshold of the best
          F1 of its cross-validation; its labels (labels.parquet) are counted, for the curves its annotations
ablation: scorers with more and more, or without some, of the features; same halves

micro counts pairs; macro averages over the subjects that a record of the half has. A run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from artworks_data import ARTWORKS, Artworks, write_artworks

from data_prep.association import load_associations
from data_prep.features import OF_PAIRS, OF_PHRASES
from data_prep.fit import fit_model, fit_scorer, precision_curve, thin
from data_prep.fit_pairs import FinishedRun, candidate_pairs, tagged_pairs
from data_prep.fit_report import chart
from data_prep.pipeline import run_prep
from data_prep.schema import PrepConfig
from data_prep.scorer import Scorer
from vitscale.config_loading import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "prep" / "artworks.py"
LEAST = 0.02  # score of the pairs that the curve is drawn of
SCORES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GROUPS = (  # of features, from what the texts say to what other records' tags say
    ("hand score", ("hand_score",)),
    ("sources, counts, agreement", ("own/", *OF_PAIRS[:5])),
    ("cluster, similarity", ("cluster/", "cluster_agreement", "similarity")),
    ("frequency, specificity", OF_PHRASES),
    ("associations", tuple(f"assoc/{n}" for n in ("b", "se", "m", "n", "l", "su", "c", "o", "t"))),
    ("associations by source", ("assoc/source/",)),
)


@dataclass(frozen=True)
class Pairs:
    """Pairs of the records that are tested."""

    record: np.ndarray  # [M] int64
    label: np.ndarray  # [M] int64: subject
    score: np.ndarray  # [M] float64


@dataclass(frozen=True)
class Truth:
    """R records of S subjects."""

    records: dict[str, int]
    subjects: dict[str, int]
    true: np.ndarray  # [T] int64, record * S + subject, ascending

    @staticmethod
    def of(data: Artworks) -> Truth:
        records = {name: i for i, name in enumerate(sorted(data.truth))}
        names = sorted({s for found in data.truth.values() for s in found})
        subjects = {name: i for i, name in enumerate(names)}
        keys = [records[r] * len(names) + subjects[s] for r, f in data.truth.items() for s in f]
        return Truth(records, subjects, np.sort(np.array(keys, np.int64)))

    def pairs(self, ids: Iterable[str], phrases: Iterable[str], scores: Sequence[float]) -> Pairs:
        """Of the tested records; a subject that none of them has is a wrong one, -1."""
        found = [
            (self.records[i], self.subjects.get(p, -1), s)
            for i, p, s in zip(ids, phrases, scores, strict=True)
            if i in self.records
        ]
        record, label, score = np.array(found, np.float64).reshape(-1, 3).T
        return Pairs(record.astype(np.int64), label.astype(np.int64), score)

    def correct(self, pairs: Pairs) -> np.ndarray:
        key = pairs.record * len(self.subjects) + pairs.label
        return (pairs.label >= 0) & np.isin(key, self.true)

    def curve(self, pairs: Pairs) -> np.ndarray:
        """`[n, 3]` score, micro precision, recall."""
        correct = self.correct(pairs)
        missed = len(self.true) - int(correct.sum())
        return precision_curve(pairs.score, correct, np.ones(len(correct)), missed)

    def measure(self, pairs: Pairs) -> dict[str, float]:
        """Micro and macro precision, recall and F1 of all pairs."""
        correct, size = self.correct(pairs), len(self.subjects)
        known = pairs.label >= 0
        right = np.bincount(pairs.label[known], correct[known], minlength=size)
        found = np.bincount(pairs.label[known], minlength=size)
        true = np.bincount(self.true % size, minlength=size)
        micro = _rates(*(np.array(n) for n in (correct.sum(), len(correct), len(self.true))))
        macro = np.stack(_rates(right, found, true))
        common = true >= 10
        told = dict(zip(("precision", "recall", "f1"), map(float, micro), strict=True))
        for name, rows in (("macro", np.ones(size, bool)), ("macro_of_10", common)):
            values = macro[:, rows].mean(axis=1).tolist()
            told |= {
                f"{name}_{n}": v for n, v in zip(("precision", "recall", "f1"), values, strict=True)
            }
        return told | {"labels_per_record": len(correct) / len(self.records)}


def run(config: Sequence[str], data: Artworks, output: Path) -> None:
    if not output.exists():
        run_prep(load_config(PrepConfig, f"{CONFIG}:{data.subjects}", config), data.texts, output)


def text_pairs(truth: Truth, base: Path) -> Pairs:
    """The subjects that the texts name, by the hand-set score."""
    columns = ["id", "phrase", "score", "is_label", "sources"]
    rows = pq.read_table(base / "features.parquet", columns=columns)
    rows = rows.filter(
        pc.and_(rows["is_label"], pc.greater(pc.list_value_length(rows["sources"]), 0))
    )
    return truth.pairs(*(rows[n].to_pylist() for n in ("id", "phrase", "score")))


def annotated_pairs(truth: Truth, folder: Path) -> Pairs:
    rows = pq.read_table(folder / "annotations.parquet", columns=["id", "phrase", "score"])
    return truth.pairs(*(rows[n].to_pylist() for n in ("id", "phrase", "score")))


def labelled_pairs(truth: Truth, folder: Path) -> Pairs:
    """The labels themselves."""
    vocabulary = pq.read_table(folder / "vocabulary.parquet", columns=["phrase"])[
        "phrase"
    ].to_pylist()
    rows = pq.read_table(folder / "labels.parquet", columns=["id", "labels"]).to_pylist()
    found = [(row["id"], vocabulary[label]) for row in rows for label in row["labels"]]
    return truth.pairs([i for i, _ in found], [p for _, p in found], [1.0] * len(found))


def ablation(base: Path, data: Artworks, truth: Truth, scorer: Path, model: str) -> Iterator[dict]:
    """Figures of scorers with other features, fitted and tested on the same halves."""
    pairs = tagged_pairs(base, data.tags, 0)
    test = FinishedRun.load(base, frozenset(data.truth))
    learnt = load_associations(scorer, test.table, test.source_names)
    assert learnt is not None
    blocks = list(candidate_pairs(test, np.arange(len(test.ids)), learnt))
    values = np.concatenate([block.values for block in blocks])
    names = blocks[0].names
    record = np.array([truth.records[i] for i in test.ids])[
        np.concatenate([b.record for b in blocks])
    ]
    phrase = np.concatenate([block.phrase for block in blocks])
    label = np.array([truth.subjects.get(p, -1) for p in test.table.phrases])[phrase]
    groups = {title: [n for n in names if _belongs(n, starts)] for title, starts in GROUPS}

    def figures(title: str, chosen: list[str], texts_only: bool) -> dict:
        fitted, rows = pairs.only(chosen), np.ones(len(pairs.correct), bool)
        seen = np.ones(len(record), bool)
        if texts_only:  # without associations there are no candidates but those that the texts name
            rows, seen = (v[:, names.index("agreement")] > 0 for v in (pairs.values, values))
        scored: Scorer = fit_model(fitted, rows, model, 0)[0]  # type: ignore[arg-type]
        columns = values[:, [names.index(n) for n in chosen]][seen]
        curve = truth.curve(Pairs(record[seen], label[seen], scored.score(columns)))
        return {"features": title, "count": len(chosen), **_best(curve), **_at_precisions(curve)}

    chosen: list[str] = []
    for title, members in groups.items():
        chosen += members
        yield {"ablation": "adding", **figures(title, list(chosen), "assoc" not in title)}
    for title, members in groups.items():
        if title != "hand score":
            left = [n for n in names if n not in members]
            yield {"ablation": "without", **figures(title, left, False)}


def _belongs(name: str, starts: Sequence[str]) -> bool:
    by_source = name.startswith("assoc/source/")
    return any(name.startswith(s) and by_source == (s == "assoc/source/") for s in starts)


def _best(curve: np.ndarray) -> dict[str, float]:
    score, precision, recall = curve[np.argmax(_f1(curve[:, 1], curve[:, 2]))].tolist()
    best = float(_f1(np.array(precision), np.array(recall)))
    return {"best_f1": best, "score": score, "precision": precision, "recall": recall}


def _at_precisions(curve: np.ndarray) -> dict[str, float]:
    return {f"recall_at_precision_{p}": _recall_at(curve, p) for p in (0.9, 0.7, 0.5)}


def _recall_at(curve: np.ndarray, precision: float) -> float:
    return float(curve[curve[:, 1] >= precision, 2].max(initial=0.0))


def _rates(right: np.ndarray, found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    precision, recall = right / np.maximum(found, 1), right / np.maximum(true, 1)
    return precision, recall, _f1(precision, recall)


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def tell(figures: dict) -> None:
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--artworks", type=Path, default=ARTWORKS)
    parser.add_argument("--work", type=Path, default=Path("runs/artworks"))
    parser.add_argument(
        "--split", choices=("record", "group"), default="record", help="group: whole sketchbooks"
    )
    parser.add_argument("--model", choices=("logistic", "trees"), default="trees")
    parser.add_argument(
        "--ablation", action="store_true", help="fit scorers with other features too"
    )
    parser.add_argument("--plot", type=Path, help="precision over recall, SVG")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO, force=True)
    work, split = arguments.work, arguments.split
    data = write_artworks(arguments.artworks, work, split)
    truth = Truth.of(data)
    base, scorer = work / "base", work / f"scorer-{split}-{arguments.model}"
    run([], data, base)
    if not scorer.exists():
        fit_scorer(base, scorer, tagged=data.tags, model=arguments.model)
    told = json.loads((scorer / "scorer.json").read_text(encoding="utf-8"))["fit"]
    least = next(t["score"] for t in told["thresholds"] if t["aim"] == "best F1")
    scored = work / f"scored-{split}-{arguments.model}"
    scoring = {
        "scorer": scorer,
        "min_score": least,
        "min_annotation_score": LEAST,
        "keep_features": 0,
    }
    run([f"scoring.{name}={value}" for name, value in scoring.items()], data, scored)

    tell(
        {
            "benchmark": "artworks",
            "split": split,
            "model": arguments.model,
            "records": len(truth.records),
        }
    )
    texts, found = text_pairs(truth, base), annotated_pairs(truth, scored)
    plain, hand, fitted = truth.measure(texts), truth.curve(texts), truth.curve(found)
    tell({"labels": "plain", **plain})
    tell({"labels": "hand, best score", **_best(hand)})
    tell({"labels": "fitted", "min_score": least, **truth.measure(labelled_pairs(truth, scored))})
    tell({"labels": "fitted, best score", **_best(fitted), **_at_precisions(fitted)})
    equal = plain["precision"]
    tell(
        {
            "recall_at_precision_of_plain": equal,
            "plain": plain["recall"],
            "fitted": _recall_at(fitted, equal),
        }
    )
    for score in SCORES:
        kept = found.score >= score
        pairs = Pairs(found.record[kept], found.label[kept], found.score[kept])
        tell({"score": score, **truth.measure(pairs)})
    if arguments.plot:
        point = np.array([[0.0, plain["precision"], plain["recall"]]])
        curves = {"fitted": thin(fitted), "hand-set": thin(hand), "plain matching": point}
        svg = chart(curves, ("#2563eb", "#d97706", "#dc2626"))
        style = (
            'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12" fill="#777"'
        )
        arguments.plot.write_text(svg.replace("<svg", f"<svg {style}", 1) + "\n", encoding="utf-8")
    if arguments.ablation:
        for figures in ablation(base, data, truth, scorer, arguments.model):
            tell(figures)


if __name__ == "__main__":
    main()
