"""Parts that every block is made of, and the two layouts of a stack of blocks (one entry a layer, or stacked).

Parameters are float32 and carry what their axes mean in the metadata key `axes` (names that
`vitscale.parallel.rules` maps to mesh axes); activations are computed in `dtype`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vitscale.models.precision import add_parameter, dense
from vitscale.parallel.mesh import BATCH_AXES

BLOCKS = "backbone/blocks/"


def split_by_example(x: Float[Array, "BN D"]) -> Float[Array, "BN D"]:
    """x as it is, every device with its own examples. Without being told, XLA may split activations as a weight is
    split that meets them: it moves (or keeps whole) the larger array, and then no weight is gathered."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    if mesh.empty or x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


class Linear(nnx.Linear):
    """nnx.Linear with the gradients of `vitscale.models.precision`."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        y = dense(jnp.asarray(inputs, self.dtype), self.kernel[...])
        return y if self.bias is None else add_parameter(y, self.bias[...])


def linear(
    in_features: int,
    out_features: int,
    axes: tuple[str, str],
    dtype: Any,
    rngs: nnx.Rngs,
) -> Linear:
    """A dense layer, Xavier-uniform as in the ViT paper's code."""
    return Linear(
        in_features,
        out_features,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
    )


def bias_of(layer: nnx.Linear) -> Float[Array, " D"]:
    """The bias of a layer that has one, as those of `linear` do."""
    assert layer.bias is not None
    return layer.bias[...]


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, float32 inside, with a backward pass that starts from the input alone.

    The forward pass then shares nothing with the backward one, so that XLA makes it one kernel on GPU (statistics and
    output in a single read) instead of two: 5 % fewer bytes outside matrix products (docs/performance.md).
    """

    def __init__(self, width: int, epsilon: float, dtype: Any, axis: str = "embed") -> None:
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32), axes=(axis,))

    def __call__(self, x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        return _normalise(x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    # Written as two passes: the shape that XLA's GPU compiler knows as a normalisation.
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)


def _normalise_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, Array]]:
    return _normalise(x, scale, bias, epsilon), (x, scale)


def _normalise_backward(
    epsilon: float, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    # The barrier keeps XLA from sharing the mean with the forward pass. All four sums are one read of x and grad.
    x = jax.lax.optimization_barrier(saved[0]).astype(jnp.float32)
    if saved[0].dtype == jnp.float32:
        # E[x²] - E[x]² loses its digits where a row's mean is far above its deviation; bfloat16 has none to lose.
        x = x - x[..., :1]
    grad, scale = grad.astype(jnp.float32), saved[1]
    scaled = grad * scale
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True) - jnp.square(mean)
    mean_scaled = scaled.mean(axis=-1, keepdims=True)
    mean_product = (scaled * x).mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon)
    normed = (x - mean) * factor
    along = factor * (mean_product - mean * mean_scaled)
    dx = factor * (scaled - mean_scaled - normed * along)
    rows = tuple(range(x.ndim - 1))
    return dx.astype(saved[0].dtype), (grad * normed).sum(rows), grad.sum(rows)


_normalise.defvjp(_normalise_forward, _normalise_backward)


class Mlp(nnx.Module):
    """Dense → GELU → dense, or SwiGLU (Shazeer, 2020, arXiv 2002.05202): out(silu(gate(x)) * hidden(x))."""

    def __init__(
        self, kind: str, width: int, hidden: int, dropout_rate: float, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.kind, self.dropout_rate = kind, dropout_rate
        self.hidden = linear(width, hidden, ("embed", "mlp"), dtype, rngs)
        if kind == "swiglu":
            self.gate = linear(width, hidden, ("embed", "mlp"), dtype, rngs)
        self.out = linear(hidden, width, ("mlp", "embed"), dtype, rngs)

    def __call__(self, x: Float[Array, "*N D"], key: Array | None = None) -> Float[Array, "*N D"]:
        hidden = self.hidden(x)
        # As a unit of its own that the backward pass recomputes, GELU becomes the epilogue of cuBLASLt's product.
        # Otherwise it is a kernel that reads and writes [B·N, 4 D] again: 30 % of all bytes of a B/16 step outside
        # matrix products (docs/performance.md).
        if self.kind == "swiglu":
            hidden = jax.checkpoint(_gated)(self.gate(x), hidden)
        else:
            hidden = jax.checkpoint(_gelu_tanh if self.kind == "gelu_tanh" else _gelu_erf)(hidden)
        return self.out(dropout(hidden, self.dropout_rate, key))


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _gelu_erf(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gated(gate: Array, x: Array) -> Array:
    return jax.nn.silu(gate) * x


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate); without a key, the identity."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(
    branch: Float[Array, "BN D"], batch: int, rate: Float[Array, ""] | None, key: Array | None
) -> Float[Array, "BN D"]:
    """Stochastic depth (Huang et al., 2016, arXiv 1603.09382): the branch of a whole example is dropped, or scaled."""
    if key is None or rate is None:
        return branch
    keep = jax.random.bernoulli(key, 1 - rate, (batch, 1, 1)).astype(jnp.float32) / (1 - rate)
    by_example = branch.reshape(batch, -1, branch.shape[-1])
    return (by_example * keep.astype(branch.dtype)).reshape(branch.shape)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """From `backbone/blocks/3/…` by layer to `backbone/blocks/…` with a leading layer axis (`scan_layers`)."""
    pattern = re.compile(re.escape(BLOCKS) + r"(\d+)/(.*)")
    stacked: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for name, value in params.items():
        if match := pattern.fullmatch(name):
            layers.setdefault(BLOCKS + match[2], {})[int(match[1])] = value
        else:
            stacked[name] = value
    for name, by_layer in layers.items():
        stacked[name] = _stack([by_layer[i] for i in range(len(by_layer))])
    return stacked


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`; parameters that are by layer already stay as they are."""
    pattern = re.compile(re.escape(BLOCKS) + r"(?!\d+/)(.*)")
    unstacked: dict[str, Any] = {}
    for name, value in params.items():
        if match := pattern.fullmatch(name):
            unstacked |= {
                f"{BLOCKS}{i}/{match[1]}": layer for i, layer in enumerate(_unstack(value))
            }
        else:
            unstacked[name] = value
    return unstacked


def _stack(layers: list[Any]) -> Any:
    first = layers[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(layers), *first.shape), first.dtype)
    return np.stack(layers) if isinstance(first, np.ndarray) else jnp.stack(layers)


def _unstack(value: Any) -> list[Any]:
    if isinstance(value, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(value.shape[1:], value.dtype)] * value.shape[0]
    return [value[i] for i in range(value.shape[0])]
