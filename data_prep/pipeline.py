"""`vitscale prep`: from records with messy text to weak labels and shards, top to bottom."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import balance, stages, vocabulary
from data_prep.candidates import PhraseTrie
from data_prep.canonical import plural_pairs, rare_misspellings
from data_prep.engine import Engine
from data_prep.finish import choose_examples, plan_shards, write_shard_metadata
from data_prep.images import REJECTS_SCHEMA
from data_prep.phrases import PhraseKnowledge, canonical_ids, describe_phrases
from data_prep.report import write_report
from data_prep.schema import PrepConfig
from data_prep.scoring import ANNOTATIONS_SCHEMA
from data_prep.sources import check_fields, find_inputs
from data_prep.stages import Work
from data_prep.write import TableFile, digest_file, list_parts, read_part, write_table
from vitscale.errors import UserError

log = logging.getLogger("vitscale.prep")
PACKAGES = ("vitscale", "numpy", "scipy", "pyarrow", "pillow", "apache-beam", "array-record")


def run_prep(
    config: PrepConfig,
    input: Path,
    output: Path,
    *,
    runner: str = "direct",
    runner_options: Sequence[str] = (),
) -> None:
    """Writes the folder of DESIGN 3.2 to `output`, whole or not at all.

    Args:
      input: a file of records, or a folder of them.
      runner: a Beam runner ("direct", "spark", "flink", "dataflow", or a class path), with its own `runner_options`.
        Its workers must see the input, the images and the output under the same paths.
    """
    input, output = Path(input), Path(output)
    files = find_inputs(input)
    for path in files:
        check_fields(config, path)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output {output} exists already; name a new folder or remove it.")
    root = Path(config.image_root) if config.image_root else files[0].parent
    if config.image_field and not root.is_dir():
        raise UserError(f"image_root {root} is not a folder.")
    folder = output.with_name(output.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    work = Work(folder / "work", Engine(runner, tuple(runner_options)), config)
    _run(work, files, root.resolve(), folder)
    shutil.rmtree(work.folder)
    if output.exists():
        output.rmdir()
    folder.rename(output)
    log.info("wrote %s", output)


def _run(work: Work, files: list[Path], root: Path, folder: Path) -> None:
    """All stages in order. Each leaves its result in the work folder; finished tables go to `folder`."""
    config = work.config
    clock = _Clock()
    stages.read(work, files, root)
    accepted = sum(len(batch) for batch in _parts(work, "records", ["id"]))
    rejected = sum(len(batch) for batch in _parts(work, "rejects-read", ["id"]))
    clock.done("read", f"{accepted:,} records, {rejected:,} rejected")
    _check_rejects(work, accepted, rejected)

    mined, misspellings = mine_phrases(work, accepted)
    clock.done("vocabulary", f"{len(mined):,} phrases, {len(misspellings):,} misspellings")
    trie = PhraseTrie.build(list(mined), misspellings)
    canonical = canonical_ids(
        list(mined), plural_pairs(mined) if config.vocabulary.fold_plurals else []
    )
    stages.match(work, trie, canonical)
    matched = work.sums("phrase-counts")
    clock.done("match", f"{pc.sum(matched['count']).as_py() or 0:,} phrases in records")

    known = describe_phrases(
        mined, misspellings, canonical, matched, work.sums("cooccurrence"), accepted, config
    )
    clock.done("cluster", f"{known.cluster_names.num_rows:,} clusters")
    stages.label(work, known.table)
    tables = write_tables(work, known, folder)
    labelled = tables["labels.parquet"].rows
    clock.done("label", f"{labelled:,} records labelled")
    _check_unlabelled(config, accepted, labelled)

    plans = plan_shards(work, folder)
    if plans:
        (folder / "shards").mkdir()
        stages.shard(work, folder / "shards", plans)
        write_shard_metadata(work, folder, plans, class_names(known, config))
    examples = choose_examples(work, folder)
    clock.done("shards", f"{len(plans):,} shards")
    counts = {
        "records": accepted + rejected,
        "accepted": accepted,
        "phrases": len(mined),
        "canonical_phrases": known.clusters.num_rows,
        "clusters": known.cluster_names.num_rows,
        "annotations": tables["annotations.parquet"].rows,
        "labelled": labelled,
    }
    tables[examples.name] = examples
    _write_manifest(work, folder, files, counts, tables, clock.seconds)
    write_report(folder)
    clock.done("report", "report.html")


def mine_phrases(work: Work, num_records: int) -> tuple[dict[str, int], dict[str, str]]:
    """The phrases with their document frequencies, and the rare misspellings of their words."""
    config = work.config.vocabulary
    words = work.sums("word-counts")
    word_counts = dict(zip(words["word"].to_pylist(), words["count"].to_pylist(), strict=True))
    misspellings = rare_misspellings(word_counts, config)
    frequent = vocabulary.frequent_words(words, misspellings, config)
    counts, level = dict(frequent), frequent
    for length in range(2, config.max_ngram + 1):
        if not level:
            break
        trie = PhraseTrie.build(list(counts), misspellings)
        sums = stages.count_ngrams(work, trie, length)
        level = vocabulary.frequent_extensions(sums, list(counts), trie.words, config)
        counts.update(level)
    phrases = vocabulary.select_phrases(counts, num_records, config)
    if not phrases:
        raise UserError(
            f"the text of {num_records} records has no phrase in "
            f"vocabulary.min_document_frequency={config.min_document_frequency} of them."
        )
    return phrases, misspellings


def write_tables(work: Work, known: PhraseKnowledge, folder: Path) -> dict[str, TableFile]:
    """Writes the tables of DESIGN 3.2 from the stages' parts."""
    rejects = (b for name in ("rejects-read", "rejects-label") for b in _parts(work, name))
    written = [
        write_table(folder / "vocabulary.parquet", [known.vocabulary], known.vocabulary.schema),
        write_table(folder / "clusters.parquet", [known.clusters], known.clusters.schema),
        write_table(
            folder / "cluster_names.parquet", [known.cluster_names], known.cluster_names.schema
        ),
        write_table(
            folder / "annotations.parquet", _parts(work, "annotations"), ANNOTATIONS_SCHEMA
        ),
        write_table(folder / "rejects.parquet", rejects, REJECTS_SCHEMA),
        write_table(folder / "labels.parquet", _weighted(work), balance.LABELS_SCHEMA),
    ]
    return {table.name: table for table in written}


