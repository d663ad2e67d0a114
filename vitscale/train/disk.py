"""A disk without space: how it shows in what libraries raise, and what to tell."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# EFBIG: a limit on the size of one file.
ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# TensorStore raises ValueErrors with the system's words in them.
WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, is a full disk, quota or file size limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in ERRNOS:
            return True
        if any(words in str(error) for words in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space_message(folder: Path, step: int, needed: int, standing: int | None) -> str:
    """For the checkpoint of `step` in `folder`, when that of step `standing` is the newest whole one."""
    free = shutil.disk_usage(folder).free
    kept = f"the one of step {standing} stands" if standing is not None else "there is none before"
    spare = [str(folder / name) for name in ("damaged", "abandoned") if (folder / name).is_dir()]
    also = f", remove {' and '.join(spare)}" if spare else ""
    return (
        f"no space left on {folder}: the checkpoint of step {step} could not be written (about {_size(needed)} needed, "
        f"{_size(free)} free); {kept}. Free space there{also}, or lower checkpoint.keep, then run the same command "
        "again."
    )


def _size(count: int) -> str:
    value, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
