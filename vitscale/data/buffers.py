"""Memory for batches that is used again, and that worker processes can share.

A batch of 256 images at 224 px is 38 MB: fresh memory for each would cost a page fault every 4 KB, and a copy between
processes more than that. Arrays made here give their memory back when nothing refers to them any more, neither here
nor in JAX, which on CPU backends may use the memory of a NumPy array as a device array's.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import tempfile
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Memory:
    """Bytes without a name in any file system: they are gone when the last process that maps them is, however it ends.

    POSIX shared memory would outlive a kill, and is limited to 64 MB in a container by default.
    """

    map: mmap.mmap
    number: int  # within its `Buffers`
    descriptor: int | None  # to map it in another process; None: of this process alone

    def __del__(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


class Buffers:
    """Arrays in reused memory. Safe from several threads."""

    def __init__(self, *, shared: bool) -> None:
        """`shared`: with descriptors by which other processes can map the memory."""
        self._shared = shared
        # A deque's ends are atomic: memory comes back in whichever thread drops an array, at any moment, so that a
        # lock could be waited for by the thread that holds it.
        self._free: deque[Memory] = deque()
        self._numbers = itertools.count()  # next() is atomic, += is not

    def take(self, shape: tuple[int, ...]) -> tuple[UInt8[np.ndarray, "..."], Memory]:
        """An array with arbitrary content, in memory that was given back or, rather than wait for it, in new memory."""
        size = math.prod(shape)
        memory = self._recycled(size) or self._new(size)
        # Not from another array: NumPy would let views refer to that one, past this.
        array = np.ndarray(shape, np.uint8, buffer=memory.map)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array, memory

    def _recycled(self, size: int) -> Memory | None:
        try:
            memory = self._free.popleft()
        except IndexError:
            return None
        return memory if len(memory.map) >= size else None

    def _new(self, size: int) -> Memory:
        size = max(size, 1)
        number = next(self._numbers)
        if not self._shared:
            return Memory(mmap.mmap(-1, size), number, None)
        descriptor = _anonymous_file(size)
        return Memory(mmap.mmap(descriptor, size), number, descriptor)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vitscale-batch")
    else:  # not Linux: a file that is unlinked already
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
