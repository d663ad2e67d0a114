"""The linear probe: logistic regression on frozen features, its penalty chosen on a part of the training examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vitscale.config import LinearProbeConfig
from vitscale.evals import metrics
from vitscale.evals.figures import Bootstrap, Mean, Statistic
from vitscale.evals.logistic import LogisticFit, fit_logistic
from vitscale.evals.metrics import PAD
from vitscale.evals.probe_data import (
    Examples,
    Standardiser,
    check_classes,
    check_examples,
    class_result,
    hold_out,
)
from vitscale.evals.stats import Estimate
from vitscale.evals.suites import SuiteResult


@dataclass(frozen=True)
class _Trained:
    """Scores of every penalty for features as they are."""

    standardise: Standardiser
    fit: LogisticFit

    def scores(self, features: Float[np.ndarray, "N D"], number: int) -> Float[np.ndarray, "N C"]:
        return self.standardise(features) @ self.fit.weights[number] + self.fit.bias[number]


def linear_probe(
    suite: LinearProbeConfig,
    train: Examples,
    test: Examples,
    bootstrap: Bootstrap,
    devices: Sequence[jax.Device] | None = None,
) -> SuiteResult:
    """Fits all penalties without the held-out part, chooses by accuracy (softmax) or mAP (sigmoid) on it, fits that one
    to all of `train` and judges it on `test`.

    Of equally good penalties the strongest is taken. Classes are those of `train`. Examples without a label take no
    part. `facts` say the sweep, what was chosen, and whether L-BFGS converged.
    """
    check_examples(suite.name, suite.field, train, test)
    train = train.where(train.labelled)
    multi_label = suite.loss == "sigmoid"
    classes = np.unique(train.labels if multi_label else train.label)
    classes = classes[classes != PAD]
    check_classes(suite.name, suite.field, classes)
    targets = multi_hot(train.labels if multi_label else train.labels[:, :1], classes)

    def learn(rows: Bool[np.ndarray, " N"], l2: Sequence[float]) -> _Trained:
        standardise = Standardiser.of(train.features[rows])
        fit = fit_logistic(
            standardise(train.features[rows]),
            targets[rows].astype(np.float32),
            l2,
            loss=suite.loss,
            steps=suite.steps,
            devices=devices,
        )
        return _Trained(standardise, fit)

    l2, chosen_by = _choose(suite, train, targets, learn, bootstrap.seed)
    final = learn(np.ones(len(train.ids), bool), [l2])
    facts = {"l2": l2, **_ending(final.fit, 0), **chosen_by}
    scores = final.scores(test.features, 0)
    if multi_label:
        return _multi_label_result(suite.name, test, scores, classes, bootstrap, facts)
    return class_result(suite.name, test, classes[scores.argmax(axis=1)], classes, bootstrap, facts)


def _choose(
    suite: LinearProbeConfig,
    train: Examples,
    targets: Bool[np.ndarray, "N C"],
    learn: Callable[[Bool[np.ndarray, " N"], Sequence[float]], _Trained],
    seed: int,
) -> tuple[float, dict[str, object]]:
    """The penalty that is best on the held-out part, and the facts of the choice; a single one needs none."""
    if len(suite.l2) == 1:
        return suite.l2[0], {"held_out": 0, "sweep": []}
    held_out = hold_out(suite.name, train.label, train.group_codes, suite.validation_fraction, seed)
    trained = learn(~held_out, suite.l2)
    features, truth = train.features[held_out], targets[held_out]
    found = [
        _validate(trained.scores(features, i), truth, suite.loss == "sigmoid")
        for i in range(len(suite.l2))
    ]
    sweep = [
        {"l2": value, "validation": score, **_ending(trained.fit, i)}
        for i, (value, score) in enumerate(zip(suite.l2, found, strict=True))
    ]
    best = max(zip(found, suite.l2, strict=True))[1]
    return best, {"held_out": int(held_out.sum()), "sweep": sweep}


def multi_hot(
    labels: Int[np.ndarray, "N K"], classes: Int[np.ndarray, " C"]
) -> Bool[np.ndarray, "N C"]:
    """Which of the sorted `classes` each example has; other labels are left out."""
    place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    known = (classes[place] == labels) & (labels != PAD)
    found = np.zeros((len(labels), len(classes)), bool)
    rows, columns = np.nonzero(known)
    found[rows, place[rows, columns]] = True
    return found


def _validate(
    scores: Float[np.ndarray, "n C"], truth: Bool[np.ndarray, "n C"], multi_label: bool
) -> float:
    if multi_label:
        return metrics.MultiLabelAP(scores, truth).mean()
    return float(truth[np.arange(len(truth)), scores.argmax(axis=1)].mean())


def _ending(fit: LogisticFit, number: int) -> dict[str, object]:
    return {
        "steps": int(fit.steps[number]),
        "gradient": float(fit.gradient[number]),
        "converged": fit.converged[number],
    }


def _multi_label_result(
    name: str,
    test: Examples,
    scores: Float[np.ndarray, "T C"],
    classes: Int[np.ndarray, " C"],
    bootstrap: Bootstrap,
    facts: Mapping[str, object],
) -> SuiteResult:
    """mAP over the classes that occur in the test examples, and P@1: is the best-scored class a label?"""
    truth, known, codes = multi_hot(test.labels, classes), test.labelled, test.group_codes
    first = truth[np.arange(len(truth)), scores.argmax(axis=1)].astype(np.float64)
    first = np.where(known, first, np.nan)
    mean_ap = Statistic(
        lambda rows: metrics.MultiLabelAP(scores[rows], truth[rows]).mean,
        known,
        cost=len(classes),
        groups=codes,
    )
    unknown = int((test.labels != PAD).sum() - truth.sum())
    return SuiteResult(
        name,
        {
            "mAP": mean_ap.estimate(bootstrap),
            "P@1": Mean(first, codes).estimate(bootstrap),
            "unlabelled": Estimate.count(int((~known).sum()), len(known)),
            "unknown_labels": Estimate.count(unknown, len(known)),
        },
        test.ids,
        {"P@1": first},
        {"mAP": mean_ap},
        groups=test.groups,
        facts=facts,
    )
