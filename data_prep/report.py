"""The label-quality report of a prep folder: one HTML file that opens offline.

`prep_summary` reads everything from the finished tables, so other reports can show the same pieces.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"
RARE_BELOW = 20  # images a label, below which it is counted as rare
CLUSTERS_SHOWN, PHRASES_SHOWN = 25, 12
THUMBNAIL = 176  # pixels: twice the size on the page


@dataclass(frozen=True)
class PhraseEvidence:
    """A phrase behind a label, and the sources that hold it."""

    phrase: str
    score: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class DerivedLabel:
    """A label of an image; `score` is 0..1, `phrases` best first."""

    name: str
    score: float
    phrases: tuple[PhraseEvidence, ...]


@dataclass(frozen=True)
class PrepExample:
    """One labelled record. `image` holds the encoded bytes; `texts` the raw texts of each source."""

    id: str
    image: bytes | None
    texts: dict[str, tuple[str, ...]]
    labels: tuple[DerivedLabel, ...]


@dataclass(frozen=True)
class ClusterSummary:
    name: str
    images: int
    phrases: tuple[str, ...]  # most frequent first
    more: int  # phrases that are not listed


@dataclass(frozen=True)
class PrepSummary:
    """What a person needs to see of a prep folder."""

    counts: dict[str, int]
    rejects: dict[str, int]  # by reason
    tail_before: np.ndarray  # [phrases] int64: images of each phrase, falling
    tail_after: np.ndarray  # [labels] int64: images of each picked label, falling
    tail: dict[str, Any]  # head, torso and tail as in the manifest (data_prep.tables.describe_tail)
    examples: tuple[PrepExample, ...]
    clusters: tuple[ClusterSummary, ...]
    rare_below: int = RARE_BELOW

    @property
    def rare_before(self) -> int:
        return int((self.tail_before < self.rare_below).sum())

    @property
    def rare_after(self) -> int:
        return int((self.tail_after < self.rare_below).sum())


def prep_summary(folder: Path) -> PrepSummary:
    """Reads the summary of a finished (or finishing) prep folder. Keeps no table but counts in memory."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    before = _count(folder / "annotations.parquet", "phrase_id")
    after = _count(folder / "labels.parquet", "labels")
    clusters = pq.read_table(folder / "clusters.parquet")
    names = pq.read_table(folder / "cluster_names.parquet")["name"].to_pylist()
    vocabulary = pq.read_table(folder / "vocabulary.parquet", columns=["phrase_id", "phrase"])
    phrases = dict(zip(*(vocabulary[n].to_pylist() for n in ("phrase_id", "phrase")), strict=True))
    cluster_of = dict(
        zip(*(clusters[n].to_pylist() for n in ("phrase_id", "cluster_id")), strict=True)
    )
    by_phrase = manifest["config"]["label_space"] == "phrases"
    label_of = {phrase: phrase for phrase in cluster_of} if by_phrase else cluster_of
    labels_of = {phrase: [label] for phrase, label in label_of.items()}
    if manifest["config"]["label_space"] == "multi_cluster":
        soft = pq.read_table(folder / "soft_labels.parquet", columns=["phrase_id", "cluster_id"])
        labels_of = defaultdict(list)
        for row in soft.to_pylist():
            labels_of[row["phrase_id"]].append(row["cluster_id"])
    label_names = phrases if by_phrase else dict(enumerate(names))
    members: dict[int, list[int]] = defaultdict(list)
    for phrase in sorted(label_of, key=lambda p: -before[p]):
        members[label_of[phrase]].append(phrase)
    return PrepSummary(
        counts=manifest["counts"],
        rejects=manifest["rejects"],
        tail_before=np.array(sorted(before.values(), reverse=True), np.int64),
        tail_after=np.array(sorted(after.values(), reverse=True), np.int64),
        tail=manifest["tail"],
        examples=_examples(folder, labels_of, label_names),
        clusters=tuple(
            ClusterSummary(
                label_names[label],
                images,
                tuple(phrases[p] for p in members[label][:PHRASES_SHOWN]),
                max(len(members[label]) - PHRASES_SHOWN, 0),
            )
            for label, images in after.most_common(CLUSTERS_SHOWN)
        ),
    )


def tail_plot(summary: PrepSummary) -> str:
    """The long tail before and after clustering as an SVG element that follows the page's colours."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for counts, label, colour in (
        (summary.tail_before, "phrases (before)", "#8a94a6"),
        (summary.tail_after, "labels (after)", "#3f6ae0"),
    ):
        axes.loglog(np.arange(1, len(counts) + 1), counts, label=label, color=colour, linewidth=2)
    axes.set_xlabel("rank of the label")
    axes.set_ylabel("images")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return svg_of(figure)


def svg_of(figure: Any) -> str:
    """A matplotlib figure as inline SVG: transparent, its black drawn in the page's text colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    # Text without a fill of its own is drawn black whatever the page says.
    return svg.replace("<svg ", '<svg fill="currentColor" ', 1)


def thumbnail(data: bytes, size: int = THUMBNAIL) -> str:
    """Encoded image bytes as a data URI of at most `size` pixels a side. The image was checked on the way in."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
        small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_report(folder: Path) -> None:
    """Writes `report.html` of a prep folder."""
    summary = prep_summary(folder)
    # Text of the records is untrusted: escaped everywhere but in the plot, which holds none.
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    template = environment.get_template("prep_report.html.j2")
    page = template.render(summary=summary, tail_svg=tail_plot(summary), thumbnail=thumbnail)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _examples(
    folder: Path, labels_of: dict[int, list[int]], names: dict[int, str]
) -> tuple[PrepExample, ...]:
    chosen = pq.read_table(folder / "examples.parquet").to_pylist()
    ids = pa.array([row["id"] for row in chosen], pa.string())
    evidence: dict[tuple[str, int], list[PhraseEvidence]] = defaultdict(list)
    for row in _rows_of(folder / "annotations.parquet", ids):
        found = PhraseEvidence(row["phrase"], row["score"], tuple(row["sources"]))
        for label in labels_of[row["phrase_id"]]:
            evidence[row["id"], label].append(found)
    labels: dict[str, tuple[DerivedLabel, ...]] = {}
    for row in _rows_of(folder / "labels.parquet", ids):
        pairs = zip(row["labels"], row["weights"], strict=True)
        labels[row["id"]] = tuple(
            DerivedLabel(names[i], weight, tuple(evidence[row["id"], i])) for i, weight in pairs
        )
    examples = []
    for row in chosen:
        texts: dict[str, list[str]] = defaultdict(list)
        for source, text in zip(row["sources"], row["texts"], strict=True):
            texts[source].append(text)
        frozen = {source: tuple(items) for source, items in texts.items()}
        examples.append(PrepExample(row["id"], row["image"], frozen, labels[row["id"]]))
    return tuple(examples)


def _rows_of(path: Path, ids: pa.Array) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in pq.ParquetFile(path).iter_batches():
        rows += batch.filter(pc.is_in(batch.column("id"), value_set=ids)).to_pylist()
    return rows


def _count(path: Path, column: str) -> Counter[int]:
    """How many rows hold each value of an integer or list column."""
    counts: Counter[int] = Counter()
    for batch in pq.ParquetFile(path).iter_batches(columns=[column]):
        values = batch.column(0)
        values = values.flatten() if pa.types.is_list(values.type) else values
        unique = values.value_counts()
        for value, count in zip(
            unique.field("values").to_pylist(), unique.field("counts").to_pylist(), strict=True
        ):
            counts[value] += count
    return counts
