"""Runs a Beam pipeline on all cores of this machine; what crosses a shuffle waits in files, not in memory.

Beam's own direct runner keeps it in memory, and starts its worker processes anew for each pipeline. Here they start
once, at the first pipeline that is worth it, and stay.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from data_prep.runners.quiet_beam import quiet  # isort: split

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.pipeline import Pipeline
from apache_beam.runners.runner import PipelineRunner

from data_prep.runners.fused import FusedStage, Port, Result, StageWorker, fuse, ready
from data_prep.runners.workers import are_running, get_workers, num_cores, stop_workers
from vitscale.errors import UserError

MIN_ELEMENTS = 32  # that are worth the seconds in which worker processes start
MAX_OPEN = 128  # files of a shuffle that a process reads at a time
MAX_BUNDLE = 64  # elements whose partial sums are in memory at a time
TASKS_PER_WORKER = 8  # so that no worker waits long for the last one


@dataclass(frozen=True)
class Piece:
    """Where a value waits."""

    file: Path
    offset: int
    size: int


class PieceReader:
    """Reads pieces of many files, of which few are open at a time."""

    def __init__(self) -> None:
        self.files: dict[Path, BinaryIO] = {}

    def __enter__(self) -> PieceReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def read(self, piece: Piece) -> bytes:
        if piece.file not in self.files:
            if len(self.files) >= MAX_OPEN:
                self.files.pop(next(iter(self.files))).close()
            self.files[piece.file] = open(piece.file, "rb")  # noqa: SIM115
        self.files[piece.file].seek(piece.offset)
        return self.files[piece.file].read(piece.size)


Group = tuple[bytes, list[Piece]]  # key -> its values
Written = list[tuple[Port, bytes, Piece]]
Tell = Callable[[int, int], None]  # elements done, of all


class DirectRunner(PipelineRunner):
    """Uses `--direct_num_workers=N` processes, which give the same result for every N.

    1 is this process alone; 0 is one for each core where the elements are many enough, else 1.

    Args:
      scratch: where shuffles wait; default: the system's folder for temporary files.
      tell: hears how many elements of a stage are done, as it goes on.
    """

    def __init__(self, scratch: Path | None = None, tell: Tell = lambda done, total: None) -> None:
        super().__init__()
        self._scratch = scratch
        self._tell = tell

    def run_pipeline(self, pipeline: Pipeline, options: PipelineOptions) -> Result:
        asked = options.view_as(DirectOptions).direct_num_workers
        if asked < 0:
            raise UserError(f"--direct_num_workers={asked} must be 0 (all cores) or more.")
        stages = fuse(pipeline)
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="shuffle-", dir=self._scratch, ignore_cleanup_errors=True
        ) as folder:
            return Result(_run(stages, asked, Path(folder), self._tell))


def _run(stages: Sequence[FusedStage], asked: int, folder: Path, tell: Tell) -> int:
    """Runs the stages one by one; returns the bytes that were shuffled."""
    waiting: dict[str, Written] = {}
    shuffled = 0
    for number, stage in enumerate(stages):
        path = folder / f"stage-{number:03d}"
        if stage.source is None:
            written = _run_here(stage, [], path, tell)
        else:
            groups = _group(waiting.pop(stage.source.buffer, []), stage.source.grouped)
            count = _num_workers(asked, len(groups))
            run = _run_here if count == 1 else partial(_run_in_workers, count=count)
            written = run(stage, groups, path, tell)
        for port, key, piece in written:
            waiting.setdefault(port.buffer, []).append((port, key, piece))
            shuffled += (len(key) + piece.size) * port.grouped
    return shuffled


def _group(written: Written, grouped: bool) -> list[Group]:
    if not grouped:
        return [(key, [piece]) for _, key, piece in written]
    groups: dict[bytes, list[Piece]] = {}
    for _, key, piece in written:
        groups.setdefault(key, []).append(piece)
    return list(groups.items())


def _num_workers(asked: int, elements: int) -> int:
    if asked:
        return asked
    count = num_cores()
    worth_it = elements >= MIN_ELEMENTS or (elements > 1 and are_running(count))
    return count if worth_it else 1


def _run_here(stage: FusedStage, groups: Sequence[Group], path: Path, tell: Tell) -> Written:
    worker = StageWorker(stage)
    try:
        return _work(worker, stage, groups, path, tell)
    finally:
        worker.close()


def _work(
    worker: StageWorker, stage: FusedStage, groups: Sequence[Group], path: Path, tell: Tell
) -> Written:
    """Runs a stage over groups of pieces. What it writes goes to the file `path`."""
    written: Written = []
    with ExitStack() as opened:
        file = opened.enter_context(open(path, "wb"))
        pieces_read = opened.enter_context(PieceReader())

        def emit(port: Port, key: bytes, value: bytes) -> None:
            written.append((port, key, Piece(path, file.tell(), len(value))))
            file.write(value)

        if stage.source is None:
            worker.start(emit)
            return written
        for start in range(0, len(groups), MAX_BUNDLE):
            bundle = groups[start : start + MAX_BUNDLE]
            worker.run(((key, map(pieces_read.read, pieces)) for key, pieces in bundle), emit)
            tell(start + len(bundle), len(groups))
    return written


def _run_in_workers(
    stage: FusedStage, groups: Sequence[Group], path: Path, tell: Tell, count: int
) -> Written:
    """As `_work`, each worker on some of the groups; what they write is in the order of the groups."""
    tasks = min(len(groups), max(count * TASKS_PER_WORKER, len(groups) // MAX_BUNDLE))
    if tasks == 0:
        return []
    limits = [len(groups) * task // tasks for task in range(tasks + 1)]
    executor = get_workers(count).executor
    try:
        futures = [
            executor.submit(
                _task, path.name, stage, groups[start:stop], path.with_name(f"{path.name}-{start}")
            )
            for start, stop in pairwise(limits)
        ]
        written: Written = []
        # In order, so that of two broken elements it is always the same one that the user hears of.
        for future, stop in zip(futures, limits[1:], strict=True):
            written += future.result()
            tell(stop, len(groups))
        return written
    except BrokenProcessPool as error:
        stop_workers()
        raise UserError(
            f"a worker process of {count} ended before its time, most often for want of memory (use fewer by "
            "--runner-option=--direct_num_workers=N, or a smaller batch_rows), or because the script that calls "
            "run_prep does so without `if __name__ == '__main__':`."
        ) from error
    except BaseException:
        stop_workers()
        raise


def _task(name: str, stage: FusedStage, groups: Sequence[Group], path: Path) -> Written:
    """What a worker process runs."""
    try:
        with quiet():
            return _work(
                ready(f"{path.parent}/{name}", stage), stage, groups, path, lambda done, total: None
            )
    except Exception as error:
        # Not every exception can be sent; its text can.
        raise RuntimeError(f"{error}\n{traceback.format_exc()}") from None
