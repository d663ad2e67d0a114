"""Drawing in proportion to weights: a running sum, kept in a file where the weights are, and a search in it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vitscale.errors import UserError

logger = logging.getLogger(__name__)
BLOCK = 1 << 20  # weights summed at a time
SUFFIX = ".cumulative.npy"


def running_sum(weights: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """`[N] float64`: weight 0 to i, summed. Raises `UserError` for weights that nothing can be drawn with.

    For a memory map of `path` it is a memory map too, of a file beside it that is made once: 8 GB for a billion
    examples stay on disk, whatever the number of processes, and a search reads some thirty pages of it.
    """
    path = getattr(weights, "filename", None)
    if path is None:
        return _summed(weights)
    file = Path(f"{path}{SUFFIX}")
    if not _is_current(file, Path(path), len(weights)):
        try:
            _write_sum(file, weights)
        except OSError as error:
            logger.warning("%s cannot be written (%s): the sum is held in memory", file, error)
            return _summed(weights)
    return np.load(file, mmap_mode="r")


def find_weighted(cumulative: Float[np.ndarray, " N"], part: float) -> int:
    """The example at `part` (0 .. 1) of the way through the total weight."""
    total = float(cumulative[-1])
    # `right` steps over examples of weight 0; nextafter guards against rounding up to the total.
    target = min(part * total, float(np.nextafter(total, 0)))
    return int(np.searchsorted(cumulative, target, "right"))


def _summed(weights: np.ndarray) -> np.ndarray:
    total = np.empty(len(weights), np.float64)
    _sum_into(total, weights)
    return total


def _is_current(file: Path, weights: Path, count: int) -> bool:
    try:
        newer = file.stat().st_mtime_ns >= weights.stat().st_mtime_ns
        return newer and len(np.load(file, mmap_mode="r")) == count
    except (OSError, ValueError):  # not there, or cut short
        return False


def _write_sum(file: Path, weights: np.ndarray) -> None:
    # Under a name of this process's own, then renamed: several processes may build it at once.
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        total = np.lib.format.open_memmap(temporary, "w+", np.float64, (len(weights),))
        _sum_into(total, weights)
        total.flush()
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _sum_into(total: np.ndarray, weights: np.ndarray) -> None:
    reached = 0.0
    for start in range(0, len(weights), BLOCK):
        block = np.asarray(weights[start : start + BLOCK], np.float64)
        if not np.isfinite(block).all() or (block < 0).any():
            raise UserError("sampling weights must be finite and not negative.")
        sums = total[start : start + BLOCK]
        np.cumsum(block, out=sums)
        sums += reached
        reached = float(sums[-1])
    if reached <= 0:
        raise UserError("all sampling weights of a source are 0; at least one must be positive.")
