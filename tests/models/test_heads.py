"""Heads: the ordinal link in its extremes, the normalised proxies, gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config import TaskConfig
from vitscale.models.heads import (
    EmbeddingHead,
    OrdinalHead,
    cumulative_log_probabilities,
    l2_normalise,
)


@settings(deadline=None, max_examples=50)
@given(
    start=st.floats(-50, 50),
    gaps=st.lists(st.floats(0.01, 30), min_size=5, max_size=5),
)
def test_cumulative_link_equals_differences_of_sigmoids(start, gaps):
    links = start + np.concatenate([[0.0], np.cumsum(gaps)])
    ours = np.asarray(cumulative_log_probabilities(jnp.asarray(links[None], jnp.float32)))[0]
    assert np.isfinite(ours).all()
    cumulative = np.concatenate([[0.0], 1 / (1 + np.exp(-links)), [1.0]])
    np.testing.assert_allclose(np.exp(ours), np.diff(cumulative), atol=2e-5)


def test_ordinal_head_starts_uniform_and_has_finite_gradients():
    head = OrdinalHead(4, 6, jnp.float32, nnx.Rngs(0))
    np.testing.assert_allclose(jnp.exp(head(jnp.ones((2, 4)))), 1 / 6, atol=1e-5)

    def loss(head, x):
        return -head(x)[:, 3].sum()

    for scale in (0.0, 1.0, 1e4):
        gradients = nnx.grad(loss)(head, jnp.full((2, 4), scale))
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_embedding_logits_are_cosines_over_temperature():
    task = TaskConfig("e", "embedding", embedding_dim=5, temperature=0.1)
    head = EmbeddingHead(8, 3, task, jnp.float32, nnx.Rngs(0))
    z = head(jax.random.normal(jax.random.key(0), (4, 8)))
    proxies = np.asarray(head.proxies[...])
    cosine = np.asarray(z) @ (proxies / np.linalg.norm(proxies, axis=1, keepdims=True)).T
    np.testing.assert_allclose(head.logits(z), cosine / 0.1, rtol=1e-4, atol=1e-4)


def test_l2_normalise_is_finite_at_zero():
    gradient = jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros((1, 4)))
    assert bool(jnp.isfinite(gradient).all())
