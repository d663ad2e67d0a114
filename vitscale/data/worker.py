"""A process that makes batches for `vitscale.data.workers`: `python -m vitscale.data.worker DESCRIPTOR ...`.

Each descriptor is a lane: a connection on which one request at a time is answered. A request is (first draw, number of
a shared memory, its size, whether its descriptor follows); the answer is the batch without its image, which lies in
that memory, or an exception. The process ends when its lanes close, that is, however its parent ends.
"""

from __future__ import annotations

import faulthandler
import logging
import mmap
import os
import pickle
import signal
import sys
import traceback
from dataclasses import replace
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np


def main() -> None:
    faulthandler.enable()  # a crash in a decoder leaves a stack as its last words
    # The parent decides when it is over: a scheduler's SIGTERM reaches every process of a job, and the steps until the
    # run has saved need batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Grain imports jax where it finds it, and warns where not: half a second and 150 MB that a worker has no use for.
    sys.modules["jax"] = None  # type: ignore[assignment]
    logging.getLogger("absl").setLevel(logging.ERROR)
    lanes = [Connection(int(number)) for number in sys.argv[1:]]
    try:
        make = pickle.loads(lanes[0].recv_bytes())  # noqa: S301 - from the parent
        shared: dict[int, mmap.mmap] = {}
        while True:
            for lane in wait(lanes):
                _serve(lane, make, shared)  # type: ignore[arg-type]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _serve(lane: Connection, make: Any, shared: dict[int, mmap.mmap]) -> None:
    first_draw, number, shape, follows = lane.recv()
    if follows:
        descriptor = reduction.recv_handle(lane)
        shared[number] = mmap.mmap(descriptor, 0)
        os.close(descriptor)
    image: np.ndarray = np.ndarray(shape, np.uint8, buffer=shared[number])
    try:
        answer = replace(make(first_draw, image), image=image[:0])
    except Exception as error:
        error.add_note("In an input worker:\n" + traceback.format_exc())
        answer = error
    lane.send_bytes(_pickled(answer))


def _pickled(answer: object) -> bytes:
    try:
        return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    except Exception:  # an exception that holds something that cannot be sent
        return pickle.dumps(RuntimeError(f"in an input worker: {answer!r}"))


if __name__ == "__main__":
    main()
