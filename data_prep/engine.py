"""Runs one stage as an Apache Beam pipeline whose elements are Arrow record batches.

An element is `(part name, record batches)`. Stages exchange Parquet parts in a work folder that every worker sees; what
must be known globally (counts) leaves a stage through a combiner whose size is bounded by the vocabulary.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.write import read_part, write_part
from vitscale.errors import UserError

# Importing Beam warns about Google Cloud's optional clients on the root logger.
_ROOT = logging.getLogger()
_LEVEL = _ROOT.level
_ROOT.setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise UserError(
            f"vitscale prep needs {error.name}, which is not installed: pip install 'vitscale[prep]'."
        ) from error
_ROOT.setLevel(_LEVEL)

# Beam's "DirectRunner" first tries Prism, a Go binary that it downloads; its in-process runner needs nothing.
DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
COMPACT_ROWS = 1_000_000  # of unsummed counts that an accumulator holds
_USER_ERROR = re.compile(r"<<UserError:(.*?)>>", re.DOTALL)

Keyed = tuple[str, pa.RecordBatch]


class RecordBatchCoder(beam.coders.Coder):
    """Record batches between workers as Arrow IPC streams, never pickled."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return pa.RecordBatch


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


@dataclass(frozen=True)
class Engine:
    """A Beam runner by name, with its own options as on Beam's command line."""

    runner: str = "direct"
    options: tuple[str, ...] = ()

    @contextmanager
    def pipeline(self) -> Iterator[beam.Pipeline]:
        """A pipeline that runs when the block ends; a `UserError` of any worker surfaces as one here."""
        runner = DIRECT if self.runner.lower() in ("direct", "directrunner") else self.runner
        levels = {name: logging.getLogger(name).level for name in ("apache_beam", "root")}
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        try:
            pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(self.options)))
        except (ValueError, ImportError) as error:
            raise UserError(f"--runner {self.runner} cannot be used: {error}.") from error
        try:
            yield pipeline
            pipeline.run().wait_until_finish()
        except Exception as error:
            match = _USER_ERROR.search(str(error))
            if match is None:
                raise
            raise UserError(match[1]) from None
        finally:
            logging.getLogger("apache_beam").setLevel(levels["apache_beam"])


class Stage(beam.DoFn):
    """Applies `load()(name, batches...)` to elements; `load` runs once a worker and holds the stage's state."""

    def __init__(self, load: Callable[[], Callable[..., Iterable[Any]]]) -> None:
        self._load = load

    def setup(self) -> None:
        self._function = self._load()

    def process(self, element: Any) -> Iterator[Any]:
        arguments = element if isinstance(element, tuple) else (element,)
        try:
            yield from self._function(*arguments)
        except UserError as error:
            # Runners pass on the text of an exception, not its type.
            raise RuntimeError(f"<<UserError:{error}>>") from error


class ReadParts(beam.DoFn):
    """Part name -> (name, the part in each of `folders`)."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def process(self, element: str) -> Iterator[tuple[Any, ...]]:
        yield (element, *(read_part(folder, element) for folder in self._folders))


class WriteParts(beam.DoFn):
    """Writes (name, batch) to `folder` and passes the element on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, element: Keyed) -> Iterator[Keyed]:
        write_part(self._folder, *element)
        yield element


class SumCounts(beam.CombineFn):
    """Sums `count` of record batches by their other columns; result sorted by them."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(self, accumulator: list[pa.Table], batch: pa.RecordBatch) -> list[pa.Table]:
        accumulator.append(pa.Table.from_batches([batch], self._schema))
        if sum(t.num_rows for t in accumulator) > 2 * COMPACT_ROWS + accumulator[0].num_rows:
            return [self._sum(accumulator)]
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        return [self._sum([table for tables in accumulators for table in tables])]

    def compact(self, accumulator: list[pa.Table]) -> list[pa.Table]:
        return [self._sum(accumulator)]

    def extract_output(self, accumulator: list[pa.Table]) -> pa.RecordBatch:
        table = self._sum(accumulator).sort_by([(name, "ascending") for name in self._keys])
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], self._schema)

    @property
    def _keys(self) -> list[str]:
        return [name for name in self._schema.names if name != "count"]

    def _sum(self, tables: list[pa.Table]) -> pa.Table:
        if not tables:
            return self._schema.empty_table()
        grouped = pa.concat_tables(tables).group_by(self._keys).aggregate([("count", "sum")])
        return grouped.rename_columns([*self._keys, "count"]).cast(self._schema)


def sum_to_parts(
    batches: beam.PCollection,
    count: Callable[[pa.RecordBatch], pa.RecordBatch],
    schema: pa.Schema,
    folder: Path,
    parts: int,
) -> beam.PCollection:
    """Counts each batch of (name, batch) and sums over the corpus into `parts` parts, by the first column modulo that.

    For counts that are too many for one worker.
    """
    name = folder.name

    def divide(_: str, batch: pa.RecordBatch) -> Iterator[Keyed]:
        counts = count(batch)
        part = counts.column(0).to_numpy() % parts
        for index in range(parts):
            yield f"{index:03d}", counts.filter(pa.array(part == index))

    return (
        batches
        | f"count {name}" >> beam.FlatMapTuple(divide)
        | f"sum {name}" >> beam.CombinePerKey(SumCounts(schema))
        | f"write {name}" >> beam.ParDo(WriteParts(folder))
    )


def sum_to_file(
    batches: beam.PCollection,
    count: Callable[[pa.RecordBatch], pa.RecordBatch],
    schema: pa.Schema,
    folder: Path,
    name: str,
) -> beam.PCollection:
    """Counts each batch of (name, batch) and sums over the whole corpus into the part `name`."""
    return (
        batches
        | f"count {name}"
        >> beam.MapTuple(lambda _, batch: count(batch)).with_output_types(pa.RecordBatch)
        | f"sum {name}" >> beam.CombineGlobally(SumCounts(schema))
        | f"key {name}" >> beam.Map(lambda batch, name: (name, batch), name)
        | f"write {name}" >> beam.ParDo(WriteParts(folder))
    )
