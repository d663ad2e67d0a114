"""The two-groups model behind `vitscale prep refine`, on pairs whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_prep.posterior import (
    P_VALUES,
    TEXT_SCORES,
    Evidence,
    NullScores,
    fit_posterior,
    text_bin,
)

LABELS = 6


def simulate(
    seed: int, strength: np.ndarray, text_bias: np.ndarray, pairs: int = 1500
) -> tuple[np.ndarray, ...]:
    """Label, text score, model score and truth of pairs, and the scores of images that nobody calls the label.

    strength: by how many deviations the model scores the images of each label higher. text_bias: logits by which the
    text of each label is righter than it says.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, LABELS, pairs)
    text = rng.uniform(0.2, 0.95, pairs)
    log_odds = np.log(text / (1 - text)) + text_bias[label]
    right = rng.random(pairs) < 1 / (1 + np.exp(-log_odds))
    score = rng.normal(size=pairs) + right * strength[label]
    null = rng.normal(size=(2000, LABELS))
    return label, text, score.astype(np.float32), right, null.astype(np.float32)


def fit(
    label: np.ndarray, text: np.ndarray, score: np.ndarray, null_scores: np.ndarray
) -> np.ndarray:
    """The probability of each pair."""
    null = NullScores.of(null_scores)
    bin = null.bin(label, score)
    posterior = fit_posterior(Evidence.of(label, text, bin, LABELS), null.uniform())
    return posterior[label, text_bin(text), bin]


def test_probabilities_are_calibrated_and_beat_either_view_alone() -> None:
    strength = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    bias = np.array([0.0, -1.0, 1.0, 0.0, -1.0, 1.0])
    label, text, score, right, null = simulate(0, strength, bias, pairs=6000)
    probability = fit(label, text, score, null)
    for low in np.arange(0.0, 1.0, 0.2):
        here = (probability >= low) & (probability < low + 0.2)
        assert right[here].mean() == pytest.approx(probability[here].mean(), abs=0.08)
    brier = np.mean((probability - right) ** 2)
    assert brier < 0.8 * np.mean((text - right) ** 2)


def test_a_model_that_cannot_tell_leaves_what_the_text_says() -> None:
    label, text, score, _, null = simulate(1, np.zeros(LABELS), np.zeros(LABELS))
    probability = fit(label, text, score, null)
    assert np.corrcoef(probability, text)[0, 1] > 0.9
    assert np.mean(np.abs(probability - text)) < 0.12


def test_evidence_adds_up() -> None:
    label, text, score, _, null_scores = simulate(2, np.ones(LABELS), np.zeros(LABELS))
    null = NullScores.of(null_scores)
    bin = null.bin(label, score)
    whole = Evidence.of(label, text, bin, LABELS)
    halves = [
        Evidence.of(label[s], text[s], bin[s], LABELS) for s in (slice(700), slice(700, None))
    ]
    assert np.array_equal((halves[0] + halves[1]).pairs, whole.pairs)
    assert whole.pairs.sum() == len(label)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, (60, 3), elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.float32, 20, elements=st.floats(-5, 5, width=32)),
)
def test_p_values_depend_on_the_order_of_scores_alone(
    null_scores: np.ndarray, score: np.ndarray
) -> None:
    label = np.arange(20) % 3
    null = NullScores.of(null_scores)
    bin = null.bin(label, score)
    # A softmax and a sigmoid head differ by an increasing function of each label's score, and more.
    stretched = NullScores.of(null_scores * 8).bin(label, score * 8)
    assert np.array_equal(bin, stretched)
    for i in range(20):  # by the definition
        p = (1 + np.sum(null_scores[:, label[i]] >= score[i])) / 61
        assert bin[i] == np.flatnonzero(p - 1e-9 <= P_VALUES)[0]
    assert null.uniform().sum(axis=1) == pytest.approx(1.0)


def test_the_null_leaves_out_the_images_that_may_show_the_label() -> None:
    scores = np.array([[1.0, np.nan], [2.0, 5.0], [np.nan, 6.0]], np.float32)
    null = NullScores.of(scores)
    assert null.count.tolist() == [2, 2]
    assert null.sorted_scores[0, :2].tolist() == [1.0, 2.0]
    assert text_bin(np.array([0.0, 0.1, 0.1000001, 0.35, 1.0])).tolist() == [0, 0, 0, 3, 9]
    assert len(TEXT_SCORES) == 10
