"""The kNN probe against scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vitscale.errors import UserError
from vitscale.evals.probes import l2_normalise, weighted_knn


def test_votes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((120, 8)), rng.standard_normal((40, 8))
    labels = rng.integers(0, 5, size=120)
    temperature = 0.2
    votes = weighted_knn(train, labels, test, num_classes=5, k=9, temperature=temperature)
    reference = KNeighborsClassifier(
        9,
        algorithm="brute",
        # Squared distance of unit vectors is 2 - 2 cosine.
        weights=lambda d: np.exp((1 - d**2 / 2) / temperature),
    ).fit(l2_normalise(train), labels)
    np.testing.assert_allclose(votes, reference.predict_proba(l2_normalise(test)), atol=1e-4)


def test_a_small_temperature_does_not_overflow():
    vectors = np.eye(3)
    votes = weighted_knn(vectors, np.arange(3), vectors, num_classes=3, k=3, temperature=1e-4)
    assert votes.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(votes.sum(axis=1), 1)


def test_more_neighbours_than_examples_is_an_error():
    with pytest.raises(UserError, match="cannot return 5 neighbours"):
        weighted_knn(np.eye(3), np.arange(3), np.eye(3), num_classes=3, k=5)
