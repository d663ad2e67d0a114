"""A page for the person who decides whether a fitted scorer is used: it opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT, MARGIN = 560, 320, 46
TOLD_FEATURES = 15
STYLE = """
:root { color-scheme: light dark; --line: #2563eb; --other: #d97706; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { padding: .15rem .9rem .15rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 12px; }
"""


def write_fit_report(
    path: Path, figures: Mapping[str, Any], fitted: np.ndarray, hand: np.ndarray
) -> None:
    """Writes the page.

    Args:
      figures: `data_prep.fit.describe`.
      fitted, hand: `[n, 3]` score, precision and recall.
    """
    own, other = figures["average_precision"], figures["hand_average_precision"]
    thresholds = [
        (t["aim"], f"{t['score']:.3f}", f"{t['precision']:.3f}", f"{t['recall']:.3f}")
        for t in figures["thresholds"]
    ]
    weights = list(figures["importance"].items())[:TOLD_FEATURES]
    folds = [f"fold {i + 1}" for i in range(len(own))]
    precision = [
        ("fitted", f"{np.mean(own):.3f}", *(f"{v:.3f}" for v in own)),
        ("hand-set", f"{np.mean(other):.3f}", *(f"{v:.3f}" for v in other)),
    ]
    body = [
        "<h1>Fitted scorer</h1>",
        f"<p>{figures['pairs']:,} pairs of {figures['records']:,} records, {figures['correct']:,} of them "
        f"right; {figures['missed']:,} right ones are no candidates, and "
        f"{figures['associations']:,} associations were learnt.</p>",
        "<h2>Average precision</h2><p>Of records that the model had not seen.</p>",
        html_table(("", "mean", *folds), precision),
        "<h2>Precision and recall</h2>",
        chart({"fitted": fitted, "hand-set": hand}),
        "<h2>Thresholds</h2><p>What <code>scoring.min_score</code> leads to.</p>",
        html_table(("aim", "min_score", "precision", "recall"), thresholds),
        "<h2>Features that say most</h2>",
        html_table(("feature", "share"), [(name, f"{share:.1%}") for name, share in weights]),
    ]
    page = f"<title>Fitted scorer</title><style>{STYLE}</style>" + "\n".join(body)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8">{page}</html>\n', "utf-8"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def chart(
    curves: Mapping[str, np.ndarray], colours: Sequence[str] = ("var(--line)", "var(--other)")
) -> str:
    """Precision over recall as SVG, both from 0 to 1: curves `[n, 3]` of score, precision, recall, in `colours`.

    A curve of one point is a dot.
    """
    across, up = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(recall: float, precision: float) -> str:
        return f"{MARGIN + across * recall:.1f},{HEIGHT - MARGIN - up * precision:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="precision over recall">']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        for line in (((0.0, tick), (1.0, tick)), ((tick, 0.0), (tick, 1.0))):
            points = " ".join(place(*point) for point in line)
            parts.append(f'<polyline points="{points}" fill="none" stroke="#8884"/>')
        x, y = place(tick, 0.0).split(",")
        parts.append(f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{tick:g}</text>')
        x, y = place(0.0, tick).split(",")
        parts.append(f'<text x="{float(x) - 8:.1f}" y="{y}" text-anchor="end">{tick:g}</text>')
    for index, ((name, curve), colour) in enumerate(zip(curves.items(), colours, strict=True)):
        points = " ".join(place(recall, precision) for _, precision, recall in curve.tolist())
        if len(curve) == 1:
            x, y = points.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        baseline = MARGIN + 18 * index + 14
        parts.append(
            f'<text x="{WIDTH - MARGIN - 8}" y="{baseline}" text-anchor="end" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">recall</text>')
    parts.append(f'<text x="4" y="{MARGIN - 14}">precision</text></svg>')
    return "".join(parts)
