"""`vitscale prep`: from records with messy text to weak labels and shards, top to bottom."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow.compute as pc

from data_prep import stages, vocabulary
from data_prep.canonical import plural_pairs, rare_misspellings
from data_prep.clusters import ACTIVE, STATUSES
from data_prep.copies import check_sets, deduplicate
from data_prep.engine import Engine
from data_prep.finish import choose_examples, plan_shards, write_shard_metadata
from data_prep.language import load_model
from data_prep.matching import PhraseTrie
from data_prep.phrases import canonical_ids, check_cluster_inputs, describe_phrases
from data_prep.privacy import blocklist_files, is_blocked, read_blocklist
from data_prep.report import write_report
from data_prep.schema import PrepConfig
from data_prep.sources import check_fields, find_inputs
from data_prep.stages import Work
from data_prep.tables import REJECTS, describe_tail, write_tables
from data_prep.write import TableFile, digest_file
from vitscale.errors import UserError

log = logging.getLogger("vitscale.prep")
PACKAGES = ("vitscale", "numpy", "scipy", "pyarrow", "pillow", "apache-beam", "array-record", "jax")


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
    check_cluster_inputs(config)
    check_sets(config)
    check_text_inputs(config)
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
    checked = stages.CHECKED if config.looks_for_copies else "records"
    usable = sum(len(batch) for batch in work.parts(checked, ["id"]))
    rejected = sum(len(batch) for batch in work.parts("rejects-read", ["id"]))
    clock.done("read", f"{usable:,} records, {rejected:,} rejected")
    _check_rejects(work, usable, rejected)
    described: dict[str, object] = {}
    if config.looks_for_copies:
        described["copies"] = deduplicate(work)
    accepted = sum(len(batch) for batch in work.parts("records", ["id"]))
    clock.done("copies", f"{usable - accepted:,} records removed")
    if accepted == 0:
        raise UserError("every record is a copy of an image of an evaluation set; none is left.")

    stages.split_words(work)

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
        mined,
        misspellings,
        canonical,
        matched,
        work.sums("language-counts"),
        lambda: work.parts("cooccurrence"),
        accepted,
        config,
        work / "matrices",
    )
    clock.done("cluster", f"{known.clusters.count(ACTIVE):,} clusters")
    stages.label(work, known.table, known.labels)
    frequency = stages.drop_rare_labels(work, len(known.labels.names))
    tables = write_tables(work, known, frequency, folder)
    labelled = tables["labels.parquet"].rows
    clock.done("label", f"{labelled:,} records labelled")
    _check_unlabelled(config, accepted, labelled)

    plans = plan_shards(work, folder)
    if plans:
        (folder / "shards").mkdir()
        stages.shard(work, folder / "shards", plans)
        write_shard_metadata(work, folder, plans, known.labels.names)
    examples = choose_examples(work, folder)
    clock.done("shards", f"{len(plans):,} shards")
    counts = {
        "records": usable + rejected,
        "accepted": accepted,
        "phrases": len(mined),
        "canonical_phrases": known.members.num_rows,
        "clusters": known.clusters.count(ACTIVE),
        "annotations": tables["annotations.parquet"].rows,
        "labelled": labelled,
    }
    tables[examples.name] = examples
    described |= {
        "clusters": {
            **{status: known.clusters.count(status) for status in STATUSES},
            "phrases_with_vector": known.embedded,
            "unmatched_reviews": known.clusters.unmatched_reviews,
        },
        # Those that images.reencode_side made smaller; all others are stored byte for byte.
        "reencoded_images": sum(b.column("images")[0].as_py() for b in work.parts("reencoded")),
        "tail": describe_tail(folder, frequency, len(mined)),
    }
    _write_manifest(work, folder, files, counts, described, tables, clock.seconds)
    write_report(folder)
    clock.done("report", "report.html")


def check_text_inputs(config: PrepConfig) -> None:
    """Loads what reading texts will want, so that what is missing is told first."""
    read_blocklist(config.privacy, config.text)
    if config.language.identify:
        load_model(config.language.languages)


def mine_phrases(work: Work, num_records: int) -> tuple[dict[str, int], dict[str, str]]:
    """The phrases with their document frequencies, and the rare misspellings of their words."""
    config = work.config.vocabulary
    words = work.sums("word-counts")
    word_counts = dict(zip(words["word"].to_pylist(), words["count"].to_pylist(), strict=True))
    blocked = read_blocklist(work.config.privacy, work.config.text)
    misspellings = {
        form: target
        for form, target in rare_misspellings(word_counts, config).items()
        if not is_blocked(form, blocked)  # rare or not, it is no word of ours
    }
    frequent = vocabulary.frequent_words(words, misspellings, config)
    counts, level = dict(frequent), frequent
    for length in range(2, config.max_ngram + 1):
        if not level:
            break
        trie = PhraseTrie.build(list(counts), misspellings)
        sums = stages.count_ngrams(work, trie, length)
        level = vocabulary.frequent_extensions(sums, list(counts), trie.words, config)
        counts.update(level)
    phrases = vocabulary.select_phrases(counts, num_records, config, blocked)
    if not phrases:
        raise UserError(
            f"the text of {num_records} records has no phrase in "
            f"vocabulary.min_document_frequency={config.min_document_frequency} of them."
        )
    return phrases, misspellings


def _check_rejects(work: Work, accepted: int, rejected: int) -> None:
    total = accepted + rejected
    limit = work.config.max_reject_fraction
    if rejected > limit * total:
        reasons: Counter[str] = Counter()
        for batch in work.parts("rejects-read"):
            reasons.update(batch.column("reason").to_pylist())
        first = next(b for b in work.parts("rejects-read") if len(b)).column("id")[0].as_py()
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
    described: dict[str, object],
    tables: dict[str, TableFile],
    seconds: dict[str, float],
) -> None:
    rejects: Counter[str] = Counter()
    for name in REJECTS:
        for batch in work.parts(name):
            rejects.update(batch.column("reason").to_pylist())
    for batch in work.parts("shards"):
        row = batch.to_pylist()[0]
        tables[f"shards/{row['name']}"] = TableFile(**row)
    extra = check_cluster_inputs(work.config) + blocklist_files(work.config.privacy)
    config = dataclasses.asdict(work.config)
    manifest = {
        "config": config,
        "seed": work.config.seed,
        "input": {str(path): {"sha256": digest_file(path)} for path in [*files, *extra]},
        "counts": counts,
        "rejects": dict(sorted(rejects.items())),
        **described,
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
