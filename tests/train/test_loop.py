"""Training runs: sharded equals unsharded, resumed equals uninterrupted, wrong set-ups are refused in words."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vitscale.config import InitConfig
from vitscale.config_loading import to_json
from vitscale.errors import Preempted, UserError
from vitscale.models.weights import load_model
from vitscale.train import loop
from vitscale.train.loop import train
from vitscale.train.metrics import read_events, read_metrics
from vitscale.train.telemetry import TIMING_FIELDS


def stream(workdir):
    """The metrics without what a clock measured."""
    return [
        {k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in read_metrics(workdir)
    ]


def test_training_learns_and_leaves_the_promised_files(make_config, tmp_path):
    workdir = tmp_path / "run"
    train(make_config(duration=40, checkpoint__every_steps=20), workdir)
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    assert {"train/colour/loss", "train/shade/loss", "train/grad_norm", "train/lr"} <= rows[
        0
    ].keys()
    assert rows[0]["time_to_first_step"] > 0
    assert {"images_per_sec", "mfu", "input_stall", "checkpoint_blocked", "goodput"} <= rows[
        1
    ].keys()
    assert [event["event"] for event in read_events(workdir)] == ["start", "end"]
    assert "heads/embedding/proxies" in (workdir / "layout.txt").read_text()
    config = json.loads((workdir / "config.json").read_text())
    assert config["optim"]["lr"] == 3e-3
    assert json.loads((workdir / "classes.json").read_text())["shade"] == ["0", "1", "2"]
    assert not list(workdir.rglob("*.tmp"))
    model = load_model(workdir)
    assert model.step == 40
    outputs = jax.jit(model.apply)(model.params, np.zeros((2, 16, 16, 3), np.uint8))
    assert outputs["embedding"].shape == (2, 8)


def test_killed_run_resumes_to_the_same_losses_bit_for_bit(make_config, tmp_path):
    """A real process, a real SIGKILL in the middle."""
    config = make_config(duration=40, checkpoint__every_steps=5)
    train(config, tmp_path / "whole")
    file = tmp_path / "config.py"
    file.write_text(f"import json\ndef get_config():\n    return json.loads({to_json(config)!r})\n")
    command = [sys.executable, "-m", "vitscale.cli", "train", "--config", str(file)]
    command += ["--workdir", str(tmp_path / "killed")]
    child = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "killed")) < 12 and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it was killed"
    reached = len(read_metrics(tmp_path / "killed"))
    assert 12 <= reached < 40
    resumed = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert stream(tmp_path / "killed") == stream(tmp_path / "whole")


def test_sigterm_saves_and_exits_with_75(make_config, tmp_path, monkeypatch):
    config = make_config(duration=30, checkpoint__every_steps=100)
    train(config, tmp_path / "whole")
    real, seen = loop.next_batch, []

    def signal_at_seven(feed, meter):
        seen.append(1)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(feed, meter)

    monkeypatch.setattr(loop, "next_batch", signal_at_seven)
    with pytest.raises(Preempted, match="after step 7"):
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert stream(tmp_path / "stopped") == stream(tmp_path / "whole")


def test_restores_on_another_mesh(make_config, tmp_path):
    train(make_config(duration=4), tmp_path / "run")
    before = load_model(tmp_path / "run").params
    # Same run, another layout: nothing left to do, so it restores and stops.
    state = train(
        make_config(duration=4, mesh={"layout": "fsdp_tp", "fsdp": 2, "tensor": 4}),
        tmp_path / "run",
    )
    for name, value in before.items():
        np.testing.assert_array_equal(value, state.params[name])


def test_init_takes_the_backbone_of_another_run(make_config, tmp_path):
    train(make_config(duration=4), tmp_path / "first")
    taken = load_model(tmp_path / "first").params
    config = make_config(duration=4, seed=1, optim__lr=1e-12, optim__weight_decay=0.0)
    config = dataclasses.replace(config, init=InitConfig(checkpoint=str(tmp_path / "first")))
    state = train(config, tmp_path / "second")
    np.testing.assert_allclose(
        state.params["backbone/norm/scale"], taken["backbone/norm/scale"], atol=1e-6
    )
    assert not np.allclose(
        state.params["heads/embedding/proxies"], taken["heads/embedding/proxies"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__global_batch_size": 12}, "the next one that does is 16"),
        ({"tasks": [{"name": "size", "kind": "single_label"}]}, "no source has labels for it"),
        ({"optim__warmup": 12}, "must be below the run"),
        ({"optim__rules": [{"pattern": "^backbnoe"}, {"pattern": ".*"}]}, "'\\^backbnoe'"),
        ({"init__checkpoint": "/nowhere"}, "no finished checkpoint"),
        ({"model__image_size": 20}, "nearest sizes"),
        ({"mesh": {"layout": "fsdp", "fsdp": 3}}, "do not divide"),
    ],
)
def test_mistakes_are_refused_in_words(make_config, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(make_config(**changes), tmp_path / "run")


def test_workdir_of_another_config_is_refused(make_config, tmp_path):
    train(make_config(duration=4), tmp_path / "run")
    with pytest.raises(UserError, match=r"it differs in optim\.lr"):
        train(make_config(duration=4, optim__lr=1e-2), tmp_path / "run")


def test_init_from_another_shape_is_refused(make_config, tmp_path):
    train(make_config(duration=4), tmp_path / "run")
    config = make_config(model__width=64, init__checkpoint=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"other shapes: .* expected"):
        train(config, tmp_path / "other")


def test_the_hot_loop_allows_no_transfer_that_nobody_asked_for(make_config, tmp_path, monkeypatch):
    """A batch that is still on the host would be sent by the step itself, and the host would wait."""
    monkeypatch.setattr(loop, "put_batch", lambda batch, mesh: batch.arrays())
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(make_config(), tmp_path)


def test_the_host_waits_for_metrics_at_logging_points_only(make_config, tmp_path, monkeypatch):
    read = []
    real = loop.jax.device_get
    monkeypatch.setattr(loop.jax, "device_get", lambda x: read.append(1) or real(x))
    config = make_config(duration=12, log__every_steps=5, checkpoint__every_steps=100)
    train(config, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 5, 10, 12]
    assert len(read) == 4
