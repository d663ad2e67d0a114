"""Batches on the devices ahead of the step: order, state, counts, errors, and memory that is not used too early."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vitscale.config import MeshConfig
from vitscale.data.batches import Batch, Reject
from vitscale.errors import UserError
from vitscale.parallel.mesh import make_mesh
from vitscale.train import loop
from vitscale.train.feed import AHEAD, DeviceFeed, put_batch
from vitscale.train.loop import make_loader, open_data, train
from vitscale.train.metrics import read_metrics
from vitscale.train.workdir import RejectsFile

pytestmark = pytest.mark.timeout(120)


class Numbers:
    """A loader of empty batches, whose state is how many it handed out."""

    def __init__(self, fails_at: int = -1, wait: float = 0.0) -> None:
        self.count, self._fails_at, self._wait = 0, fails_at, wait

    def __next__(self) -> Batch:
        time.sleep(self._wait)
        if self.count == self._fails_at:
            raise ValueError("nothing left")
        self.count += 1
        empty = np.zeros(0)
        rejects = (Reject(f"e{self.count}", "s", "not an image"),) if self.count % 2 else ()
        position = np.array([self.count])
        return Batch([], empty, empty, position, {}, {}, {}, empty, rejects)

    def get_state(self) -> dict[str, int]:
        return {"next_draw": self.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self.count = state["next_draw"]

    def drawn(self, next_draw: int) -> dict[str, int]:
        return {"s": next_draw}

    def epochs(self, next_draw: int) -> dict[str, float]:
        return {"s": next_draw / 10}


def feed(loader: Numbers, **options: Any) -> DeviceFeed:
    return DeviceFeed(loader, lambda batch: int(batch.position[0]), **options)  # type: ignore[arg-type]


def test_batches_come_in_order_and_state_and_counts_are_theirs() -> None:
    seen: list[Reject] = []
    loader = Numbers()
    with feed(loader, on_rejects=seen.extend) as batches:
        assert batches.get_state() == {"next_draw": 0, "rejects": {}}
        for number in range(1, 6):
            assert next(batches) == number
            time.sleep(0.02)  # it goes on in the meantime
            assert loader.count <= number + AHEAD
            assert batches.get_state()["next_draw"] == number
        assert loader.count == 5 + AHEAD
        assert [reject.id for reject in seen] == ["e1", "e3", "e5"]
        state = batches.get_state()
        assert state == {"next_draw": 5, "rejects": {"not an image": 3}}
        assert batches.metrics() == {
            "data/s/drawn": 5,
            "data/s/epochs": 0.5,
            "data/rejects/not_an_image": 3,
        }
    with feed(Numbers(), start=json.loads(json.dumps(state))) as batches:
        assert next(batches) == 6
        assert next(batches) == 7
        assert batches.get_state() == {"next_draw": 7, "rejects": {"not an image": 4}}


def test_an_error_comes_after_the_batches_before_it_and_stays() -> None:
    with feed(Numbers(fails_at=3)) as batches:
        assert [next(batches) for _ in range(3)] == [1, 2, 3]
        for _ in range(2):
            with pytest.raises(ValueError, match="nothing left"):
                next(batches)


def test_closing_ends_the_thread() -> None:
    with feed(Numbers(wait=0.1)) as batches:
        next(batches)
    assert not [t for t in threading.enumerate() if t.name == "device-feed"]
    batches = feed(Numbers())
    time.sleep(0.05)  # it waits for room
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "device-feed"]


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_of_a_batch_is_not_used_while_a_device_array_lies_in_it(make_config, workers):
    """On CPU devices an array may be the NumPy array's memory. All batches are held, then compared."""
    config = make_config(data__num_workers=workers, data__prefetch_batches=2)
    mesh = make_mesh(MeshConfig())
    _, sources = open_data(config.data)
    with make_loader(config, sources) as loader:
        copies = [next(loader).image.copy() for _ in range(12)]
    aliased = 0
    with make_loader(config, sources) as loader:
        held = []
        for copy in copies:
            batch = next(loader)
            arrays = put_batch(batch, mesh)
            held.append(arrays["image"])
            where = batch.image.ctypes.data
            shards = [s.data.unsafe_buffer_pointer() for s in arrays["image"].addressable_shards]
            aliased += sum(where <= p < where + copy.nbytes for p in shards)
            del batch, arrays
        for _ in range(12):  # all memory that is free would be overwritten
            next(loader)
        for copy, array in zip(copies, held, strict=True):
            np.testing.assert_array_equal(copy, array)
    assert aliased, "JAX copies now: the finalizers of vitscale.data.buffers are needed no more"


