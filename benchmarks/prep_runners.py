"""What a Beam pipeline costs before it does anything: seconds a pipeline, for the ways to run it on one machine.

    python benchmarks/prep_runners.py

Prints one JSON line a runner: the seconds of the first pipeline of a process (workers start) and the median of the
rest, for a pipeline that doubles and sums `ELEMENTS` numbers. `vitscale prep` runs about a dozen pipelines.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from importlib.util import find_spec
from shutil import which

from data_prep.engine import Engine, Stage, beam

ELEMENTS, PIPELINES = 64, 5
BEAM = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
RUNNERS = {
    "Beam, in process": Engine(BEAM),
    "direct, in process": Engine("direct", ("--direct_num_workers=1",)),
    "direct, 2 workers": Engine("direct", ("--direct_num_workers=2",)),
    "pyspark, local[2]": Engine("pyspark", ("--spark_master=local[2]",)),
}


def double(number: int) -> list[tuple[str, int]]:
    return [("sum", 2 * number)]


def run(engine: Engine) -> float:
    start = time.perf_counter()
    with engine.pipeline() as p:
        _ = (
            p
            | "numbers" >> beam.Create(list(range(ELEMENTS)))
            | "double" >> beam.ParDo(Stage(lambda: double)).with_output_types(tuple[str, int])
            | "sum" >> beam.CombinePerKey(sum)
        )
    return time.perf_counter() - start


def main() -> None:
    for name, engine in RUNNERS.items():
        if engine.runner == "pyspark" and not (find_spec("pyspark") and which("java")):
            continue
        seconds = [run(engine) for _ in range(PIPELINES)]
        line = {
            "runner": name,
            "elements": ELEMENTS,
            "first_s": round(seconds[0], 2),
            "next_s": round(statistics.median(seconds[1:]), 2),
            "load": round(os.getloadavg()[0], 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
