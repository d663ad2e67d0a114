"""`--runner pyspark` on a real Spark: the files of the direct runner, byte for byte. `make test-spark` installs it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prep_catalogue import config, records, write_catalogue

from data_prep.engine import Engine, Stage, beam
from data_prep.pipeline import run_prep
from data_prep.runners import workers
from data_prep.schema_images import DedupConfig
from vitscale.errors import UserError

pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed: make test-spark")
pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
LOCAL = ("--spark_master=local[2]", "--spark_partitions=3")
BEAM = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 records of which two share an image."""
    folder = tmp_path_factory.mktemp("spark")
    rows = records(160)
    rows[31]["image"] = rows[30]["image"]
    return write_catalogue(folder / "in", rows)


def digests(path: Path, folder: Path, runner: str, *options: str) -> dict[str, Any]:
    dedup = DedupConfig(find="exact")
    chosen = config(batch_rows=23, dedup=dedup)
    run_prep(chosen, path, folder, runner=runner, runner_options=options)
    return json.loads((folder / "manifest.json").read_text())["files"]


@pytest.fixture(scope="module")
def expected(catalogue: Path) -> dict[str, Any]:
    return digests(catalogue, catalogue.parents[1] / "direct", "direct", "--direct_num_workers=1")


@pytest.fixture(scope="module")
def master() -> Iterator[str]:
    """A master and a worker of 2 cores, as a cluster has them, from pyspark's own jars."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path(pyspark.__file__).parent
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
    }
    start = [f"{home}/bin/spark-class"]
    url = f"spark://127.0.0.1:{port}"
    place = ["--host", "127.0.0.1", "--webui-port", "0"]
    worker = ["--cores", "2", "--memory", "1g", url]
    commands = [
        [*start, "org.apache.spark.deploy.master.Master", *place, "--port", str(port)],
        [*start, "org.apache.spark.deploy.worker.Worker", *place, *worker],
    ]
    processes = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            while not is_open(port):
                assert processes[0].poll() is None
                time.sleep(0.2)
        yield url
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module", autouse=True)
def _end_spark() -> Iterator[None]:
    yield
    workers.stop_workers()
    running = pyspark.SparkContext._active_spark_context
    if running is not None:
        running.stop()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("runner", "options"),
    [(BEAM, ()), ("direct", ("--direct_num_workers=2",)), ("pyspark", LOCAL)],
)
def test_every_runner_writes_the_same_bytes(
    catalogue: Path,
    expected: dict[str, Any],
    tmp_path: Path,
    runner: str,
    options: tuple[str, ...],
) -> None:
    assert digests(catalogue, tmp_path / "out", runner, *options) == expected
    assert len(expected) >= 6


def test_a_user_error_of_a_spark_worker_is_told(tmp_path: Path) -> None:
    rows = records(60)
    rows[50]["id"] = rows[1]["id"]
    path = write_catalogue(tmp_path / "in", rows)
    with pytest.raises(
        UserError, match=r"^the input has .* ids that are not unique, such as 'r0001'"
    ):
        digests(path, tmp_path / "out", "pyspark", *LOCAL)
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_shuffled_are_counted(tmp_path: Path) -> None:
    def pairs(index: int) -> Iterator[tuple[str, bytes]]:
        yield "key", b"x" * 1000

    def write(key: str, values: Any) -> Iterator[None]:
        (tmp_path / key).write_bytes(b"".join(values))
        yield from ()

    engine = Engine("pyspark", LOCAL)
    with engine.pipeline() as p:
        _ = (
            p
            | "numbers" >> beam.Create(list(range(10)))
            | "pairs" >> beam.ParDo(Stage(lambda: pairs)).with_output_types(tuple[str, bytes])
            | "group" >> beam.GroupByKey()
            | "write" >> beam.ParDo(Stage(lambda: write))
        )
    assert (tmp_path / "key").read_bytes() == b"x" * 10_000
    assert engine.traffic.shuffled == 10 * (3 + 1000)


@pytest.mark.timeout(1200)
def test_a_standalone_master_writes_the_same_bytes(
    catalogue: Path, expected: dict[str, Any], tmp_path: Path, master: str
) -> None:
    options = (f"--spark_master={master}", "--spark_conf=spark.executor.memory=512m")
    assert digests(catalogue, tmp_path / "out", "pyspark", *options) == expected
    assert pyspark.SparkContext._active_spark_context.master == master


def test_a_machine_without_java_is_told() -> None:
    code = (
        "from data_prep.engine import Engine, beam\n"
        "with Engine('pyspark').pipeline() as p:\n"
        "    p | beam.Create([1])\n"
    )
    environment = {"PATH": "/nowhere", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "vitscale.errors.UserError: Spark did not start, which needs Java 17" in done.stderr
