"""`vitscale eval`: from a config and a model to metrics, neighbours and a report in a folder.

Each distinct source goes through the model once, whatever number of suites read it. Labels of all
sources share one numbering a field; heads are judged in the numbering of the model's own classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from vitscale.config import ClassificationConfig, EvalConfig, SourceConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.evals import report, suites
from vitscale.evals.embed import (
    REJECTS_FILE,
    Embedded,
    Embedder,
    EmbedOptions,
    check_outputs,
    choose_embedding,
    rejects_table,
    write_parquet,
)
from vitscale.evals.evaluation_report import Album, SuiteReport, evaluation_page
from vitscale.evals.metrics import PAD
from vitscale.evals.suites import Bootstrap, SuiteResult
from vitscale.progress import Task

if TYPE_CHECKING:
    from vitscale.data.sources import Source
    from vitscale.models.weights import LoadedModel

METRICS_FILE = "metrics.json"
NEIGHBOURS_FILE = "neighbours.parquet"
PER_QUERY_FILE = "per_query.parquet"
REPORT_FILE = "report.html"

NEIGHBOURS_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("query_id", pa.string()),
        ("rank", pa.int32()),  # from 1
        ("hit_id", pa.string()),
        ("score", pa.float32()),
        ("relevant", pa.bool_()),
    ]
)
PER_QUERY_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("query_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),  # null: undefined for this query
    ]
)

Metrics = dict[str, dict[str, float | int | None]]  # "<suite>/<metric>" -> value, low, high, n


@dataclass
class _Request:
    """What the suites together want of one source."""

    outputs: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Read:
    """A source that went through the model."""

    source: Source
    embedded: Embedded


def evaluate(config: EvalConfig, model: LoadedModel, output: Path) -> Metrics:
    """Runs every suite and writes `metrics.json` (last), `neighbours.parquet`, `per_query.parquet`,
    `rejects.parquet` and `report.html` in `output`. Returns what `metrics.json` holds.
    """
    heads = {suite.name: choose_heads(suite, model, config.root) for suite in config.classification}
    if not (config.retrieval or config.knn or any(heads.values())):
        raise UserError("no head of the model reads a field of the sources; nothing to measure.")
    requests = plan(config, model, heads)
    classes = _collect_classes(requests, config.root)
    reads = _read_sources(config, model, requests, classes)
    bootstrap = Bootstrap(config.bootstrap_samples, config.seed)

    reports = [
        *_run_retrieval(config, model, reads, bootstrap),
        *_run_classification(config, model, reads, heads, classes, bootstrap),
        *_run_knn(config, model, reads, bootstrap),
    ]
    return _write(output, config, model, reports, reads)


def plan(
    config: EvalConfig, model: LoadedModel, heads: Mapping[str, Sequence[TaskConfig]]
) -> dict[SourceConfig, _Request]:
    """Each distinct source with the outputs and label fields that the suites need of it."""
    requests: dict[SourceConfig, _Request] = {}

    def want(source: SourceConfig, outputs: Iterable[str], fields: Iterable[str]) -> None:
        request = requests.setdefault(_key(source), _Request())
        request.outputs.update(outputs)
        request.fields.update(fields)

    for suite in config.retrieval:
        embedding = choose_embedding(suite.embedding, model)
        for source in (suite.queries, suite.index):
            want(source, [embedding], [suite.relevant_field])
    for probe in config.knn:
        embedding = choose_embedding(probe.embedding, model)
        for source in (probe.train, probe.test):
            want(source, [embedding], [probe.field])
    for heads_suite in config.classification:
        tasks = heads[heads_suite.name]
        if tasks:
            want(heads_suite.source, [t.name for t in tasks], [t.label_field for t in tasks])
    for request in requests.values():
        check_outputs(model, sorted(request.outputs))
    return requests


def choose_heads(suite: ClassificationConfig, model: LoadedModel, root: str) -> list[TaskConfig]:
    """The tasks that a suite judges: those it names, or every head whose field the source has."""
    tasks = {task.name: task for task in model.tasks if task.kind != "embedding"}
    for name in suite.tasks:
        if name not in tasks:
            raise UserError(
                f"suite {suite.name!r}: the model has no head {name!r}; "
                f"its heads are {', '.join(tasks) or 'none'}."
            )
    if suite.tasks:
        return [tasks[name] for name in suite.tasks]
    from vitscale.data.sources import available_fields

    available = available_fields(suite.source, root)
    return [task for task in tasks.values() if task.label_field in available]


def _key(source: SourceConfig) -> SourceConfig:
    """A source without what does not change which examples it holds."""
    return dataclasses.replace(source, fields=(), weight=None, sampling="uniform")


def _with_fields(source: SourceConfig, request: _Request) -> SourceConfig:
    return dataclasses.replace(source, fields=tuple(sorted(request.fields)))


def _collect_classes(requests: Mapping[SourceConfig, _Request], root: str) -> dict[str, list[str]]:
    from vitscale.data.sources import collect_classes

    return collect_classes([_with_fields(*item) for item in requests.items()], root)


def _read_sources(
    config: EvalConfig,
    model: LoadedModel,
    requests: Mapping[SourceConfig, _Request],
    classes: Mapping[str, list[str]],
) -> dict[SourceConfig, _Read]:
    from vitscale.data.sources import open_source

    # All are opened before the first is embedded: a missing file must not cost an hour.
    opened = {
        key: open_source(_with_fields(key, request), config.root, classes)
        for key, request in requests.items()
    }
    # One compilation for all; no batch larger than the largest source.
    outputs = sorted(set().union(*(request.outputs for request in requests.values())))
    options = EmbedOptions.of(config)
    largest = max(map(len, opened.values()))
    options = dataclasses.replace(options, batch_size=min(options.batch_size, largest))
    embedder = Embedder(model, outputs, options=options)
    reads = {}
    for key, request in requests.items():
        source = opened[key]
        with Task(f"embed {source.name}", len(source)) as task:
            embedded = embedder(
                source,
                sorted(request.outputs),
                fields=sorted(request.fields),
                progress=lambda done, _, task=task: task.update(done),  # type: ignore[misc]
            )
        reads[key] = _Read(source, embedded)
    return reads


def _run_retrieval(
    config: EvalConfig,
    model: LoadedModel,
    reads: Mapping[SourceConfig, _Read],
    bootstrap: Bootstrap,
) -> Iterable[SuiteReport]:
    for suite in config.retrieval:
        queries, index = reads[_key(suite.queries)], reads[_key(suite.index)]
        embedding = choose_embedding(suite.embedding, model)
        result = suites.retrieval(
            suite,
            queries.embedded.ids,
            queries.embedded.outputs[embedding],
            queries.embedded.labels[suite.relevant_field],
            index.embedded.ids,
            index.embedded.outputs[embedding],
            index.embedded.labels[suite.relevant_field],
            bootstrap,
        )
        note = (
            f"{len(queries.embedded):,} queries of {queries.source.name} in "
            f"{len(index.embedded):,} items of {index.source.name}; relevant: same "
            f"{suite.relevant_field}; embedding: {embedding}; search: {suite.search}."
        )
        albums = [Album(read.source, read.embedded.rows) for read in (queries, index)]
        yield SuiteReport(result, note, *albums)


def _run_classification(
    config: EvalConfig,
    model: LoadedModel,
    reads: Mapping[SourceConfig, _Read],
    heads: Mapping[str, Sequence[TaskConfig]],
    classes: Mapping[str, list[str]],
    bootstrap: Bootstrap,
) -> Iterable[SuiteReport]:
    for suite in config.classification:
        tasks = heads[suite.name]
        if not tasks:
            note = f"Not measured: no head of the model reads a field of {suite.source.path}."
            yield SuiteReport(SuiteResult(suite.name), note)
            continue
        read = reads[_key(suite.source)]
        embedded = read.embedded
        labels, unknown = {}, {}
        for name in {task.label_field for task in tasks}:
            labels[name], unknown[name] = to_model_classes(
                embedded.labels[name], classes[name], model.classes[name]
            )
        result = suites.classification(
            suite.name, tasks, embedded.ids, embedded.outputs, labels, unknown, bootstrap
        )
        yield SuiteReport(result, f"{len(embedded):,} images of {read.source.name}.")


def to_model_classes(
    labels: Int[np.ndarray, "N K"], names: Sequence[str], model_names: Sequence[str]
) -> tuple[Int[np.ndarray, "N K"], int]:
    """Label ids in the model's numbering, known first, and how many the model lacks."""
    row_of = {name: row for row, name in enumerate(model_names)}
    # Index -1 of the table is PAD's own entry.
    mapping = np.array([*(row_of.get(name, PAD) for name in names), PAD], np.int64)
    mapped = mapping[labels]
    order = np.argsort(mapped == PAD, axis=1, kind="stable")
    unknown = int(((mapped == PAD) & (labels != PAD)).sum())
    return np.take_along_axis(mapped, order, axis=1), unknown


