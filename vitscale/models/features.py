"""The one interface of backbones: `backbone(images, train=..., key=...) -> Features`."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float


class Features(NamedTuple):
    """What every backbone returns, in its compute dtype."""

    pooled: Float[Array, "B D"] | None  # None only for a ViT with pooling "none"
    tokens: Float[Array, "B N D"]  # of the image, in row order; no cls or register tokens


class Backbone(Protocol):
    """Images are `[B, H, W, 3]`, already normalised.

    `train` switches batch statistics and every kind of dropout on; `key` is the randomness of the latter, and without
    one nothing is dropped. Running statistics, if any, are `nnx.BatchStat` variables that a training call updates.
    """

    features: int  # D of `Features.pooled`

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None
    ) -> Features: ...
