"""Runs a Beam pipeline on Apache Spark through pyspark, without Beam's job server.

The fused stages run inside `mapPartitions`, between shuffles of Spark's own: encoded values under (buffer, key, place),
sorted in each partition, so that a stage gets the values of one key after those of another. One Spark job a pipeline.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from data_prep.runners.quiet_beam import quiet  # isort: split

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import Pipeline
from apache_beam.runners.portability.fn_api_runner.execution import ENCODED_IMPULSE_VALUE
from apache_beam.runners.runner import PipelineRunner

from data_prep.runners.fused import FusedStage, Port, Result, fuse, ready
from vitscale.errors import UserError

if TYPE_CHECKING:
    from pyspark import Accumulator, SparkContext

PARTITIONS_PER_CORE = 2
Row = tuple[tuple[str, bytes, int], bytes]  # (buffer, key, place) -> value


class SparkOptions(PipelineOptions):
    """What `--runner pyspark` understands."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--spark_master", default="local[*]", help="as spark-submit's --master")
        parser.add_argument(
            "--spark_partitions", type=int, default=0, help=f"default: {PARTITIONS_PER_CORE} a core"
        )
        parser.add_argument(
            "--spark_conf", action="append", default=[], help="KEY=VALUE, any number of times"
        )


class SparkRunner(PipelineRunner):
    """`--spark_master`: local[N], or the URL of a cluster whose workers have this package and see the same files."""

    def run_pipeline(self, pipeline: Pipeline, options: PipelineOptions) -> Result:
        chosen = options.view_as(SparkOptions)
        spark = _connect(chosen.spark_master, chosen.spark_conf)
        if chosen.spark_partitions < 0:
            raise UserError(f"--spark_partitions={chosen.spark_partitions} must be 0 or more.")
        partitions = chosen.spark_partitions or PARTITIONS_PER_CORE * spark.defaultParallelism
        levels = _levels(fuse(pipeline))
        shuffled = spark.accumulator(0)
        run = uuid.uuid4().hex
        start, rest = _start(run, levels)
        rows = spark.parallelize(start, max(1, min(partitions, len(start))))
        for number, stages in enumerate(rest):
            if number:
                rows = rows.repartitionAndSortWithinPartitions(partitions, itemgetter(2))
            rows = rows.mapPartitionsWithIndex(partial(_run_level, run, stages, shuffled))
        rows.foreach(_left_over)
        return Result(shuffled.value)


def _start(
    run: str, levels: list[dict[str, FusedStage]]
) -> tuple[list[Row], list[dict[str, FusedStage]]]:
    """The first rows, and the levels that they go through.

    Where the first level only lists elements, such as the names of parts, it runs here and now.
    """
    first = levels[0]
    ports = [stage.outputs for stage in first.values()]
    if any(not outputs or any(port.grouped for port in outputs) for outputs in ports):
        return [((name, b"", 0), ENCODED_IMPULSE_VALUE) for name in first], levels
    rows: list[Row] = []

    def emit(port: Port, key: bytes, value: bytes) -> None:
        rows.append(((port.buffer, key, len(rows)), value))

    for stage in first.values():
        ready(run, stage).start(emit)
    return rows, levels[1:]


def _levels(stages: Sequence[FusedStage]) -> list[dict[str, FusedStage]]:
    """The stages by the buffer that they read, those that can run at the same time together."""
    level_of: dict[str, int] = {}  # of a buffer: 1 + that of the last stage that writes to it
    levels: list[dict[str, FusedStage]] = []
    for stage in stages:
        level = level_of[stage.source.buffer] if stage.source else 0
        name = stage.source.buffer if stage.source else stage.name
        for port in stage.outputs:
            level_of[port.buffer] = max(level_of.get(port.buffer, 0), level + 1)
        levels += [{} for _ in range(level + 1 - len(levels))]
        levels[level][name] = stage
    return levels


def _run_level(
    run: str,
    stages: Mapping[str, FusedStage],
    shuffled: Accumulator[int],
    partition: int,
    rows: Iterable[Row],
) -> Iterator[Row]:
    """Runs the stages of a level over the rows of a partition; rows for stages of later levels pass."""
    for buffer, group in groupby(rows, key=lambda row: row[0][0]):
        if buffer not in stages:
            yield from group
            continue
        try:
            with quiet():
                yield from _run_stage(run, stages[buffer], shuffled, partition, group)
        except Exception as error:
            raise RuntimeError(f"{error}\n{traceback.format_exc()}") from None


def _run_stage(
    run: str,
    stage: FusedStage,
    shuffled: Accumulator[int],
    partition: int,
    rows: Iterable[Row],
) -> Iterator[Row]:
    source = stage.source
    elements: Iterable[tuple[bytes, Iterable[bytes]]]
    if source is not None and source.grouped:
        values = groupby(rows, key=lambda row: row[0][1])
        elements = ((key, map(itemgetter(1), group)) for key, group in values)
    else:
        elements = ((key, iter((value,))) for (_, key, _), value in rows)
    written: list[tuple[tuple[str, bytes, int], int]] = []
    with tempfile.TemporaryFile() as file:

        def emit(port: Port, key: bytes, value: bytes) -> None:
            place = zlib.crc32(key) if port.grouped else partition + len(written)
            written.append(((port.buffer, key, place), len(value)))
            file.write(value)
            if port.grouped:
                shuffled.add(len(key) + len(value))

        ready(run, stage).run(elements, emit)
        file.seek(0)
        for where, size in written:
            yield where, file.read(size)


def _left_over(row: Row) -> None:
    raise AssertionError(f"nothing reads {row[0][0]}")


def _connect(master: str, conf: Sequence[str]) -> SparkContext:
    """The Spark context of this process, which stays for the next pipeline."""
    try:
        from pyspark import SparkConf, SparkContext
        from pyspark.errors import PySparkRuntimeError
    except ModuleNotFoundError as error:
        raise UserError(
            f"--runner pyspark needs {error.name}, which is not installed: pip install 'vitscale[prep,spark]'."
        ) from error
    wrong = [item for item in conf if "=" not in item]
    if wrong:
        raise UserError(f"--spark_conf={wrong[0]} must be KEY=VALUE.")
    settings = SparkConf().setMaster(master).setAppName("vitscale prep")
    settings.set("spark.ui.enabled", "false").set("spark.ui.showConsoleProgress", "false")
    if master.startswith("local"):
        settings.set("spark.driver.host", "localhost").set("spark.driver.bindAddress", "127.0.0.1")
    for item in conf:
        settings.set(*item.split("=", 1))
    running = SparkContext._active_spark_context
    if running is not None and running.master != master:
        running.stop()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        spark = SparkContext.getOrCreate(settings)
    except PySparkRuntimeError as error:
        raise UserError(f"Spark did not start, which needs Java 17 or later: {error}.") from error
    except Exception as error:
        text = str(error).strip().splitlines()
        raise UserError(
            f"--spark_master={master} cannot be used: {text[-1] if text else error}"
        ) from error
    spark.setLogLevel("OFF")
    return spark
