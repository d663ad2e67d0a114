"""Products and sums whose parameter gradients have a declared dtype.

A product in bfloat16 has, by automatic differentiation, a bfloat16 gradient for its weights; over a sharded batch that
is what devices add up. Here the gradient leaves the product in the dtype that `weight_gradients_in` names (float32: the
product's own accumulator, unrounded), and so does the reduction across devices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_gradient_dtype: ContextVar[DTypeLike] = ContextVar("gradient_dtype", default="float32")


@contextmanager
def weight_gradients_in(dtype: DTypeLike) -> Iterator[None]:
    """Functions traced inside differentiate `dense` and `add_parameter` with gradients of this dtype."""
    token = _gradient_dtype.set(dtype)
    try:
        yield
    finally:
        _gradient_dtype.reset(token)


def dense(x: Float[Array, "*N I"], kernel: Float[Array, "I O"]) -> Float[Array, "*N O"]:
    """x @ kernel in the dtype of x; kernel is float32, its gradient of the declared dtype (and then float32)."""
    gradient_dtype = jnp.dtype(_gradient_dtype.get())
    if gradient_dtype == x.dtype:
        return x @ kernel.astype(x.dtype)
    return _dense(x, kernel, gradient_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: Array, kernel: Array, gradient_dtype: jnp.dtype) -> Array:
    return x @ kernel.astype(x.dtype)


def _dense_forward(
    x: Array, kernel: Array, gradient_dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel.astype(x.dtype), (x, kernel)


def _dense_backward(
    gradient_dtype: jnp.dtype, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    by_kernel = jax.lax.dot_general(
        x, grad, ((rows, rows), ((), ())), preferred_element_type=gradient_dtype
    )
    return grad @ kernel.astype(x.dtype).T, by_kernel.astype(kernel.dtype)


_dense.defvjp(_dense_forward, _dense_backward)


def add_parameter(x: Float[Array, "*N O"], parameter: Float[Array, "*M O"]) -> Float[Array, "*N O"]:
    """x + parameter, broadcast over leading axes of x; the gradient is summed in the declared dtype."""
    if jnp.dtype(_gradient_dtype.get()) == x.dtype:
        return x + parameter.astype(x.dtype)
    # Cast after the broadcast: the backward pass then sums float32.
    return x + jnp.broadcast_to(parameter, x.shape).astype(x.dtype)
