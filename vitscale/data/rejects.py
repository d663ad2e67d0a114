"""How many examples may be unusable before it is an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vitscale.data.batches import Reject
from vitscale.errors import UserError


class RejectLimit:
    """Counts rejects by reason, and ends the run in words when there are too many.

    The limit is `fraction` of the examples drawn, or of `size`, whichever is more. `size` is this process's share of
    the data: so that one bad example among the first ten drawn is not 10 %, and that the limit means the same on 1
    host and on 64.
    """

    def __init__(self, fraction: float, size: float) -> None:
        self.counts: Counter[str] = Counter()  # by reason
        self._fraction, self._size = fraction, size
        self._drawn = 0
        self._first: Reject | None = None

    def add(self, rejects: Iterable[Reject], drawn: int) -> None:
        """`rejects` among `drawn` more examples. Raises `UserError` past the limit."""
        self._drawn += drawn
        for reject in rejects:
            self.counts[reject.reason] += 1
            self._first = self._first or reject
        count, basis = self.counts.total(), max(self._drawn, self._size)
        if self._first is None or count <= self._fraction * basis:
            return
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.counts.most_common())
        raise UserError(
            f"{count} of {basis:.0f} examples cannot be used, more than data.max_reject_fraction={self._fraction:g} "
            f"allows: {reasons}; for example {self._first.id!r} of {self._first.source} ({self._first.reason})."
        )
