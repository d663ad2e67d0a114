"""Multi-head attention pooling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitscale.models.layers import LayerNorm, Mlp, linear
from vitscale.models.vit_shape import ViTSize


class MapHead(nnx.Module):
    """One learned probe attends to the tokens, then a residual MLP (Zhai et al., 2022, arXiv 2106.04560, section 3.2).

    y = attention(probe, tokens); pooled = y + mlp(norm(y)).
    """

    def __init__(
        self, size: ViTSize, mlp: str, norm_eps: float, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        width = size.width
        self.num_heads = size.num_heads
        probe = nnx.initializers.xavier_uniform()(rngs.params(), (1, width), jnp.float32)
        self.probe = nnx.Param(probe, axes=("tokens", "embed"))
        self.query = linear(width, width, ("embed", "heads"), dtype, rngs)
        self.key = linear(width, width, ("embed", "heads"), dtype, rngs)
        self.value = linear(width, width, ("embed", "heads"), dtype, rngs)
        self.out = linear(width, width, ("heads", "embed"), dtype, rngs)
        self.norm = LayerNorm(width, norm_eps, dtype)
        self.mlp = Mlp(mlp, width, size.mlp_dim, 0.0, dtype, rngs)

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        batch, count, width = tokens.shape
        heads = (self.num_heads, width // self.num_heads)
        flat = tokens.reshape(-1, width)
        query = jnp.broadcast_to(
            self.query(self.probe[...]).reshape(1, 1, *heads), (batch, 1, *heads)
        )
        keys = self.key(flat).reshape(batch, count, *heads)
        values = self.value(flat).reshape(batch, count, *heads)
        # A single query: nothing here for a flash kernel.
        attended = jax.nn.dot_product_attention(query, keys, values, implementation="xla")
        y = self.out(attended.reshape(batch, width))
        return y + self.mlp(self.norm(y))
