"""Keeping optional packages out of the core, also where they are installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def without(package: str) -> Iterator[None]:
    """Makes `import package` fail inside the block, unless the package is loaded already.

    For a library that imports it only to see whether it is there: PyTorch costs seconds and hundreds of megabytes.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = cast(
        ModuleType, None
    )  # the import system's own sign for "not to be had"
    try:
        yield
    finally:
        del sys.modules[package]
