"""Damaged checkpoints and full disks: what is found, what is told, and what the run goes on from."""

import logging
import shutil
import subprocess

import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_states import (
    META,
    assert_same,
    host_state,
    hurt_data,
    restore_simple,
    simple_state,
)

from vitscale.config import CheckpointConfig
from vitscale.errors import UserError
from vitscale.models.checksums import find_damage
from vitscale.models.weights import find_step
from vitscale.train.checkpoint import CheckpointStore


@pytest.fixture
def saved(tmp_path):
    """A workdir with the checkpoints 1 and 2."""
    with CheckpointStore(tmp_path, CheckpointConfig()) as store:
        for step in (1, 2):
            store.save(step, simple_state(step), META, {"val/loss": 1.0})
    return tmp_path


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


TARGETS = {
    "array data": lambda folder: largest(folder / "params"),
    "optimiser data": lambda folder: largest(folder / "train"),
    "average": lambda folder: largest(folder / "ema"),
    "manifest": lambda folder: folder / "params/manifest.ocdbt",
    "_METADATA": lambda folder: folder / "train/_METADATA",
    "meta": lambda folder: folder / "meta/metadata",
    "checksums": lambda folder: folder / "checksums.json",
}


def hurt(path, how):
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        flipped = bytes(b ^ 0x11 for b in data[middle : middle + 4])
        path.write_bytes(data[:middle] + flipped + data[middle + 4 :])


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_newest_one_is_named_and_the_one_before_taken(saved, caplog, target, how):
    path = TARGETS[target](saved / "checkpoints/2")
    hurt(path, how)
    with (
        caplog.at_level(logging.WARNING),
        CheckpointStore(saved, CheckpointConfig()) as store,
    ):
        state, meta = restore_simple(store)
        assert meta["step"] == 1
        assert_same(state, host_state(1))
        assert store.steps() == [1]
        # The run goes on to the step of the damaged one.
        store.save(2, simple_state(2), META, {})
        assert restore_simple(store)[1]["step"] == 2
    assert "checkpoint 2 is damaged" in caplog.text
    assert path.relative_to(saved / "checkpoints/2").as_posix() in caplog.text
    assert (saved / "checkpoints/damaged/2").is_dir()
    assert find_step(saved).name == "2"


def test_orbax_alone_returns_flipped_bytes(tmp_path):
    """The reason for checksums of our own; when this fails, Orbax has its own and ours can go."""
    with CheckpointStore(tmp_path, CheckpointConfig()) as store:
        store.save(1, simple_state(1, rows=4096), META, {})
    folder = tmp_path / "checkpoints/1/params"
    hurt_data(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder)
    name = "backbone/a/kernel"
    assert not np.array_equal(arrays[name], host_state(1, rows=4096).params[name])
    assert find_damage(folder.parent)


def test_a_lost_item_is_damage(saved):
    shutil.rmtree(saved / "checkpoints/2/train")
    with CheckpointStore(saved, CheckpointConfig()) as store:
        assert restore_simple(store)[1]["step"] == 1


def test_when_all_are_damaged_the_run_never_starts_anew_by_itself(saved):
    for step in (1, 2):
        hurt_data(saved / f"checkpoints/{step}")
    for _ in range(2):  # the second time they are all set aside already
        with (
            CheckpointStore(saved, CheckpointConfig()) as store,
            pytest.raises(UserError, match=r"no checkpoint .* is whole.*remove .*damaged"),
        ):
            restore_simple(store)
    assert sorted(p.name for p in (saved / "checkpoints/damaged").iterdir()) == ["1", "2"]


def test_shares_of_the_files_cover_all(saved):
    folder = saved / "checkpoints/2"
    name = hurt_data(folder).relative_to(folder).as_posix()
    found = [find_damage(folder, share=share, shares=3) for share in range(3)]
    assert sorted(found) == ["", "", f"{name} has changed since it was written"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


ROWS = 40_000  # a state of 6 MB


def save_two(store):
    store.save(2, simple_state(2, rows=ROWS), META, {})
    store.save(3, simple_state(3, rows=ROWS), META, {})


def save_and_wait(store):
    store.save(2, simple_state(2, rows=ROWS), META, {})
    store.wait()


# What Orbax leaves behind when a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("action", "known"), [(save_two, True), (save_two, False), (save_and_wait, False)]
)
def test_a_full_disk_leaves_the_previous_checkpoint(small_disk, monkeypatch, action, known):
    """known: the lack of space is seen before the write. Otherwise other files take the space meanwhile."""
    with CheckpointStore(small_disk, CheckpointConfig()) as store:
        store.save(1, simple_state(1, rows=ROWS), META, {})
        store.wait()
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (4 << 20))
        if not known:
            monkeypatch.setattr(CheckpointStore, "_check_space", lambda *_: None)
        with pytest.raises(UserError) as caught:
            action(store)
        text = str(caught.value)
        assert f"no space left on {small_disk}/checkpoints: the checkpoint of step 2" in text
        assert "MB needed" in text
        assert "the one of step 1 stands" in text
        assert "lower checkpoint.keep, then run the same command again" in text
        assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["1"]
    filler.unlink()
    with CheckpointStore(small_disk, CheckpointConfig(keep=1)) as store:
        state, _ = restore_simple(store, rows=ROWS)
        assert_same(state, host_state(1, rows=ROWS))


def save_large(store, error=None):
    with store:
        store.save(1, simple_state(1, rows=4 * ROWS), META, {})
        if error:
            raise error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_at_the_end_of_the_run_is_raised_by_the_with_block(small_disk, monkeypatch):
    monkeypatch.setattr(CheckpointStore, "_check_space", lambda *_: None)
    with pytest.raises(UserError, match="no space left on"):
        save_large(CheckpointStore(small_disk, CheckpointConfig()))
    # What ended the run comes first.
    with pytest.raises(KeyError, match="first"):
        save_large(CheckpointStore(small_disk, CheckpointConfig()), KeyError("first"))
