"""Attentive probes on the sources that were read: their tokens are made here, of labelled images only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from markupsafe import Markup

from vitscale.config import AttentiveProbeConfig, EvalConfig, SourceConfig
from vitscale.errors import UserError
from vitscale.evals import plots
from vitscale.evals.attentive_probe import AttentiveFit, check_heads, fit_attentive
from vitscale.evals.embed import EmbedOptions
from vitscale.evals.evaluation_report import SuiteReport
from vitscale.evals.external_vectors import ExternalVectors
from vitscale.evals.metrics import PAD
from vitscale.evals.per_class import with_class_rows
from vitscale.evals.probe_data import (
    Examples,
    check_classes,
    check_examples,
    check_parted,
    class_result,
    has_field,
    hold_out,
    ungrouped_note,
    with_overlap,
)
from vitscale.evals.read_sources import Read, source_key
from vitscale.evals.run_common import Slicer, Use, Want, group_names, uses
from vitscale.evals.suites import SuiteResult
from vitscale.evals.tokens import TokenReader
from vitscale.progress import Task

if TYPE_CHECKING:
    from vitscale.evals.embed import Measured

PART = 16  # images whose tokens go through the probe at once


def wants_attentive(config: EvalConfig, model: Measured) -> Iterable[Want]:
    """Ids and labels only."""
    for suite in config.attentive_probe:
        check_parted(suite.name, suite.train, suite.test)
        label = Use(suite.field, "the probe")
        judged = uses(slices=suite.slices, group_field=suite.group_field)
        groups = uses(group_field=suite.group_field)
        if groups and not has_field(suite.train, suite.group_field, config.root):
            groups = ()
        yield Want(suite.name, suite.train, (), (label, *groups))
        yield Want(suite.name, suite.test, (), (label, *judged))


def run_attentive(
    config: EvalConfig,
    model: Measured,
    reads: Mapping[SourceConfig, Read],
    slicer: Slicer,
) -> Iterable[SuiteReport]:
    if not config.attentive_probe:
        return
    if isinstance(model, ExternalVectors):
        for suite in config.attentive_probe:
            note = f"Not measured: {model.path} holds vectors, not tokens."
            yield SuiteReport(SuiteResult(suite.name), note)
        return
    reader = TokenReader(model, EmbedOptions.of(config))
    for suite in config.attentive_probe:
        yield _run_suite(suite, reader, reads, slicer)


def _run_suite(
    suite: AttentiveProbeConfig,
    reader: TokenReader,
    reads: Mapping[SourceConfig, Read],
    slicer: Slicer,
) -> SuiteReport:
    check_heads(suite, reader.shape[1])
    reader.rejects.clear()
    train_read, test_read = reads[source_key(suite.train)], reads[source_key(suite.test)]
    grouped = suite.group_field in train_read.embedded.labels
    train = _examples(train_read, suite.field, suite.group_field if grouped else "", slicer)
    test = _examples(test_read, suite.field, suite.group_field, slicer)
    check_examples(suite.name, suite.field, train, test)
    known = np.flatnonzero(train.label != PAD)
    classes = np.unique(train.label[known])
    check_classes(suite.name, suite.field, classes)
    with Task(f"tokens of {train_read.source.name}", len(known)) as task:
        rows = train_read.embedded.rows[known]
        tokens = reader.keep(train_read.source, rows, suite.token_memory_gib, task.update)
    train = train.where(known[tokens.places])
    fit, facts = _choose(suite, tokens.values, train, classes, slicer.bootstrap.seed)
    predicted = _predict(fit, reader, test_read, test.label, classes)
    unreadable = sorted(reader.rejects)
    test_rows = np.flatnonzero((predicted != PAD) | (test.label == PAD))
    test = test.where(test_rows)
    result = class_result(
        suite.name,
        test,
        predicted[test_rows],
        classes,
        slicer.bootstrap,
        {**facts, "unreadable": unreadable},
    )
    result, overlap = with_overlap(result, suite.train, suite.test, train, test)
    note = (
        f"{suite.field} of {len(test_rows):,} images of {test_read.source.name} by a probe of {tokens.values.shape[1]} "
        f"tokens of {tokens.values.shape[2]} entries, {suite.steps} steps on {len(train.ids):,} images of "
        f"{train_read.source.name}. {_choice_note(suite, facts)}"
    )
    note += ungrouped_note(suite.group_field, grouped) + overlap
    if unreadable:
        note += f" {len(unreadable):,} images could not be read (first: {unreadable[0]!r})."
    if suite.per_class:
        classes_of = slicer.classes[suite.field]
        result = with_class_rows(result, test.labels[:, :1], classes_of, slicer.bootstrap)
    result = slicer(result, suite.slices, _part(test_read, test_rows))
    return SuiteReport(result, note, plots=_plots(facts))


def _examples(read: Read, field: str, group_field: str, slicer: Slicer) -> Examples:
    """Without features: the tokens are those of the labelled and readable alone."""
    embedded = read.embedded
    return Examples(
        embedded.ids,
        np.zeros((len(embedded), 1), np.float32),
        embedded.labels[field],
        group_names(embedded, group_field, slicer.classes),
    )


def _choose(
    suite: AttentiveProbeConfig,
    tokens: Float[np.ndarray, "n N D"],
    train: Examples,
    classes: Int[np.ndarray, " C"],
    seed: int,
) -> tuple[AttentiveFit, dict[str, Any]]:
    """The probe of all training images at the rate that is best on a part of them; of equal ones the lowest."""
    label = np.searchsorted(classes, train.label).astype(np.int32)

    def fit(rows: Bool[np.ndarray, " n"], lr: Sequence[float], what: str) -> AttentiveFit:
        with Task(f"probe {suite.name} ({what})", suite.steps) as task:
            return fit_attentive(
                suite,
                tokens,
                label,
                np.flatnonzero(rows),
                lr,
                num_classes=len(classes),
                seed=seed,
                progress=task.update,
            )

    everything = np.ones(len(label), bool)
    lr, sweep, number = suite.lr[0], [], 0
    if len(suite.lr) > 1:
        held_out = hold_out(
            suite.name, train.label, train.group_codes, suite.validation_fraction, seed
        )
        tried = fit(~held_out, suite.lr, f"{len(suite.lr)} learning rates")
        rows = np.flatnonzero(held_out)
        number = len(rows)
        right = np.concatenate(
            [
                tried.predict(tokens[rows[start : start + PART]])
                == label[rows[start : start + PART]]
                for start in range(0, len(rows), PART)
            ],
            axis=1,
        )
        found = right.mean(axis=1)
        lr = min(zip(-found, suite.lr, strict=True))[1]
        sweep = [
            {"lr": value, "validation": float(score), "loss": _finite(loss)}
            for value, score, loss in zip(suite.lr, found, tried.loss, strict=True)
        ]
    final = fit(everything, [lr], f"lr {lr:g}")
    loss = _finite(final.loss[0])
    if loss is None:
        raise UserError(f"suite {suite.name!r}: the probe diverged at lr={lr:g}; lower lr.")
    return final, {"lr": lr, "loss": loss, "held_out": number, "sweep": sweep}


def _finite(loss: float) -> float | None:
    return float(loss) if np.isfinite(loss) else None


def _predict(
    fit: AttentiveFit,
    reader: TokenReader,
    read: Read,
    label: Int[np.ndarray, " T"],
    classes: Int[np.ndarray, " C"],
) -> Int[np.ndarray, " T"]:
    """Predicted label ids of the labelled images; -1 for the others and for those that cannot be read."""
    predicted = np.full(len(label), PAD, np.int64)
    known = np.flatnonzero(label != PAD)
    with Task(f"tokens of {read.source.name}", len(known)) as task:
        done = 0
        for places, tokens in reader.batches(read.source, read.embedded.rows[known]):
            padded = np.concatenate(
                [tokens, np.zeros((-len(tokens) % PART, *tokens.shape[1:]), tokens.dtype)]
            )
            chosen = np.concatenate(
                [
                    fit.predict(padded[start : start + PART])[0]
                    for start in range(0, len(padded), PART)
                ]
            )
            predicted[known[places]] = classes[chosen[: len(tokens)]]
            done += len(places)
            task.update(done)
    return predicted


def _part(read: Read, rows: Int[np.ndarray, " n"]) -> Any:
    """What a slicer reads of the examples that were judged."""
    embedded = read.embedded
    return dataclasses.replace(
        embedded,
        ids=[embedded.ids[row] for row in rows],
        rows=embedded.rows[rows],
        outputs={},
        labels={name: values[rows] for name, values in embedded.labels.items()},
        weights={name: values[rows] for name, values in embedded.weights.items()},
    )


def _choice_note(suite: AttentiveProbeConfig, facts: Mapping[str, Any]) -> str:
    if not facts["sweep"]:
        return f"Learning rate: {facts['lr']:g}."
    note = (
        f"Learning rate: {facts['lr']:g}, the best of {len(suite.lr)} on {facts['held_out']:,} training images "
        "held out"
    )
    at_end = facts["lr"] in (min(suite.lr), max(suite.lr))
    return note + ("; it is at the end of the sweep, so widen lr." if at_end else ".")


def _plots(facts: Mapping[str, Any]) -> list[Markup]:
    if not facts["sweep"]:
        return []
    rates = [one["lr"] for one in facts["sweep"]]
    values = [one["validation"] for one in facts["sweep"]]
    return [
        plots.line_plot(
            {"held out": (rates, values)},
            x_label="learning rate",
            y_label="accuracy of what was held out",
            log_x=True,
        )
    ]
