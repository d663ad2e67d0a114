"""Table, JSON and plots of `retrieval.py`.

python benchmarks/retrieval_report.py runs/retrieval/curves.json     ours to the best other, of a race that was run
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale.evals.plots import line_plot

if TYPE_CHECKING:
    from retrieval import Point

RECALLS = (0.95, 0.98, 0.99, 0.995)  # that `ratios` compares at


def write_report(
    output: Path,
    points: Sequence[Point],
    indexes: Sequence[dict[str, object]],
    args: argparse.Namespace,
    wanted_recall: float,
) -> None:
    """Writes curves.json, table.md and curve-N-threads.svg, and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    document = {
        "size": args.size,
        "dim": args.dim,
        "queries": args.queries,
        "repeats": args.repeats,
        "indexes": list(indexes),
        "points": [asdict(point) for point in points],
    }
    (output / "curves.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = summary(points, indexes, args.threads, wanted_recall)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    print(ratios(document["points"]))
    for threads in args.threads:
        (output / f"curve-{threads}-threads.svg").write_text(plot(points, threads), "utf-8")


def summary(
    points: Sequence[Point],
    indexes: Sequence[dict[str, object]],
    all_threads: Sequence[int],
    wanted_recall: float,
) -> str:
    """Markdown: the fastest setting of each system that reaches the recall, by number of threads."""
    lines = [
        "| system, threads | index | setting | recall@10 | queries/s | queries a CPU second | build s (CPU s) | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for threads in all_threads:
        best = {}
        for point in points:
            known = best.get(point.system)
            if point.recall >= wanted_recall and (
                known is None or point.rates[threads] > known.rates[threads]
            ):
                best[point.system] = point
        for system in dict.fromkeys(point.system for point in points):
            if system not in best:
                lines.append(
                    f"| {system}, {threads} | does not reach {wanted_recall} | | | | | | |"
                )
                continue
            point = best[system]
            index = next(
                one for one in indexes if (one["system"], one["variant"]) == (system, point.variant)
            )
            setting = ", ".join(f"{name} {value}" for name, value in point.setting.items())
            lines.append(
                f"| {system}, {threads} | {index.get('chosen', point.variant)} | {setting} | {point.recall:.4f} "
                f"| {point.rates[threads]:,.0f} | {point.cpu_rates[threads]:,.0f} "
                f"| {index['build_seconds']} ({index['build_cpu_seconds']}) | {int(str(index['bytes'])) / 1e6:,.0f} |"
            )
    return "\n".join(lines)


def plot(points: Sequence[Point], threads: int, least_recall: float = 0.9) -> str:
    """A standalone SVG: of each system the settings that none of its others beats in recall and rate."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for point in sorted(points, key=lambda point: -point.recall):
        if point.recall < least_recall:
            continue
        recalls, rates = series.setdefault(point.system, ([], []))
        if not rates or point.rates[threads] > rates[-1]:
            recalls.append(point.recall)
            rates.append(point.rates[threads])
    page = line_plot(
        series,
        x_label=f"recall@10 ({threads} thread{'s' if threads > 1 else ''})",
        y_label="queries/s",
        log_y=True,
    )
    drawing = re.search(r"<svg.*</svg>", page, re.DOTALL)
    assert drawing is not None
    return drawing.group()


def ratios(points: Sequence[dict[str, Any]]) -> str:
    """Our queries/s over those of the best other system at several recalls, by number of threads (of curves.json)."""
    lines = []
    for threads in points[0]["rates"] if points else ():
        for recall in RECALLS:
            rates = {True: [0.0], False: [0.0]}
            for point in points:
                if point["recall"] >= recall:
                    rates[point["system"] == "vitscale"].append(point["rates"][threads])
            ours, other = max(rates[True]), max(rates[False])
            if ours and other:
                lines.append(
                    f"recall {recall}, {threads} threads: {ours / other:.2f} of the best other"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    print(ratios(json.loads(Path(sys.argv[1]).read_text())["points"]))