def _run_knn(
    config: EvalConfig,
    model: LoadedModel,
    reads: Mapping[SourceConfig, _Read],
    bootstrap: Bootstrap,
) -> Iterable[SuiteReport]:
    for suite in config.knn:
        train_read, test_read = reads[_key(suite.train)], reads[_key(suite.test)]
        train, test = train_read.embedded, test_read.embedded
        embedding = choose_embedding(suite.embedding, model)
        result = suites.knn(
            suite,
            train.outputs[embedding],
            train.labels[suite.field],
            test.ids,
            test.outputs[embedding],
            test.labels[suite.field],
            bootstrap,
        )
        note = (
            f"{suite.field} of {len(test):,} images of {test_read.source.name} by vote of their "
            f"{suite.k} nearest of {len(train):,} in {train_read.source.name}; "
            f"embedding: {embedding}."
        )
        yield SuiteReport(result, note)


def _write(
    output: Path,
    config: EvalConfig,
    model: LoadedModel,
    reports: Sequence[SuiteReport],
    reads: Mapping[SourceConfig, _Read],
) -> Metrics:
    results = [entry.result for entry in reports]
    metrics: Metrics = {
        f"{result.name}/{name}": estimate.to_json()
        for result in results
        for name, estimate in result.estimates.items()
    }
    rejects = rejects_table({read.source.name: read.embedded for read in reads.values()})
    title = f"{model.path} at step {model.step:,}"
    document = evaluation_page(title, reports, rejects.num_rows, config.gallery_queries)

    output.mkdir(parents=True, exist_ok=True)
    # It goes first and comes last: a folder with metrics.json is complete.
    (output / METRICS_FILE).unlink(missing_ok=True)
    write_parquet(output / NEIGHBOURS_FILE, neighbours_table(results))
    write_parquet(output / PER_QUERY_FILE, per_query_table(results))
    write_parquet(output / REJECTS_FILE, rejects)
    report.write_page(output / REPORT_FILE, document)
    temporary = output / (METRICS_FILE + ".tmp")
    temporary.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    temporary.rename(output / METRICS_FILE)
    return metrics