def class_names(known: PhraseKnowledge, config: PrepConfig) -> list[str]:
    """Name of each label id."""
    if config.label_space == "phrases":
        return list(known.table.phrases)
    return known.cluster_names.column("name").to_pylist()


def _weighted(work: Work) -> Iterator[pa.RecordBatch]:
    """Picked labels with sampling weights (`LABELS_SCHEMA`)."""
    counts = work.sums("label-counts")
    if counts.num_rows == 0:
        return
    frequency = np.zeros(pc.max(counts["label"]).as_py() + 1, np.int64)
    frequency[counts["label"].to_numpy()] = counts["count"].to_numpy()
    images: Counter[int] = Counter()
    for batch in _parts(work, "picked", ["labels"]):
        images.update(balance.rarest_label(batch, frequency).tolist())
    for batch in _parts(work, "picked"):
        rarest = balance.rarest_label(batch, frequency)
        weights = balance.sampling_weights(rarest, images, work.config.sampling_power)
        columns = [batch.column(name) for name in ("id", "labels", "weights")]
        columns += [pa.array(weights), batch.column("split")]
        yield pa.RecordBatch.from_arrays(columns, schema=balance.LABELS_SCHEMA)


def _parts(work: Work, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    for part in list_parts(work / name):
        yield read_part(work / name, part, columns)


def _check_rejects(work: Work, accepted: int, rejected: int) -> None:
    total = accepted + rejected
    limit = work.config.max_reject_fraction
    if rejected > limit * total:
        reasons: Counter[str] = Counter()
        for batch in _parts(work, "rejects-read"):
            reasons.update(batch.column("reason").to_pylist())
        first = next(b for b in _parts(work, "rejects-read") if len(b)).column("id")[0].as_py()
        told = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise UserError(
            f"{rejected} of {total} records are broken, more than max_reject_fraction={limit}: "
            f"{told} (the first: {first!r})."
        )
    if accepted == 0:
        raise UserError("the input is empty: it has no records.")


def _check_unlabelled(config: PrepConfig, accepted: int, labelled: int) -> None:
    limit = config.max_unlabelled_fraction
    if labelled == 0 or accepted - labelled > limit * accepted:
        raise UserError(
            f"{accepted - labelled} of {accepted} records have no text or no label, more than "
            f"max_unlabelled_fraction={limit}: map more text sources or lower scoring.min_score."
        )


def _write_manifest(
    work: Work,
    folder: Path,
    files: list[Path],
    counts: dict[str, int],
    tables: dict[str, TableFile],
    seconds: dict[str, float],
) -> None:
    rejects: Counter[str] = Counter()
    for name in ("rejects-read", "rejects-label"):
        for batch in _parts(work, name):
            rejects.update(batch.column("reason").to_pylist())
    for batch in _parts(work, "shards"):
        row = batch.to_pylist()[0]
        tables[f"shards/{row['name']}"] = TableFile(**row)
    config = dataclasses.asdict(work.config)
    manifest = {
        "config": config,
        "seed": work.config.seed,
        "input": {str(path): {"sha256": digest_file(path)} for path in files},
        "counts": counts,
        "rejects": dict(sorted(rejects.items())),
        "files": {name: {"rows": t.rows, "sha256": t.sha256} for name, t in sorted(tables.items())},
        "versions": {"python": platform.python_version(), **_versions()},
        "seconds": seconds,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class _Clock:
    """Logs each stage when it ends, with the seconds it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def done(self, stage: str, what: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
        log.info("%s: %s (%.1f s)", stage, what, self.seconds[stage])
