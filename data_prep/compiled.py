"""`compiled` marks a function of NumPy arrays that numba compiles on first use and caches on disk.

And what its hash tables share: open addressing in arrays of a power of two rows, at most half of them taken.
"""

from __future__ import annotations

import numpy as np

from vitscale.errors import UserError

try:
    from numba import njit
except ModuleNotFoundError as error:
    raise UserError(
        f"vitscale prep needs {error.name}, which is not installed: pip install 'vitscale[prep]'."
    ) from error

compiled = njit(cache=True, nogil=True)

FREE = np.int64(-1)  # in place of the key in a row of a hash table that is not taken
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, 6.4)


@compiled
def slot_of(key: np.int64, mask: int) -> np.int64:
    """Where a key's row is looked for first, in a table of `mask + 1` rows."""
    mixed = np.uint64(key) * _GOLDEN
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))
