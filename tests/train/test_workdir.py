"""One run at a time and one config a workdir."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket

import pytest
from checkpoint_states import META, simple_state
from test_checkpoint import start

from vitscale.config import CheckpointConfig
from vitscale.errors import UserError
from vitscale.train.checkpoint import CheckpointStore
from vitscale.train.workdir import WorkdirLock, claim_workdir

CLASSES = {"colour": ["red", "blue"]}


def take(workdir):
    with WorkdirLock(workdir):
        pass


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path):
    child = start("hold_lock", tmp_path)
    assert child.stdout.readline() == "held\n", child.stderr.read()
    words = rf"in use by process {child.pid} on {socket.gethostname()} since \d{{4}}-.*another --workdir"
    with pytest.raises(UserError, match=words):
        take(tmp_path)
    # However the holder ends, the lock is free.
    child.send_signal(signal.SIGKILL)
    child.wait()
    take(tmp_path)


def test_a_lock_is_free_after_its_block_and_says_who_holds_it(tmp_path):
    for _ in range(2):
        with WorkdirLock(tmp_path / "new"):
            assert json.loads((tmp_path / "new/.lock").read_text())["pid"] == os.getpid()
            with pytest.raises(UserError, match="in use by process"):
                take(tmp_path / "new")


def test_without_locks_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING):
        take(tmp_path)
    assert "nothing stops a second run" in caplog.text


def test_a_workdir_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        take(tmp_path / "file")


def test_the_config_may_change_until_something_is_saved(make_config, tmp_path):
    claim_workdir(tmp_path, make_config(), CLASSES)
    claim_workdir(tmp_path, make_config(seed=1), CLASSES)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert json.loads((tmp_path / "classes.json").read_text()) == CLASSES


def test_afterwards_only_how_it_runs_may_change(make_config, tmp_path):
    claim_workdir(tmp_path, make_config(), CLASSES)
    with CheckpointStore(tmp_path, CheckpointConfig()) as store:
        store.save(1, simple_state(1), META, {})
    free = {
        "mesh__layout": "fsdp",
        "log__every_steps": 3,
        "checkpoint__keep": 5,
        "survival__max_skipped": 3,
        "validation__every": 5,
        "model__remat": "full",
        "model__attention": "xla",
        "data__num_threads": 3,
    }
    claim_workdir(tmp_path, make_config(**free), CLASSES)
    assert json.loads((tmp_path / "config.json").read_text())["checkpoint"]["keep"] == 5
    with pytest.raises(UserError, match=r"another config \(it differs in optim.lr, seed\)"):
        claim_workdir(tmp_path, make_config(optim__lr=1.0, seed=2), CLASSES)


def test_a_config_file_that_is_cut_short_is_told(make_config, tmp_path):
    claim_workdir(tmp_path, make_config(), CLASSES)
    with CheckpointStore(tmp_path, CheckpointConfig()) as store:
        store.save(1, simple_state(1), META, {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        claim_workdir(tmp_path, make_config(), CLASSES)
