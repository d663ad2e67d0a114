"""Batches on the devices before the step asks for them, and what they say about the data."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from vitscale.data.batches import Batch, Reject
from vitscale.data.loader import TrainLoader
from vitscale.parallel.mesh import batch_sharding
from vitscale.train.agreement import gather

AHEAD = 2  # batches on the devices beside the one that a step uses
CLOSE_TIMEOUT = 10.0  # seconds that a batch in the making may take to end


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, Any]:
    """This process's rows as part of the global, sharded batch.

    On CPU devices the arrays may lie in the batch's own memory, which is not used again before they are gone
    (`vitscale.data.buffers`).
    """
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # the one transfer that is meant
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(sharding, array), batch.arrays()
        )


@dataclass(frozen=True)
class _Ready:
    """A batch on the devices, and where the data stands after it."""

    arrays: Any
    state: Mapping[str, int]
    rejects: tuple[Reject, ...]


class DeviceFeed:
    """An iterator over device batches: a thread takes, transfers and keeps `AHEAD` of them while steps run.

    State and counts are those of the batches that were handed out. Counts of rejects are of all processes since the
    run began; to know them, the processes talk: `get_state` and `metrics` are called on all of them or on none.
    """

    def __init__(
        self,
        loader: TrainLoader,
        put: Callable[[Batch], Any],
        *,
        start: Mapping[str, Any] | None = None,
        on_rejects: Callable[[tuple[Reject, ...]], None] = lambda rejects: None,
    ) -> None:
        """Args:
        loader: is the feed's from now on, but for closing it.
        put: makes a global array of a batch's arrays (`put_batch`); called in the thread.
        start: state to continue from; None: where the loader is.
        on_rejects: told of the examples that could not be used, once their batch is handed out.
        """
        if start is not None:
            loader.set_state(start)
        self._loader, self._put, self._on_rejects = loader, put, on_rejects
        self._state: Mapping[str, int] = loader.get_state()
        # Counts of before this start are of all processes: the first one keeps them.
        before = start["rejects"] if start is not None and jax.process_index() == 0 else {}
        self._rejects: Counter[str] = Counter(before)
        self._ready: queue.Queue[_Ready | Exception] = queue.Queue(
            AHEAD - 1
        )  # and one in the thread's hands
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> DeviceFeed:
        return self

    def __next__(self) -> Any:
        ready = self._ready.get()
        if isinstance(ready, Exception):
            self._ready.put(ready)  # there is nothing after it
            raise ready
        self._state = ready.state
        self._rejects.update(reject.reason for reject in ready.rejects)
        if ready.rejects:
            self._on_rejects(ready.rejects)
        return ready.arrays

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: a handful of numbers, the same for any number of processes."""
        return {**self._state, "rejects": self._all_rejects()}

    def metrics(self) -> dict[str, float]:
        """`data/<source>/drawn`, `data/<source>/epochs` and `data/rejects/<reason>`, since the run began."""
        next_draw = self._state["next_draw"]
        values: dict[str, float] = {}
        for name, count in self._loader.drawn(next_draw).items():
            values[f"data/{name}/drawn"] = float(count)
        for name, epochs in self._loader.epochs(next_draw).items():
            values[f"data/{name}/epochs"] = epochs
        for reason, count in self._all_rejects().items():
            values[f"data/rejects/{reason.replace(' ', '_')}"] = float(count)
        return values

    def close(self) -> None:
        """Ends the thread after the batch that it is working on; the loader stays open."""
        self._closing.set()
        deadline = time.monotonic() + CLOSE_TIMEOUT
        while self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()  # the thread may wait for room
            self._thread.join(timeout=0.02)

    def __enter__(self) -> DeviceFeed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                batch = next(self._loader)
                arrays = self._put(batch)
                ready = _Ready(arrays, self._loader.get_state(), batch.rejects)
                del batch, arrays  # memory of a batch that nobody needs is used for the next one
                self._ready.put(ready)
                del ready
        except Exception as error:  # the step's thread raises it
            self._ready.put(error)

    def _all_rejects(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for counts in gather(json.dumps(self._rejects)):
            total.update(json.loads(counts))
        return dict(sorted(total.items()))
