"""A prep that was killed goes on at the first incomplete step and ends with the digests of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prep_catalogue import config, records, write_catalogue

from data_prep import run_state
from data_prep.pipeline import run_prep
from data_prep.run_state import RunState, lock_folder
from data_prep.schema import PrepConfig, VocabularyConfig
from vitscale.errors import UserError

LATE = 40 * 365 * 86_400.0  # seconds by which a clock may be wrong

CONFIG_FILE = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.sources = [{"name": "title"}, {"name": "tags", "kind": "list"},
                 {"name": "queries", "kind": "weighted_list", "weight_key": "clicks"}]
    c.vocabulary = {"min_document_frequency": 4}
    c.dedup = {"find": "exact"}
    c.batch_rows = 64
    c.examples_per_shard = 50
    return c
"""


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def digests(folder: Path) -> dict[str, Any]:
    return manifest(folder)["files"]


def small_config(**changes: Any) -> PrepConfig:
    vocabulary = VocabularyConfig(min_document_frequency=4, max_ngram=2)
    return config(vocabulary=vocabulary, **changes)


class Killed(BaseException):
    """Passes every `except Exception`, as a signal does."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A catalogue and the manifest of a run over it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_catalogue(folder / "in", records(80))
    run_prep(small_config(), path, folder / "out")
    return path, manifest(folder / "out")


def test_a_run_that_dies_within_each_step_goes_on_there(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = whole
    completed: list[str] = []
    run = RunState.run
    dies_in: str | None = None

    def spied(self: RunState, name: str, outputs: Any, step: Callable[[], Any]) -> Any:
        def watched() -> Any:
            found = step()
            if name == dies_in:  # after its files are written, before it is known to be done
                raise Killed
            completed.append(name)
            return found

        return run(self, name, outputs, watched)

    monkeypatch.setattr(RunState, "run", spied)
    steps = list(expected["seconds"])
    assert {"read", "ngrams-2", "vocabulary", "match", "shards"} <= set(steps)
    for place, name in enumerate(steps):
        dies_in = name
        with pytest.raises(Killed):
            run_prep(small_config(), path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        for part in (tmp_path / "out.tmp").rglob("*.*"):  # of clocks that are wrong
            os.utime(part, (time.time() + LATE * (-1) ** place,) * 2)
    dies_in = None
    run_prep(small_config(), path, tmp_path / "out")
    assert completed == steps  # each of them once
    assert digests(tmp_path / "out") == expected["files"]
    assert not list(tmp_path.glob("*.tmp"))


def test_another_config_or_input_starts_over(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = whole
    other = write_catalogue(tmp_path / "in", records(60, seed=3))

    def die(*_: object) -> None:
        raise Killed

    for source, chosen in ((other, small_config()), (path, small_config(labels_per_image=1))):
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.pipeline.write_tables", die)
            with pytest.raises(Killed):
                run_prep(chosen, source, tmp_path / "out")
    run_prep(small_config(), path, tmp_path / "out")
    assert digests(tmp_path / "out") == expected["files"]


def test_images_can_be_mended_after_a_run_that_had_too_many_broken(tmp_path: Path) -> None:
    rows = records(60)
    path = write_catalogue(tmp_path / "in", rows)
    good = {row["image"]: (tmp_path / "in" / row["image"]).read_bytes() for row in rows[:9]}
    for name in good:
        (tmp_path / "in" / name).write_bytes(b"no image")
    with pytest.raises(UserError, match="9 of 60 records are broken"):
        run_prep(small_config(), path, tmp_path / "out")
    for name, data in good.items():
        (tmp_path / "in" / name).write_bytes(data)
    run_prep(small_config(), path, tmp_path / "out")
    assert manifest(tmp_path / "out")["counts"]["accepted"] == 60


def test_what_is_no_stopped_run_is_left_alone(tmp_path: Path) -> None:
    path = write_catalogue(tmp_path / "in", records(20))
    mine = tmp_path / "out.tmp" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(UserError, match=r"out\.tmp is in the way"):
        run_prep(small_config(), path, tmp_path / "out")
    assert mine.read_text() == "precious"


def test_two_runs_never_write_the_same_folder(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "out.tmp"),
        pytest.raises(UserError, match="another run is writing"),
        lock_folder(tmp_path / "out.tmp"),
    ):
        pass
    with lock_folder(tmp_path / "out.tmp"):  # free again
        pass


def test_a_step_counts_its_own_time_once(tmp_path: Path) -> None:
    clock = iter(float(i) for i in range(100))
    state = RunState(tmp_path, {})
    run_state.CLOCKS["seconds"], real = lambda: next(clock), run_state.CLOCKS["seconds"]
    try:
        state.run("outer", [], lambda: state.run("inner", [], lambda: {"rows": 3}))
    finally:
        run_state.CLOCKS["seconds"] = real
    assert state.seconds() == {"inner": 1.0, "outer": 2.0}  # outer: 0 to 3, of which inner has 1
    assert list(state.seconds("cpu_seconds")) == ["inner", "outer"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_in_every_step_ends_with_the_same_digests(tmp_path: Path) -> None:
    rows = records(300)
    path = write_catalogue(tmp_path / "in", rows)
    (tmp_path / "config.py").write_text(CONFIG_FILE)

    def start(output: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "vitscale.cli", "prep", "--output", str(output)]
        command += ["--config", str(tmp_path / "config.py"), "--input", str(path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    process = start(tmp_path / "whole")
    assert process.wait() == 0, process.stderr.read().decode()  # type: ignore[union-attr]
    markers = tmp_path / "out.tmp" / "steps"
    killed: list[int] = []
    while True:
        known = len(list(markers.glob("*.json")))
        process = start(tmp_path / "out")
        while process.poll() is None and len(list(markers.glob("*.json"))) <= known:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)  # within the next step
        process.wait()
        killed.append(known)
    assert process.returncode == 0, process.stderr.read().decode()  # type: ignore[union-attr]
    assert len(killed) >= len(manifest(tmp_path / "whole")["seconds"]) - 2  # two may end at once
    assert killed == sorted(set(killed))  # every run got further than the one before
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
