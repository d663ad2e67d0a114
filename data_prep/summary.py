"""What a person needs to see of a prep folder, read from its finished tables alone.

So a report can be written again of a folder that is years old, or that another stage has changed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.shown_labels import read_shown_labels
from data_prep.write import digest_file

RARE_BELOW = 20  # images a label, below which it is counted as rare
PHRASES_SHOWN = 12  # of a cluster
LABEL, REJECT = "label", "reject"  # kinds of samples
DECLINED = "declined"  # by the refinement: it was no label before, and is none after
# The stages that reject records, in their order, and what is left after each.
STAGES = (
    ("read", "could be read"),
    ("images", "have a usable image, or none"),
    ("copies", "are no copy of another image"),
    ("text", "have text"),
    ("label", "have a label"),
)


@dataclass(frozen=True)
class PhraseEvidence:
    """A phrase behind a label, the sources that hold it, or the phrases that it was inferred from."""

    phrase: str
    score: float
    sources: tuple[str, ...]
    inferred_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class DerivedLabel:
    """A label of an image; `score` is 0..1, `phrases` best first; what `prep refine` did with it, if it ran."""

    name: str
    score: float
    phrases: tuple[PhraseEvidence, ...]
    refinement: str = ""


@dataclass(frozen=True)
class PrepExample:
    """One labelled record. `image` holds encoded bytes, small; `texts` the raw texts of each source."""

    id: str
    image: bytes | None
    texts: dict[str, tuple[str, ...]]
    labels: tuple[DerivedLabel, ...]
    dropped: tuple[DerivedLabel, ...] = ()  # labels that `prep refine` took away


@dataclass(frozen=True)
class Sample:
    """One record that stands for others: of a label, or rejected. Images are encoded bytes, small."""

    id: str
    image: bytes | None
    texts: dict[str, tuple[str, ...]]
    copy_of: str | None = None
    kept_image: bytes | None = None


@dataclass(frozen=True)
class ClusterSummary:
    """A label: a cluster, or a phrase where phrases are the labels."""

    name: str
    images: int
    phrases: tuple[str, ...]  # most frequent first
    more: int  # phrases that are not listed
    distance: float | None = None  # mean cosine distance of its phrases from the centre
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class RejectSummary:
    stage: str
    reason: str
    records: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Step:
    """What is left of the records after a stage."""

    stage: str
    meaning: str
    left: int
    gone: int


@dataclass(frozen=True)
class LanguageSummary:
    language: str
    phrases: int
    annotations: int


@dataclass(frozen=True)
class PrepSummary:
    """What a person needs to see of a prep folder."""

    counts: dict[str, int]
    funnel: tuple[Step, ...]
    splits: dict[str, int]  # labelled records
    shards: dict[str, int]  # examples: labelled records that have an image
    rejects: tuple[RejectSummary, ...]  # most frequent first
    tail_before: np.ndarray  # [phrases] int64: images of each phrase, falling
    tail_after: np.ndarray  # [labels] int64: images of each picked label, falling
    labels_per_image: dict[int, int]
    tail: dict[str, Any]  # head, torso and tail as in the manifest (data_prep.tables.describe_tail)
    examples: tuple[PrepExample, ...]
    largest: tuple[ClusterSummary, ...]
    tightest: tuple[ClusterSummary, ...]
    loosest: tuple[ClusterSummary, ...]
    languages: tuple[LanguageSummary, ...]  # most phrases first
    manifest: dict[str, Any]
    digest: str  # SHA-256 of the manifest, which names the digests of all other files
    rare_below: int = RARE_BELOW

    @property
    def rare_before(self) -> int:
        return int((self.tail_before < self.rare_below).sum())

    @property
    def rare_after(self) -> int:
        return int((self.tail_after < self.rare_below).sum())


def prep_summary(folder: Path) -> PrepSummary:
    """Reads the summary of a finished (or finishing) prep folder. Holds counts and samples, never a whole table."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = Names.read(folder, manifest["config"]["label_space"])
    phrase_images = count_values(folder / "annotations.parquet", "phrase_id", len(names.phrases))
    label_images = count_values(folder / "labels.parquet", "labels", len(names.labels))
    shown = read_shown_labels(folder, manifest["config"]["label_space"], label_images)
    samples = _samples(folder)
    describe = _Describer(names, phrase_images, label_images, shown.distance, samples)
    splits, per_image = _count_labelled(folder)
    return PrepSummary(
        counts=manifest["counts"],
        funnel=_funnel(folder, manifest["counts"]["records"]),
        splits=splits,
        shards=_shards(manifest),
        rejects=_rejects(folder, samples),
        tail_before=_falling(phrase_images),
        tail_after=_falling(label_images),
        labels_per_image=per_image,
        tail=manifest["tail"],
        examples=_examples(folder, names),
        largest=describe(shown.largest),
        tightest=describe(shown.tightest),
        loosest=describe(shown.loosest),
        languages=_languages(folder),
        manifest=manifest,
        digest=digest_file(folder / "manifest.json"),
    )


