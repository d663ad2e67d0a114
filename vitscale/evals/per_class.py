"""A suite's metrics for each class of its queries, and their mean over the classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from vitscale.evals.class_means import class_means
from vitscale.evals.figures import Bootstrap, Rows, Statistic
from vitscale.evals.metric_names import kind_of
from vitscale.evals.metrics import PAD
from vitscale.evals.resampling import Codes, group_codes
from vitscale.evals.suites import SuiteResult

MACRO = "macro_"  # before a metric: the mean over classes of its mean in each


def with_classes(
    result: SuiteResult,
    labels: Int[np.ndarray, "Q K"],
    names: Sequence[str],
    bootstrap: Bootstrap,
) -> SuiteResult:
    """Adds `per_class`, and to the estimates `macro_<metric>`, of the suite's own search.

    A query with several classes counts in each. A class without a defined value is left out of the mean. The means over
    classes are of the whole suite alone: within a slice most classes have hardly a query.
    """
    codes = None if result.groups is None else group_codes(result.groups)
    macro = {
        MACRO + name: macro_average(v, labels, codes) for name, v in _qualities(result).items()
    }
    estimates = {name: figure.estimate(bootstrap) for name, figure in macro.items()}
    result = dataclasses.replace(result, estimates=result.estimates | estimates)
    return with_class_rows(result, labels, names, bootstrap)


def with_class_rows(
    result: SuiteResult,
    labels: Int[np.ndarray, "Q K"],
    names: Sequence[str],
    bootstrap: Bootstrap,
) -> SuiteResult:
    """Adds `per_class` alone."""
    codes = None if result.groups is None else group_codes(result.groups)
    means = class_means(_qualities(result), labels, codes, bootstrap)
    return dataclasses.replace(
        result, per_class={names[label]: of_class for label, of_class in means.items()}
    )


def _qualities(result: SuiteResult) -> dict[str, Float[np.ndarray, " Q"]]:
    return {name: each for name, each in result.per_query.items() if kind_of(name) == "quality"}


def macro_average(
    values: Float[np.ndarray, " Q"], labels: Int[np.ndarray, "Q K"], groups: Codes | None
) -> Statistic:
    """Mean over the classes of the mean of their queries: each class counts the same, however many ask for it."""
    defined = ~np.isnan(values) & (labels != PAD).any(axis=1)

    def of(rows: Rows) -> Callable[[Float[np.ndarray, " n"]], float]:
        place, column = np.nonzero(labels[rows] != PAD)
        _, label = np.unique(labels[rows][place, column], return_inverse=True)
        value = values[rows][place]

        def average(weights: Float[np.ndarray, " n"]) -> float:
            number = np.bincount(label, weights[place])
            total = np.bincount(label, weights[place] * value)
            present = number > 0
            return float(np.mean(total[present] / number[present])) if present.any() else math.nan

        return average

    return Statistic(of, defined, cost=4 * labels.shape[1], groups=groups)
