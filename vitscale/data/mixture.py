"""Which example is draw number k of a run: pure functions of the seed and k, the same on any number
of hosts.

A run draws examples 0, 1, 2, ... Draw k first picks a source (`interleave`), then the source's own
draw number j picks an example (`EpochOrder`). Nothing is stored but the sampling weights, so any
draw can be asked for at once: this is what makes a resume, or a change of the number of hosts, a
single number.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Float, Int

from vitscale.errors import UserError

# Grain's index_shuffle permutes a domain of at least 2**16 and walks until it falls below the size:
# 2 us a draw for large sources, 200 us for 100 examples. Small permutations are stored instead.
STORED_PERMUTATION = 1 << 14
SHARE_UNIT = 1 << 30  # shares are integers, so that the interleaving is exact for any draw number


def interleave(k: int, shares: Sequence[int]) -> tuple[int, int]:
    """The source of draw k, and how many earlier draws that source had: `(source, j)`.

    Low discrepancy: among any n consecutive draws a source has n * share / sum(shares) of them,
    give or take a few. Peels one source off at a time: of the draws that are left, source i takes
    the floor-spaced ones (the same rule as `grain.MapDataset.mix`, which rounds the proportions to
    hundredths first).
    """
    remaining = sum(shares)
    now, after = k, k + 1
    for source, share in enumerate(shares):
        rest_now = now * (remaining - share) // remaining
        rest_after = after * (remaining - share) // remaining
        if after - rest_after != now - rest_now:
            return source, now - rest_now
        remaining -= share
        now, after = rest_now, rest_after
    raise AssertionError("the last source takes every draw that is left")


@functools.lru_cache(maxsize=256)
def _epoch_seed(seed: int, source: int, epoch: int) -> tuple[int, float]:
    """Per epoch: a 32-bit seed for the permutation, and an offset in [0, 1) for the resampling.

    Hashed, not added: with `seed + epoch` two runs whose seeds differ by one would share epochs.
    """
    words = np.random.SeedSequence([seed, source, epoch]).generate_state(2, np.uint32)
    return int(words[0]), int(words[1]) / 2**32


def _permuted(position: int, size: int, seed: int) -> int:
    """Place `position` of a permutation of 0 .. size - 1."""
    if size <= STORED_PERMUTATION:
        return int(_stored_permutation(size, seed)[position])
    return index_shuffle(position, max_index=size - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=64)
def _stored_permutation(size: int, seed: int) -> Int[np.ndarray, " size"]:
    return np.random.default_rng(seed).permutation(size)


@dataclass(frozen=True)
class EpochOrder:
    """The order in which one source's examples are drawn, epoch after epoch of `size` draws.

    Without weights every epoch is a permutation. With weights every epoch is a systematic resample
    in random order: example i appears floor or ceil of size * w_i / sum(w) times, on average
    exactly that.
    """

    size: int
    seed: int
    source: int = 0  # number of the source: gives sources of equal size different orders
    cumulative: Float[np.ndarray, " N"] | None = None  # of the sampling weights; None: uniform

    @staticmethod
    def of(
        size: int, seed: int, source: int = 0, weights: Float[np.ndarray, " N"] | None = None
    ) -> EpochOrder:
        """`weights` `[N]`: sampling weights in any unit, 0 for never; None: uniform."""
        if size == 0:
            raise UserError("a source of training examples is empty.")
        if weights is None:
            return EpochOrder(size, seed, source)
        if weights.shape != (size,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise UserError(
                "sampling weights must be finite and not negative, one for each example."
            )
        cumulative = np.cumsum(weights, dtype=np.float64)
        if cumulative[-1] <= 0:
            raise UserError(
                "all sampling weights of a source are 0; at least one must be positive."
            )
        return EpochOrder(size, seed, source, cumulative)

    def __getitem__(self, j: int) -> int:
        """The example that is this source's draw number j."""
        epoch, position = divmod(j, self.size)
        seed, offset = _epoch_seed(self.seed, self.source, epoch)
        slot = _permuted(position, self.size, seed)
        if self.cumulative is None:
            return slot
        total = self.cumulative[-1]
        target = (slot + offset) * (total / self.size)
        # `right` steps over examples of weight 0; nextafter guards against rounding up to the
        # total.
        return int(np.searchsorted(self.cumulative, min(target, np.nextafter(total, 0)), "right"))


@dataclass(frozen=True)
class Mixture:
    """All sources of a run: `mixture[k]` is draw number k."""

    orders: tuple[EpochOrder, ...]
    shares: tuple[int, ...] = field(default=())

    def __getitem__(self, k: int) -> tuple[int, int]:
        """`(source, example)` of draw k."""
        if len(self.orders) == 1:
            return 0, self.orders[0][k]
        source, j = interleave(k, self.shares)
        return source, self.orders[source][j]


def build_mixture(
    sizes: Sequence[int],
    *,
    seed: int,
    weights: Sequence[float | None] | None = None,
    sampling_weights: Sequence[Float[np.ndarray, " N"] | None] | None = None,
) -> Mixture:
    """A mixture of sources with `sizes` examples.

    Args:
        sizes: examples of each source.
        seed: of the run, 0 .. 2**32 - 1.
        weights: see `mixture_shares`.
        sampling_weights: for each source None (uniform) or a weight per example.
    """
    sampling_weights = sampling_weights or [None] * len(sizes)
    orders = tuple(
        EpochOrder.of(size, seed, i, weight)
        for i, (size, weight) in enumerate(zip(sizes, sampling_weights, strict=True))
    )
    shares = mixture_shares(sizes, weights or [None] * len(sizes))
    return Mixture(orders, tuple(max(1, round(share * SHARE_UNIT)) for share in shares))


def mixture_shares(sizes: Sequence[int], weights: Sequence[float | None]) -> list[float]:
    """Each source's share of the draws; they sum to 1.

    No weight set: in proportion to size. All set: in proportion to the weights. Some set: those are
    shares below 1, and the others divide what is left in proportion to size.
    """
    given = [weight for weight in weights if weight is not None]
    if any(weight <= 0 for weight in given):
        raise UserError(
            "data.sources: every weight must be positive; leave the source out instead."
        )
    if len(given) == len(weights):
        return [weight / sum(given) for weight in given]
    left = 1.0 - sum(given)
    if left <= 0:
        raise UserError(
            f"data.sources: the weights that are set sum to {sum(given):g} and leave nothing for "
            "the sources without one; set all of them, or keep the sum below 1."
        )
    rest = sum(size for size, weight in zip(sizes, weights, strict=True) if weight is None)
    return [
        left * size / rest if weight is None else weight
        for size, weight in zip(sizes, weights, strict=True)
    ]