@dataclass(frozen=True)
class Names:
    """Phrases and labels by number."""

    phrases: list[str]
    labels: list[str]
    members: dict[int, list[int]]  # of a label: the phrases that are of it first of all
    labels_of: dict[int, list[int]]  # of a phrase: all labels that it can give

    @staticmethod
    def read(folder: Path, label_space: str) -> Names:
        table = pq.read_table(folder / "vocabulary.parquet", columns=["phrase_id", "phrase"])
        texts = table.sort_by("phrase_id")["phrase"].to_pylist()
        clusters = pq.read_table(folder / "clusters.parquet")
        pairs = zip(
            clusters["phrase_id"].to_pylist(), clusters["cluster_id"].to_pylist(), strict=True
        )
        by_phrase = label_space == "phrases"
        label_of = {phrase: phrase if by_phrase else cluster for phrase, cluster in pairs}
        members: dict[int, list[int]] = defaultdict(list)
        for phrase, label in label_of.items():
            members[label].append(phrase)
        labels_of = {phrase: [label] for phrase, label in label_of.items()}
        if label_space == "multi_cluster":
            labels_of = defaultdict(list)
            for row in pq.read_table(folder / "soft_labels.parquet").to_pylist():
                labels_of[row["phrase_id"]].append(row["cluster_id"])
        names = pq.read_table(folder / "cluster_names.parquet")["name"].to_pylist()
        return Names(texts, texts if by_phrase else names, members, labels_of)


def count_values(path: Path, column: str, size: int) -> np.ndarray:
    """`[size] int64`: how many rows hold each number of an integer or list column."""
    counts = np.zeros(size, np.int64)
    for batch in pq.ParquetFile(path).iter_batches(columns=[column]):
        values = batch.column(0)
        values = values.flatten() if pa.types.is_list(values.type) else values
        counts += np.bincount(values.to_numpy(), minlength=size)
    return counts


class _Describer:
    """Labels with their phrases and sample images."""

    def __init__(
        self,
        names: Names,
        phrase_images: np.ndarray,
        label_images: np.ndarray,
        distance: np.ndarray | None,
        samples: Mapping[tuple[str, str], list[Sample]],
    ) -> None:
        self._names, self._samples, self._distance = names, samples, distance
        self._phrase_images, self._label_images = phrase_images, label_images

    def __call__(self, labels: Sequence[int]) -> tuple[ClusterSummary, ...]:
        return tuple(self._describe(label) for label in labels)

    def _describe(self, label: int) -> ClusterSummary:
        members = sorted(self._names.members.get(label, []), key=lambda p: -self._phrase_images[p])
        return ClusterSummary(
            self._names.labels[label],
            int(self._label_images[label]),
            tuple(self._names.phrases[p] for p in members[:PHRASES_SHOWN]),
            max(len(members) - PHRASES_SHOWN, 0),
            None if self._distance is None else float(self._distance[label]),
            tuple(self._samples.get((LABEL, str(label)), ())),
        )


def _funnel(folder: Path, records: int) -> tuple[Step, ...]:
    gone: Counter[str] = Counter()
    for batch in pq.ParquetFile(folder / "rejects.parquet").iter_batches(columns=["stage"]):
        gone.update(batch.column(0).to_pylist())
    steps, left = [Step("input", "records of the input", records, 0)], records
    known = dict(STAGES)
    for stage in [*known, *sorted(set(gone) - set(known))]:
        left -= gone[stage]
        steps.append(Step(stage, known.get(stage, f"are left after {stage}"), left, gone[stage]))
    return tuple(steps)


def _count_labelled(folder: Path) -> tuple[dict[str, int], dict[int, int]]:
    """Labelled records of each split, and images with each number of labels."""
    splits: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    file = pq.ParquetFile(folder / "labels.parquet")
    for batch in file.iter_batches(columns=["labels", "split"]):
        splits.update(_tally(batch.column("split")))
        sizes.update(_tally(batch.column("labels").value_lengths()))
    return dict(sorted(splits.items())), dict(sorted(sizes.items()))


