"""What a run of `vitscale prep` on synthetic rows costs, step by step (`python benchmarks/prep.py --rows N [N ...]`).

Each size runs in a process of its own, in one worker, on the rows of benchmarks/prep_rows.py, without images; a small
run before it compiles. Of each step: CPU seconds, rows a CPU second, peak memory (own: what no file backs; peak: all
that is resident, pages of mapped files among it), and bytes read, written and shuffled. A phrase is frequent that is in
`SHARE` of the records, so that all sizes have about the same vocabulary; with `--phrases` instead as many phrases as
that are taken of what two records hold, and grouped into 20,000 clusters in two levels.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
from prep_rows import SOURCES, Corpus, write_rows

from data_prep import engine, pipeline
from data_prep.run_state import RunState
from data_prep.schema import ClusterConfig, PrepConfig, VocabularyConfig

SHARE = 1 / 20_000
RARE = 2  # records that hold a phrase, with `--phrases`
WARM_ROWS = 2048
SAMPLE_SECONDS = 0.02
TARGET = 10**9
# Steps whose cost is the vocabulary's, not the corpus's
BY_VOCABULARY = ("cluster", "vocabulary", "phrases")


@dataclass
class Cost:
    """Of one step, without the steps inside it; bytes are those of this process and its children."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0  # resident, pages of mapped files among them
    peak_own_bytes: int = 0  # those alone that no file backs, sampled
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_shuffled: int = 0


class Meter:
    """Where the cost of what happens now is counted: on the innermost open step."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}
        self._open = [Cost()]
        self._mapped = 0
        self._shuffled = 0
        self._last = self._now()
        self._own = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self._own = max(self._own, _status("RssAnon"))
            time.sleep(SAMPLE_SECONDS)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(self.costs.setdefault(name, Cost()))
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def read_mapped(self, path: object) -> None:
        """A file whose pages are mapped: the system does not count those as read."""
        self._mapped += os.path.getsize(str(path))

    def shuffle(self, count: int) -> None:
        self._shuffled += count

    def _charge(self) -> None:
        now, cost = self._now(), self._open[-1]
        cost.cpu_seconds += now["cpu"] - self._last["cpu"]
        cost.bytes_read += int(now["read"] - self._last["read"])
        cost.bytes_written += int(now["written"] - self._last["written"])
        cost.bytes_shuffled += int(now["shuffled"] - self._last["shuffled"])
        cost.peak_bytes = max(cost.peak_bytes, _status("VmHWM"))
        cost.peak_own_bytes = max(cost.peak_own_bytes, self._own)
        self._own = 0
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._last = now

    def _now(self) -> dict[str, float]:
        times = os.times()
        lines = Path("/proc/self/io").read_text().splitlines()
        io = {name: int(value) for name, value in (line.split(": ") for line in lines)}
        return {
            "cpu": times.user + times.system + times.children_user + times.children_system,
            "read": io["rchar"] + self._mapped,
            "written": io["wchar"],
            "shuffled": self._shuffled,
        }


def measure(rows: int, folder: Path, phrases: int = 0) -> dict[str, Any]:
    """Costs of the steps on the first `rows` synthetic rows; `folder` must be new."""
    meter = Meter()

    class Metered(RunState):
        def run(
            self, name: str, outputs: Sequence[str], step: Callable[[], Mapping[str, Any]]
        ) -> dict[str, Any]:
            with meter.step(name):
                return super().run(name, outputs, step)

    read_table, add = pq.read_table, engine.Traffic.add

    def read(path: Any, **options: Any) -> Any:
        if options.get("memory_map"):
            meter.read_mapped(path)
        return read_table(path, **options)

    def add_traffic(traffic: engine.Traffic, result: object) -> None:
        meter.shuffle(getattr(result, "shuffled", None) or 0)
        add(traffic, result)

    corpus = Corpus(words=max(50_000, phrases // 5), concepts=max(50_000, phrases // 2))
    write_rows(corpus, rows, folder / "rows")
    patches: list[contextlib.AbstractContextManager[Any]] = [
        patch.object(pipeline, "RunState", Metered),
        patch.object(pq, "read_table", read),
        patch.object(engine.Traffic, "add", add_traffic),
    ]
    with contextlib.ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        pipeline.run_prep(
            many_phrases(phrases) if phrases else prep_config(rows),
            folder / "rows",
            folder / "prep",
            runner_options=["--direct_num_workers=1"],
        )
    manifest = json.loads((folder / "prep" / "manifest.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in (folder / "rows").iterdir())
    return {
        "rows": rows,
        "input_bytes": size,
        "counts": manifest["counts"],
        "steps": {name: asdict(cost) for name, cost in meter.costs.items()},
    }


def prep_config(rows: int) -> PrepConfig:
    return PrepConfig(
        sources=SOURCES,
        image_field=None,
        vocabulary=VocabularyConfig(min_document_frequency=max(5, int(rows * SHARE))),
        clusters=ClusterConfig(count=2000, iterations=10),
    )


def many_phrases(phrases: int) -> PrepConfig:
    return PrepConfig(
        sources=SOURCES,
        image_field=None,
        vocabulary=VocabularyConfig(min_document_frequency=RARE, max_phrases=phrases),
        clusters=ClusterConfig(count=20_000, iterations=10, levels=2),
    )


def measure_apart(rows: int, phrases: int = 0) -> dict[str, Any]:
    """`measure` in a new process, after a run that compiles."""
    found = subprocess.run(
        [sys.executable, __file__, str(rows), str(phrases)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def compare(sizes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Cost a row of each step beside that at the smallest size, and what `TARGET` rows would take at the largest."""
    first, last = sizes[0], sizes[-1]
    growth = {
        name: round(
            (cost["cpu_seconds"] / last["rows"])
            / max(first["steps"][name]["cpu_seconds"] / first["rows"], 1e-12),
            3,
        )
        for name, cost in last["steps"].items()
        if name in first["steps"]
    }
    by_row = {n: c for n, c in last["steps"].items() if n.split("-")[0] not in BY_VOCABULARY}
    scale = TARGET / last["rows"]
    total = sum(cost["cpu_seconds"] for cost in by_row.values()) * scale / 3600
    kinds = ("bytes_read", "bytes_written", "bytes_shuffled")
    return {
        "cost_per_row_ratio": growth,
        "of_all_steps_by_row": round(_per_row(last, by_row) / _per_row(first, by_row), 3),
        f"at_{TARGET:.0e}_rows": {
            "core_hours": round(total, 1),
            **{
                f"TB_{k}": round(sum(c[k] for c in by_row.values()) * scale / 1e12, 2)
                for k in kinds
            },
        },
    }


