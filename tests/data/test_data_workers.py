"""Worker processes: real kills, last words, nothing left behind, and runs that change their number of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_data_loader import CLASSES, assert_equal, loader, take

from vitscale.config import DataConfig, SourceConfig
from vitscale.data.buffers import Buffers
from vitscale.data.loader import TrainLoader
from vitscale.data.records import Example
from vitscale.errors import UserError

pytestmark = pytest.mark.timeout(60)  # a hang is a failure


@pytest.fixture
def shards(make_shards: Callable, make_examples: Callable) -> SourceConfig:
    folder = make_shards(make_examples(24), CLASSES)
    return SourceConfig("shards", str(folder), split="train")


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers of `parent`, zombies left out."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except (OSError, NotADirectoryError):
            continue
        mine = int(fields[1]) == parent and fields[0] != "Z"
        if mine and b"vitscale.data.worker" in command:
            found.append(int(folder.name))
    return found


def shared_memory() -> set[str]:
    """Python's named shared memory on this machine; semaphores and others' names come and go."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_once_and_nothing_is_lost(shards: SourceConfig) -> None:
    before = shared_memory()
    with loader(shards) as plain:
        expected = take(plain, 60)
    with loader(shards, num_workers=2) as batches:
        found = take(batches, 5)
        for pid in (first := workers_of(os.getpid())):
            os.kill(pid, signal.SIGKILL)
        found += take(batches, 55)
        second = workers_of(os.getpid())
        assert len(first) == len(second) == 2
        assert not set(first) & set(second)
        for one, two in zip(expected, found, strict=True):
            assert_equal(one, two)
        os.kill(second[0], signal.SIGKILL)
        with pytest.raises(UserError) as caught:
            take(batches, 200)
    words = str(caught.value)
    assert "was killed by signal 9 (SIGKILL) while making the batch of draw" in words
    assert "so had the worker before it" in words
    await_that(lambda: not workers_of(os.getpid()))
    assert shared_memory() <= before


def test_workers_and_their_memory_end_with_the_loader(shards: SourceConfig) -> None:
    with loader(shards, num_workers=2, prefetch_batches=8) as batches:
        next(batches)
        workers = workers_of(os.getpid())
        assert len(workers) == 2
        maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in workers)
    assert "memfd:vitscale-batch" in maps
    assert "/dev/shm" not in maps
    assert not workers_of(os.getpid())


def test_workers_ignore_the_signals_that_stop_a_run(shards: SourceConfig) -> None:
    """A scheduler sends SIGTERM to every process of a job, a terminal SIGINT: the run decides when it is over."""
    with loader(shards, num_workers=1) as batches:
        next(batches)
        (pid,) = workers_of(os.getpid())
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        take(batches, 10)
        assert workers_of(os.getpid()) == [pid]


class Odd:
    """A source that does something else than read."""

    name = "odd"
    classes: Mapping[str, Sequence[str]] = {"concepts": ["a"]}
    sampling_weights = None
    unknown_labels: Mapping[str, int] = {}

    def __init__(self, example: Example, what: str) -> None:
        self._example, self._what = example, what

    def __len__(self) -> int:
        return 100

    def read(self, indices: Sequence[int]) -> list[Example]:
        if self._what == "exit":
            print("memory is short")
            os._exit(3)
        if self._what == "abort":
            os.abort()
        if self._what == "raise":
            raise UserError("the disk is full.")
        if self._what == "say":
            held = Example(
                str("jax" in sys.modules and sys.modules["jax"] is not None),
                self._example.image,
                {},
            )
            return [held for _ in indices]
        return [self._example for _ in indices]


def odd_loader(example: Example, what: str) -> TrainLoader:
    data = DataConfig((SourceConfig("csv", "x"),), global_batch_size=4, num_workers=1)
    source: object = Odd(example, what)
    return TrainLoader([source], data, image_size=8, tasks={}, seed=0)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        pytest.param(
            "exit",
            r"ended with exit code 3 .* batch of draw \d+, .*last words:\nmemory is short",
            id="exit",
        ),
        pytest.param(
            "abort",
            r"(?s)signal 6 \(SIGABRT\).*last words:\n.*Fatal Python error: Aborted",
            id="abort",
        ),
        pytest.param("raise", "the disk is full.", id="raise"),
    ],
)
def test_a_worker_that_fails_by_itself_leaves_its_words(
    make_examples: Callable, what: str, words: str
) -> None:
    with (
        odd_loader(make_examples(1)[0], what) as batches,
        pytest.raises(UserError, match=words),
    ):
        next(batches)


