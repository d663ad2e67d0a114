"""Locks between processes: the kernel gives one up when its process ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitscale.errors import UserError


@contextmanager
def held(path: Path, what: str, busy: str | None) -> Iterator[None]:
    """Holds the lock file `path` while the block runs.

    Args:
        what: of the folder that the file is in, for the error when it cannot be written.
        busy: the error when another process holds it; None waits instead.

    Raises `UserError` for both.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UserError(f"{what} {path.parent} cannot be written: {error.strerror}.") from error
    with file:
        if busy is None:
            # There are network file systems without locks: then nobody waits.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(busy) from None
        yield