def _per_row(size: dict[str, Any], names: Mapping[str, Any]) -> float:
    seconds = sum(size["steps"][name]["cpu_seconds"] for name in names if name in size["steps"])
    return float(seconds) / int(size["rows"])


def print_sizes(rows: Sequence[int], phrases: int = 0) -> None:
    """Measures each size and prints a table a size, then one JSON line with everything."""
    sizes = []
    for count in rows:
        size = measure_apart(count, phrases)
        sizes.append(size)
        print(f"{count:,} rows, input {size['input_bytes'] / 1e6:,.0f} MB, {size['counts']}")
        columns = (
            "CPU s",
            "rows/CPU s",
            "own MB",
            "peak MB",
            "read MB",
            "written MB",
            "shuffled MB",
        )
        print(f"{'step':<14}" + "".join(f"{name:>13}" for name in columns))
        for name, cost in size["steps"].items():
            kinds = (
                "peak_own_bytes",
                "peak_bytes",
                "bytes_read",
                "bytes_written",
                "bytes_shuffled",
            )
            values = [cost["cpu_seconds"], count / max(cost["cpu_seconds"], 1e-3)]
            values += [cost[kind] / 1e6 for kind in kinds]
            print(f"{name:<14}{values[0]:>13,.1f}" + "".join(f"{v:>13,.0f}" for v in values[1:]))
    print(json.dumps({"benchmark": "prep_scale", "sizes": sizes, **compare(sizes)}))


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        measure(WARM_ROWS, Path(temporary) / "warm")
        print(json.dumps(measure(int(sys.argv[1]), Path(temporary) / "run", int(sys.argv[2]))))