def test_memory_is_used_again_once_the_device_arrays_are_gone(make_config):
    config = make_config(data__prefetch_batches=2)
    mesh = make_mesh(MeshConfig())
    _, sources = open_data(config.data)
    places: Counter[int] = Counter()
    with (
        make_loader(config, sources) as loader,
        DeviceFeed(loader, lambda batch: (put_batch(batch, mesh), batch.image.ctypes.data)) as feed,
    ):
        for _ in range(40):
            arrays, place = next(feed)
            places[place] += 1
            jax.block_until_ready(arrays)
            del arrays
    assert (
        len(places) <= 12
    )  # ahead on the host and on the devices, and those whose arrays are being dropped


def test_rejects_are_named_once_over_restarts(tmp_path) -> None:
    rejects = [Reject("a", "s", "empty"), Reject("b\u2028", "s", "truncated")]
    file = RejectsFile(tmp_path)
    file.add(rejects)
    file.add(rejects)
    path = tmp_path / "rejects.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"id": "c", "sou')  # a kill in the middle of a line
    again = RejectsFile(tmp_path)
    again.add([*rejects, Reject("c", "s", "empty"), Reject("a", "other", "empty")])
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [(row["id"], row["source"]) for row in rows] == [
        ("a", "s"),
        ("b\u2028", "s"),
        ("c", "s"),
        ("a", "other"),
    ]


def test_a_run_counts_what_it_drew_and_rejected_also_after_a_resume(make_config, photos, tmp_path):
    """Metrics of a resumed run are those of one that was not stopped, counts of rejects included."""
    photos_copy = shutil.copytree(photos, tmp_path / "photos")
    (photos_copy / "3.jpg").write_bytes(b"")
    changes = {"data__root": str(photos_copy), "data__max_reject_fraction": 0.2}
    names = [f"data/images.csv[train]/{name}" for name in ("drawn", "epochs")]
    names.append("data/rejects/empty")

    def counts(workdir) -> list[list[float]]:
        return [[row.get(name, 0) for name in names] for row in read_metrics(workdir)]

    train(make_config(duration=8, **changes), tmp_path / "whole")
    expected = counts(tmp_path / "whole")
    assert expected[-1][:2] == [128, 128 / 40]
    assert expected[-1][2] >= 3
    assert len((tmp_path / "whole" / "rejects.jsonl").read_text().splitlines()) == 1
    stopped = make_config(duration=8, checkpoint__every_steps=3, **changes)
    workdir = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        real = loop.save

        def save(run, hooks, feed, step, *rest, **options):
            real(run, hooks, feed, step, *rest, **options)
            if step == 6:
                raise KeyboardInterrupt

        patch.setattr(loop, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, workdir)
    train(stopped, workdir)
    assert counts(workdir) == expected


def workers() -> list[int]:
    """Input workers of this process that run."""
    children = " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.split()}
    return [int(pid) for pid, line in commands.items() if b"vitscale.data.worker" in line]


def kill_workers_at(patch: pytest.MonkeyPatch, *steps: int) -> None:
    real, count = loop.next_batch, itertools.count(1)

    def next_batch(feed, meter):
        if next(count) in steps:
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
        return real(feed, meter)

    patch.setattr(loop, "next_batch", next_batch)


def test_a_run_survives_one_death_of_a_worker_and_ends_in_words_at_the_second(
    make_config, tmp_path, monkeypatch
):
    changes = {"data__num_workers": 1, "checkpoint__every_steps": 100}
    train(make_config(duration=30, checkpoint__every_steps=100), tmp_path / "whole")
    expected = [row["train/loss"] for row in read_metrics(tmp_path / "whole")]
    with monkeypatch.context() as patch:
        kill_workers_at(patch, 4)
        train(make_config(duration=30, **changes), tmp_path / "once")
    assert [row["train/loss"] for row in read_metrics(tmp_path / "once")] == expected
    with monkeypatch.context() as patch:
        kill_workers_at(patch, 4, 16)
        with pytest.raises(UserError, match=r"input worker 0 was killed by signal 9 \(SIGKILL\)"):
            train(make_config(duration=30, **changes), tmp_path / "twice")
    assert 16 <= len(read_metrics(tmp_path / "twice")) < 30
    assert not workers()
