"""What the processes of one run tell each other on the host, so that all of them take the same way."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(text: str) -> list[str]:
    """The text of every process, by process index. Every process must call it; it is a barrier too."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray([data.size], np.int32)).reshape(-1)
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [bytes(row[:size]).decode() for row, size in zip(rows, lengths, strict=True)]


def first_complaint(text: str) -> str:
    """The first text that is not empty, in the order of the processes; empty when no process complains."""
    return next(filter(None, gather(text)), "")
