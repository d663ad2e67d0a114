"""How sure it is that an image shows a label, given what the text and an image model say: two groups and an EM.

For label l and an image whose text proposes it with a score in bin b, the model's output is turned into the bin k of a
p-value: the share of images without such text that score as high ("conformal" p-values: any head, any calibration).
A pair is right with probability pi[l, b]. A wrong pair's p-value is uniform; a right one's follows g[l]:

    P(k | l, b) = pi[l, b] g[l, k] + (1 - pi[l, b]) u[l, k]

(the two groups of Efron, "Microarrays, Empirical Bayes and the Two-Groups Model", 2008). Both unknowns are fitted by EM
to counts of (l, b, k). The text's own score is the prior of pi: logit pi[l, b] = logit(mean score of b) + shift[l],
with shift[l] normal and pi Beta around it; g[l] has a Dirichlet prior around the g of all labels. A label whose images
the model cannot tell apart has a flat g, and keeps what the text says.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

# Upper ends of the bins of p-values, and of text scores.
P_VALUES = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
TEXT_SCORES = np.linspace(0.1, 1.0, 10)
SHIFT_DEVIATION = 0.5  # of a label's shift, in logits
TEXT_STRENGTH = 50.0  # pairs that the text's score counts for in pi[l, b]
SHAPE_STRENGTH = 10.0  # pairs that the g of all labels counts for in g[l]
MAX_SHIFT = 4.0
ITERATIONS = 60


@dataclass(frozen=True)
class NullScores:
    """What the model says of images whose text does not propose a label, for each of L labels.

    `sorted_scores [L, S] float32` rises within a row, with NaN after the first `count [L]`.
    """

    sorted_scores: np.ndarray
    count: np.ndarray

    @staticmethod
    def of(scores: np.ndarray) -> NullScores:
        """From `scores [S, L] float32` of S images, NaN where the text proposes the label."""
        ordered = np.sort(scores.T, axis=1)  # NaN last
        return NullScores(ordered, np.isfinite(ordered).sum(axis=1))

    def bin(self, label: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Bin of the p-value (1 + number of null scores >= score) / (1 + number of null scores), `[N] int64`."""
        at_least = np.zeros(len(label), np.int64)
        order = np.argsort(label, kind="stable")
        bounds = np.flatnonzero(np.diff(label[order], prepend=-1, append=-1))
        for begin, end in itertools.pairwise(bounds):
            rows = order[begin:end]
            kept = int(self.count[label[rows[0]]])
            null = self.sorted_scores[label[rows[0]], :kept]
            at_least[rows] = kept - np.searchsorted(null, score[rows], side="left")
        p = (1 + at_least) / (1 + self.count[label])
        return np.minimum(np.searchsorted(P_VALUES, p - 1e-9), len(P_VALUES) - 1)

    def uniform(self) -> np.ndarray:
        """u: the probability of each bin for an image of the null itself, `[L, K] float64`."""
        steps = 1 + self.count[:, None]
        return np.diff(np.floor(P_VALUES * steps + 1e-9) / steps, axis=1, prepend=0.0)


@dataclass(frozen=True)
class Evidence:
    """Sufficient statistics, which add up: `pairs [L, B, K]`, and the sums of their text scores `text [L, B]`."""

    pairs: np.ndarray
    text: np.ndarray

    @staticmethod
    def of(label: np.ndarray, text: np.ndarray, bin: np.ndarray, num_labels: int) -> Evidence:
        shape = (num_labels, len(TEXT_SCORES), len(P_VALUES))
        row = text_bin(text)
        flat = (label * shape[1] + row) * shape[2] + bin
        pairs = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        sums = np.bincount(label * shape[1] + row, text, minlength=shape[0] * shape[1])
        return Evidence(pairs.astype(np.float64), sums.reshape(shape[:2]))

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.pairs + other.pairs, self.text + other.text)


def text_bin(text: np.ndarray) -> np.ndarray:
    """Bin of text scores in 0..1, `[N] int64`."""
    return np.minimum(np.searchsorted(TEXT_SCORES, text - 1e-6), len(TEXT_SCORES) - 1)


def fit_posterior(evidence: Evidence, uniform: np.ndarray) -> np.ndarray:
    """P(right | l, b, k), `[L, B, K] float64`; `uniform [L, K]` is `NullScores.uniform`."""
    pairs, count = evidence.pairs, evidence.pairs.sum(axis=2)
    log_odds = _text_log_odds(evidence)
    shift = np.zeros(len(pairs))
    # As the text says, whatever the model does: a label that it cannot tell apart starts with a flat g, and keeps it.
    right = _sigmoid(log_odds)[:, None] * pairs
    for _ in range(ITERATIONS):
        of_bin = right.sum(axis=2)
        shift = _newton_step(shift, log_odds, of_bin, count)
        centre = _sigmoid(log_odds + shift[:, None])
        right_share = (of_bin + TEXT_STRENGTH * centre) / (count + TEXT_STRENGTH)
        pooled = right.sum(axis=(0, 1)) + 1e-9
        shape = right.sum(axis=1) + SHAPE_STRENGTH * pooled / pooled.sum()
        shape = shape / shape.sum(axis=1, keepdims=True)
        posterior = _responsibility(right_share, shape, uniform)
        right = posterior * pairs
    return posterior


def _text_log_odds(evidence: Evidence) -> np.ndarray:
    """Logit of the mean text score of each bin, `[B]`."""
    count = evidence.pairs.sum(axis=(0, 2))
    middle = TEXT_SCORES - TEXT_SCORES[0] / 2
    mean = np.where(count > 0, evidence.text.sum(axis=0) / np.maximum(count, 1), middle)
    mean = np.clip(mean, 0.01, 0.99)
    return np.log(mean / (1 - mean))


def _responsibility(right_share: np.ndarray, shape: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    right = right_share[:, :, None] * shape[:, None, :]
    return right / (right + (1 - right_share)[:, :, None] * uniform[:, None, :] + 1e-300)


def _newton_step(
    shift: np.ndarray, log_odds: np.ndarray, right: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """One damped Newton step to the most probable shift of each label, `[L]`."""
    mean = _sigmoid(log_odds + shift[:, None])
    slope = (right - count * mean).sum(axis=1) - shift / SHIFT_DEVIATION**2
    curvature = (count * mean * (1 - mean)).sum(axis=1) + 1 / SHIFT_DEVIATION**2
    return np.clip(shift + np.clip(slope / curvature, -1.0, 1.0), -MAX_SHIFT, MAX_SHIFT)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