def neighbours_table(results: Sequence[SuiteResult]) -> pa.Table:
    """The hits of every query of every retrieval suite, best first."""
    tables = [NEIGHBOURS_SCHEMA.empty_table()]
    for result in results:
        ranking = result.ranking
        if ranking is None:
            continue
        query, position = np.nonzero(ranking.rows != PAD)
        rows = ranking.rows[query, position]
        columns = {
            "suite": [result.name] * len(rows),
            "query_id": np.asarray(ranking.query_ids, object)[query],
            "rank": position + 1,
            "hit_id": np.asarray(ranking.index_ids, object)[rows],
            "score": ranking.scores[query, position],
            "relevant": ranking.relevant[query, position],
        }
        tables.append(pa.table(columns, schema=NEIGHBOURS_SCHEMA))
    return pa.concat_tables(tables)


def per_query_table(results: Sequence[SuiteResult]) -> pa.Table:
    """Every metric of every query or example: what `vitscale compare` pairs by id."""
    tables = [PER_QUERY_SCHEMA.empty_table()]
    for result in results:
        for metric, values in result.per_query.items():
            columns = {
                "suite": [result.name] * len(values),
                "query_id": list(result.ids),
                "metric": [metric] * len(values),
                "value": pa.array(values, pa.float64(), from_pandas=True),  # NaN becomes null
            }
            tables.append(pa.table(columns, schema=PER_QUERY_SCHEMA))
    return pa.concat_tables(tables)