def _tally(values: pa.Array) -> dict[Any, int]:
    found = values.value_counts()
    return dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True))


def _shards(manifest: Mapping[str, Any]) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for name, file in manifest["files"].items():
        if name.startswith("shards/"):
            rows[name.removeprefix("shards/").rpartition("-of-")[0].rpartition("-")[0]] += file[
                "rows"
            ]
    return dict(rows)


def _rejects(
    folder: Path, samples: Mapping[tuple[str, str], list[Sample]]
) -> tuple[RejectSummary, ...]:
    found: Counter[tuple[str, str]] = Counter()
    for batch in pq.ParquetFile(folder / "rejects.parquet").iter_batches():
        stages, reasons = (batch.column(name).to_pylist() for name in ("stage", "reason"))
        found.update(zip(stages, reasons, strict=True))
    return tuple(
        RejectSummary(stage, reason, count, tuple(samples.get((REJECT, reason), ())))
        for (stage, reason), count in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    )


def _samples(folder: Path) -> dict[tuple[str, str], list[Sample]]:
    found: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    path = folder / "samples.parquet"
    for row in pq.read_table(path).to_pylist() if path.exists() else []:
        sample = Sample(row["id"], row["image"], _texts(row), row["copy_of"], row["kept_image"])
        found[row["kind"], row["group"]].append(sample)
    return found


def _examples(folder: Path, names: Names) -> tuple[PrepExample, ...]:
    """Their labels are read from labels.parquet, which a later stage may have changed."""
    chosen = pq.read_table(folder / "examples.parquet").to_pylist()
    ids = pa.array([row["id"] for row in chosen], pa.string())
    labels: dict[str, list[tuple[int, float]]] = {}
    file = pq.ParquetFile(folder / "labels.parquet")
    for batch in file.iter_batches(columns=["id", "labels", "weights"]):
        for row in batch.filter(pc.is_in(batch.column("id"), value_set=ids)).to_pylist():
            labels[row["id"]] = list(zip(row["labels"], row["weights"], strict=True))
    refined = _refinements(folder, ids)
    examples = []
    for row in chosen:
        evidence: dict[int, list[PhraseEvidence]] = defaultdict(list)
        for found in row.get("annotations") or []:
            phrase = PhraseEvidence(
                found["phrase"],
                found["score"],
                tuple(found["sources"]),
                tuple(found["evidence"] or ()),
            )
            for label in names.labels_of.get(found["phrase_id"], []):
                evidence[label].append(phrase)
        own, told = dict(labels.get(row["id"], [])), refined.get(row["id"], {})
        derived, dropped = (
            tuple(
                DerivedLabel(names.labels[i], weight, tuple(evidence[i]), told.get(i, ""))
                for i, weight in found.items()
            )
            for found in (own, {i: 0.0 for i in told if i not in own})
        )
        examples.append(PrepExample(row["id"], row["image"], _texts(row), derived, dropped))
    return tuple(examples)


def _refinements(folder: Path, ids: pa.Array) -> dict[str, dict[int, str]]:
    """What `vitscale prep refine` did, by record and label: "dropped at 0.03"."""
    path = folder / "refinement.parquet"
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for batch in pq.ParquetFile(path).iter_batches() if path.exists() else []:
        for row in batch.filter(pc.is_in(batch.column("id"), value_set=ids)).to_pylist():
            if row["action"] == DECLINED:
                continue
            sure = "" if row["probability"] is None else f" at {row['probability']:.2f}"
            found[row["id"]][row["label"]] = row["action"] + sure
    return found


def _texts(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for source, text in zip(row["sources"] or [], row["texts"] or [], strict=True):
        texts[source].append(text)
    return {source: tuple(items) for source, items in texts.items()}


def _languages(folder: Path) -> tuple[LanguageSummary, ...]:
    phrases: Counter[str] = Counter()
    annotations: Counter[str] = Counter()
    for name, counts in (("vocabulary", phrases), ("annotations", annotations)):
        file = pq.ParquetFile(folder / f"{name}.parquet")
        for batch in file.iter_batches(columns=["language"]):
            counts.update(_tally(batch.column(0)))
    return tuple(
        LanguageSummary(name or "und", phrases[name], annotations[name])
        for name in sorted(phrases.keys() | annotations.keys(), key=lambda n: (-phrases[n], str(n)))
    )


def _falling(counts: np.ndarray) -> np.ndarray:
    return np.sort(counts[counts > 0])[::-1]
