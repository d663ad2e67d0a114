"""Probes of frozen features on the sources that were read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vitscale.config import (
    ClusteringConfig,
    EvalConfig,
    FewShotConfig,
    KnnConfig,
    LinearProbeConfig,
    SourceConfig,
)
from vitscale.evals import plots
from vitscale.evals.clustering import clustering
from vitscale.evals.embed import choose_embedding
from vitscale.evals.evaluation_report import SuiteReport
from vitscale.evals.few_shot import few_shot
from vitscale.evals.knn_probe import knn
from vitscale.evals.linear_probe import linear_probe
from vitscale.evals.per_class import with_class_rows
from vitscale.evals.probe_data import (
    Examples,
    check_parted,
    has_field,
    ungrouped_note,
    with_overlap,
)
from vitscale.evals.read_sources import Read, source_key
from vitscale.evals.run_attentive import run_attentive, wants_attentive
from vitscale.evals.run_common import Slicer, Use, Want, group_names, uses
from vitscale.evals.suites import SuiteResult
from vitscale.progress import Task

if TYPE_CHECKING:
    from vitscale.evals.embed import Measured

Probe = KnnConfig | LinearProbeConfig | FewShotConfig
Reads = Mapping[SourceConfig, Read]


def wants_probes(config: EvalConfig, model: Measured) -> Iterable[Want]:
    """Features and the field to predict, of training and test examples."""
    for probe in _probes(config):
        check_parted(probe.name, probe.train, probe.test)
        embedding = choose_embedding(probe.embedding, model)
        label = Use(probe.field, "the probe")
        # The linear probe keeps them whole, and all say how many of the test examples are of a group of train.
        groups = uses(group_field=probe.group_field)
        if groups and not has_field(probe.train, probe.group_field, config.root):
            groups = ()
        yield Want(probe.name, probe.train, (embedding,), (label, *groups))
        judged = uses(slices=probe.slices, group_field=probe.group_field)
        yield Want(probe.name, probe.test, (embedding,), (label, *judged))
    yield from wants_attentive(config, model)
    for suite in config.clustering:
        embedding = choose_embedding(suite.embedding, model)
        fields = (Use(suite.field, "the clustering"), *uses(group_field=suite.group_field))
        yield Want(suite.name, suite.source, (embedding,), fields)


def run_probes(
    config: EvalConfig, model: Measured, reads: Reads, slicer: Slicer
) -> Iterable[SuiteReport]:
    """kNN, linear, few-shot and attentive probes, then clusterings."""
    for probe in _probes(config):
        with Task(f"probe {probe.name}", 1) as task:
            report = _run_probe(probe, model, reads, slicer)
            task.update(1)
        yield report
    yield from run_attentive(config, model, reads, slicer)
    for suite in config.clustering:
        embedding = choose_embedding(suite.embedding, model)
        read = reads[source_key(suite.source)]
        examples = read_examples(read, embedding, suite.field, suite.group_field, slicer)
        with Task(f"cluster {suite.name}", 1) as task:
            result = clustering(suite, examples, slicer.bootstrap)
            task.update(1)
        yield SuiteReport(result, _clustering_note(suite, read, embedding, result))


def read_examples(
    read: Read, embedding: str, field: str, group_field: str, slicer: Slicer
) -> Examples:
    """Features, labels and groups of a source that was read."""
    embedded = read.embedded
    return Examples(
        embedded.ids,
        embedded.outputs[embedding],
        embedded.labels[field],
        group_names(embedded, group_field, slicer.classes),
    )


def _probes(config: EvalConfig) -> Iterator[Probe]:
    yield from config.knn
    yield from config.linear_probe
    yield from config.few_shot


def _run_probe(probe: Probe, model: Measured, reads: Reads, slicer: Slicer) -> SuiteReport:
    train_read, test_read = reads[source_key(probe.train)], reads[source_key(probe.test)]
    embedding = choose_embedding(probe.embedding, model)
    test = read_examples(test_read, embedding, probe.field, probe.group_field, slicer)
    grouped = probe.group_field in train_read.embedded.labels
    group_field = probe.group_field if grouped else ""
    train = read_examples(train_read, embedding, probe.field, group_field, slicer)
    drawn: Sequence[Markup] = ()
    if isinstance(probe, KnnConfig):
        result = knn(probe, train, test, slicer.bootstrap)
        how = f"by vote of their {probe.k} nearest of"
    elif isinstance(probe, LinearProbeConfig):
        result = linear_probe(probe, train, test, slicer.bootstrap)
        how, drawn = f"by {probe.loss} regression on", _sweep_plots(probe, result)
    else:
        result = few_shot(probe, train, test, slicer.bootstrap)
        how, drawn = f"by ridge regression, {probe.draws} draws from", _shot_plots(probe, result)
    result, overlap = with_overlap(result, probe.train, probe.test, train, test)
    note = (
        f"{probe.field} of {len(test.ids):,} images of {test_read.source.name} {how} {len(train.ids):,} in "
        f"{train_read.source.name}; embedding: {embedding}."
    )
    if isinstance(probe, LinearProbeConfig):
        note += _ending_note(probe, result.facts)
        note += ungrouped_note(probe.group_field, grouped)
    if isinstance(probe, FewShotConfig):
        note += _short_note(probe, result)
    note += overlap
    if probe.per_class:
        # Several labels count where the metric knows them: the other probes are judged by the first.
        several = isinstance(probe, LinearProbeConfig) and probe.loss == "sigmoid"
        labels = test.labels if several else test.labels[:, :1]
        result = with_class_rows(result, labels, slicer.classes[probe.field], slicer.bootstrap)
    return SuiteReport(slicer(result, probe.slices, test_read.embedded), note, plots=drawn)


def _ending_note(probe: LinearProbeConfig, facts: Mapping[str, Any]) -> str:
    """The penalty, how it was chosen, and what did not go as it should."""
    note = f" Penalty: l2={facts['l2']:g}"
    if facts["sweep"]:
        held_out = facts["held_out"]
        note += f", the best of {len(probe.l2)} on {held_out:,} training images held out"
        if facts["l2"] in (min(probe.l2), max(probe.l2)):
            note += "; it is at the end of the sweep, so widen l2"
    note += f". L-BFGS: {facts['steps']} steps."
    unfinished = [one["l2"] for one in (*facts["sweep"], facts) if not one["converged"]]
    if unfinished:
        named = ", ".join(f"{value:g}" for value in dict.fromkeys(unfinished))
        note += f" Not converged at l2={named}: raise steps."
    return note


def _sweep_plots(probe: LinearProbeConfig, result: SuiteResult) -> list[Markup]:
    sweep: Any = result.facts["sweep"]
    if not sweep:
        return []
    metric = "accuracy" if probe.loss == "softmax" else "mAP"
    line = [one["l2"] for one in sweep], [one["validation"] for one in sweep]
    return [
        plots.line_plot(
            {"held out": line},
            x_label="penalty l2",
            y_label=f"{metric} of what was held out",
            log_x=True,
        )
    ]


def _short_note(probe: FewShotConfig, result: SuiteResult) -> str:
    short = [
        f"{int(estimate.value):,} of {estimate.n:,} classes have fewer than {k} examples and give all of them"
        for k in probe.shots
        if (estimate := result.estimates.get(f"classes_below_{k}")) is not None
    ]
    return "".join(f" {sentence}." for sentence in short)


def _shot_plots(probe: FewShotConfig, result: SuiteResult) -> list[Markup]:
    """Accuracy by shots with the draws around the mean, and by penalty."""
    shots = sorted(probe.shots)
    draws: Any = result.facts["draws"]
    by_l2: Any = result.facts["first_draw_by_l2"]
    means = [result.estimates[f"accuracy_{k}shot"].value for k in shots]
    lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {"mean": (shots, means)}
    if probe.draws > 1:
        lines["best draw"] = (shots, [max(draws[str(k)]) for k in shots])
        lines["worst draw"] = (shots, [min(draws[str(k)]) for k in shots])
    found = [plots.line_plot(lines, x_label="examples a class", y_label="accuracy", log_x=True)]
    penalties = {
        f"{k} shots": ([float(l2) for l2 in by_l2[str(k)]], list(by_l2[str(k)].values()))
        for k in shots
    }
    found.append(
        plots.line_plot(
            penalties,
            x_label=f"penalty, first draw (the suite's: {probe.l2:g})",
            y_label="accuracy",
            log_x=True,
        )
    )
    return found


def _clustering_note(
    suite: ClusteringConfig, read: Read, embedding: str, result: SuiteResult
) -> str:
    note = (
        f"k-means of {len(read.embedded):,} images of {read.source.name}, the best of {suite.starts} starts by "
        f"inertia, against {suite.field}; embedding: {embedding}."
    )
    if result.facts["few_a_cell"]:
        note += (
            " There is less than one image for each pair of a class and a cluster: the intervals are too narrow, by "
            "about a third."
        )
    return note
