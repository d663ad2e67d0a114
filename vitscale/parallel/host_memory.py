"""Keeps freed memory in the process, for computation on CPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_THRESHOLD = 2**31 - 1  # bytes; mallopt takes an int
_TOP_PAD = 256 * 2**20
_ACCELERATOR_PACKAGES = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def computes_on_cpu() -> bool:
    """Whether jax will run on the CPU, answered without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in _ACCELERATOR_PACKAGES)


def keep_freed_memory() -> bool:
    """Stops glibc from giving freed buffers back to the kernel. Returns whether it could.

    Call it before jax starts its threads: memory pools of threads that exist already are not reached.

    XLA's CPU client allocates the temporaries of every step anew. Above glibc's thresholds each of them is unmapped
    when it is freed and faulted in page by page in the next step; `benchmarks/train_step.py` prints what that costs.
    The process stays as large as its peak. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _THRESHOLD),
        (_M_TRIM_THRESHOLD, _THRESHOLD),
        (_M_TOP_PAD, _TOP_PAD),
        (_M_ARENA_MAX, 1),  # arenas of threads are trimmed by other rules
    )
    return all([mallopt(name, value) == 1 for name, value in settings])
