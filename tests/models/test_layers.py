"""LayerNorm's own backward pass beside what autodiff makes of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.models.layers import LayerNorm

EPSILON = 1e-6


def plain(x, scale, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + EPSILON) * scale + bias


def ours(x, scale, bias):
    norm = LayerNorm(x.shape[-1], EPSILON, x.dtype)
    norm.scale[...], norm.bias[...] = scale, bias
    return norm(x)


# The backward pass takes the variance from sums of x and x², all in one read, and so loses (mean / deviation)² of
# float32's precision.
@pytest.mark.parametrize(("mean", "tolerance"), [(0, 2e-6), (10, 1e-4), (100, 5e-3)])
def test_values_and_gradients_of_layer_norm_are_those_of_the_formula(mean, tolerance):
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((3, 5, 64))).astype(np.float32)
    scale, bias = rng.standard_normal((2, 64), np.float32)
    grad = rng.standard_normal(x.shape, np.float32)
    value, backward = jax.vjp(ours, x, scale, bias)
    expected, autodiff = jax.vjp(plain, x, scale, bias)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for name, mine, theirs in zip(
        ("x", "scale", "bias"), backward(grad), autodiff(grad), strict=True
    ):
        assert mine.dtype == jnp.float32
        largest = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(mine, theirs, atol=tolerance * largest, err_msg=name)


def test_gradients_of_layer_norm_have_the_dtypes_of_its_inputs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 32)), jnp.bfloat16)
    scale, bias = rng.standard_normal((2, 32), np.float32)
    value, backward = jax.vjp(ours, x, scale, bias)
    gradients = backward(jnp.ones_like(value))
    assert [str(g.dtype) for g in (value, *gradients)] == ["bfloat16", "bfloat16", *["float32"] * 2]