def test_workers_do_without_jax(make_examples: Callable) -> None:
    with odd_loader(make_examples(1)[0], "say") as batches:
        assert next(batches).ids == ["False"] * 4


def test_a_source_that_cannot_be_sent_is_an_error_at_once(make_examples: Callable) -> None:
    with pytest.raises(Exception, match="pickle"):
        odd_loader(make_examples(1)[0], lambda: None)  # type: ignore[arg-type]


def test_batches_that_are_held_are_not_overwritten(shards: SourceConfig) -> None:
    with loader(shards, num_workers=2) as batches:
        held = take(batches, 20)
        copies = [batch.image.copy() for batch in held]
        views = [batch.image[2:4] for batch in held]
        del held
        take(batches, 40)
    for view, copy in zip(views, copies, strict=True):
        np.testing.assert_array_equal(view, copy[2:4])


def test_memory_is_used_again_when_nobody_refers_to_it() -> None:
    buffers = Buffers(shared=True)
    array, first = buffers.take((4, 8))
    view = array[1:]
    del array
    _, second = buffers.take((4, 8))
    assert second.number != first.number  # the view still needs it
    del view
    _, third = buffers.take((4, 8))
    assert third.number in (first.number, second.number)


LOADER_PROCESS = """
import json, sys
sys.modules["jax"] = None  # nothing here needs it, and it takes a second to import
from vitscale.config import DataConfig, SourceConfig
from vitscale.data.loader import TrainLoader
from vitscale.data.sources import open_source
folder, index, count, batches, start = json.loads(sys.argv[1])
config = SourceConfig("shards", folder, split="train", sampling="sampling_weight")
source = open_source(config, ".", {"concepts": list("abcde")})
data = DataConfig((config,), global_batch_size=16, num_threads=1)
with TrainLoader([source], data, image_size=8, tasks={"t": "concepts"}, seed=0,
                 process_index=index, process_count=count, start=start) as loader:
    rows = [next(loader) for _ in range(batches)]
    print(json.dumps([[b.ids for b in rows], loader.get_state()]))
"""


def run_processes(folder: str, count: int, batches: int, start: object) -> tuple[list, object]:
    """`batches` global batches of ids by `count` processes, and the state after them."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                LOADER_PROCESS,
                json.dumps([folder, index, count, batches, start]),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    states = [state for _, state in outputs]
    assert all(state == states[0] for state in states)
    rows = [[i for ids, _ in outputs for i in ids[number]] for number in range(batches)]
    return rows, states[0]


@pytest.mark.timeout(200)
def test_eight_processes_go_on_as_four_and_nothing_is_repeated_or_missed(
    make_shards: Callable, make_examples: Callable
) -> None:
    folder = str(make_shards(make_examples(50), CLASSES, count=3))
    whole, _ = run_processes(folder, 1, 7, None)
    before, state = run_processes(folder, 8, 3, None)
    after, _ = run_processes(folder, 4, 4, state)
    assert before + after == whole


PARENT = """
import json, sys, time
from vitscale.config import DataConfig, SourceConfig
from vitscale.data.loader import TrainLoader
from vitscale.data.sources import open_source
config = SourceConfig("shards", sys.argv[1], split="train")
source = open_source(config, ".", {"concepts": list("abcde")})
data = DataConfig((config,), global_batch_size=16, num_workers=2)
loader = TrainLoader([source], data, image_size=8, tasks={"t": "concepts"}, seed=0)
next(loader)
print("ready", flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
raise SystemExit("left without closing")
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_workers_outlive_no_parent(shards: SourceConfig, how: str) -> None:
    """Killed, or ended without `close`: no process and no shared memory stays behind."""
    before = shared_memory()
    command = [sys.executable, "-c", PARENT, shards.path, how]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    workers = workers_of(parent.pid)
    if how == "wait":
        assert len(workers) == 2
        parent.kill()
    assert parent.wait(timeout=20) in (1, -signal.SIGKILL)
    await_that(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert shared_memory() <= before
