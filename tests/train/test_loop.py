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

from vitscale.config import InitConfig, MeshConfig, TrainConfig
from vitscale.config_loading import to_json
from vitscale.errors import Preempted, UserError
from vitscale.models.multitask import define_model
from vitscale.models.weights import load_model
from vitscale.parallel.mesh import make_mesh
from vitscale.train.hooks import read_metrics
from vitscale.train.loop import build, init_state, make_loader, open_data, put_batch, train

TIMINGS = ("images_per_sec", "mfu", "input_stall")


def stream(workdir):
    """The metrics without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(workdir)]


def run_steps(config: TrainConfig, devices: int, steps: int = 3):
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    classes, sources = open_data(config.data)
    definition = define_model(config.model, config.tasks, classes)
    setup = build(definition, config, mesh)
    loader = make_loader(config, sources)
    create = jax.jit(
        lambda: init_state(definition, setup.optimizer, 0), out_shardings=setup.shardings
    )
    state, losses = create(), []
    for _ in range(steps):
        state, metrics = setup.step(state, put_batch(next(loader), mesh))
        losses.append({k: float(v) for k, v in metrics.items()})
    loader.close()
    return state, losses


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(),
        MeshConfig(fsdp=4),
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(replica=2, layout="fsdp", fsdp=2),
    ],
    ids=lambda m: f"r{m.replica}_f{m.fsdp}_t{m.tensor}_{m.layout}",
)
def test_sharded_step_equals_the_single_device_step(make_config, mesh):
    config = make_config()
    one, losses_one = run_steps(config, devices=1)
    many, losses_many = run_steps(dataclasses.replace(config, mesh=mesh), devices=8)
    for a, b in zip(losses_one, losses_many, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-5, err_msg=name)
    for name, value in one.params.items():
        # Softmax does not see the keys' bias: its gradient is rounding noise, and Adam divides noise by noise.
        if not name.endswith("attention/key/bias"):
            np.testing.assert_allclose(value, many.params[name], atol=2e-4, err_msg=name)


def test_parameters_and_moments_are_really_sharded(make_config):
    state, _ = run_steps(make_config(mesh={"fsdp": 4, "tensor": 2}), devices=8, steps=1)
    name = "backbone/blocks/0/mlp/hidden/kernel"
    assert state.params[name].addressable_shards[0].data.shape == (32 // 4, 128 // 2)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (32, 128)]
    assert len(moments) == 2
    assert all(m.sharding == state.params[name].sharding for m in moments)


def test_every_array_of_the_state_has_its_declared_dtype(make_config):
    state, _ = run_steps(make_config(model__compute_dtype="bfloat16"), devices=1, steps=1)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(state.opt_state)} == {"float32", "int32"}


def test_training_learns_and_leaves_the_promised_files(make_config, tmp_path):
    workdir = tmp_path / "run"
    train(make_config(total_steps=40, checkpoint__every_steps=20), workdir)
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    assert {
        "train/colour/loss",
        "train/shade/loss",
        "images_per_sec",
        "mfu",
        "input_stall",
    } <= rows[0].keys()
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
    config = make_config(total_steps=40, checkpoint__every_steps=5)
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
    config = make_config(total_steps=30, checkpoint__every_steps=100)
    train(config, tmp_path / "whole")
    import vitscale.train.loop as loop

    real, seen = loop.put_batch, []

    def signal_at_seven(batch, mesh):
        seen.append(1)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", signal_at_seven)
    with pytest.raises(Preempted, match="after step 7"):
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert stream(tmp_path / "stopped") == stream(tmp_path / "whole")


def test_restores_on_another_mesh(make_config, tmp_path):
    train(make_config(total_steps=4), tmp_path / "run")
    before = load_model(tmp_path / "run").params
    # Same run, another layout: nothing left to do, so it restores and stops.
    state = train(make_config(total_steps=4, mesh={"fsdp": 2, "tensor": 4}), tmp_path / "run")
    for name, value in before.items():
        np.testing.assert_array_equal(value, state.params[name])


def test_init_takes_the_backbone_of_another_run(make_config, tmp_path):
    train(make_config(total_steps=4), tmp_path / "first")
    taken = load_model(tmp_path / "first").params
    config = make_config(total_steps=4, seed=1, optim__lr=1e-12, optim__weight_decay=0.0)
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
        ({"optim__warmup_steps": 12}, "must be below total_steps"),
        ({"optim__lr_multipliers": {"^backbnoe": 0.1}}, "matches no parameter"),
        ({"init__checkpoint": "/nowhere"}, "no finished checkpoint"),
        ({"model__image_size": 20}, "nearest sizes"),
        ({"mesh": {"fsdp": 3}}, "do not divide"),
    ],
)
def test_mistakes_are_refused_in_words(make_config, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(make_config(**changes), tmp_path / "run")


def test_workdir_of_another_config_is_refused(make_config, tmp_path):
    train(make_config(total_steps=4), tmp_path / "run")
    with pytest.raises(UserError, match=r"it differs in optim\.lr"):
        train(make_config(total_steps=4, optim__lr=1e-2), tmp_path / "run")


def test_init_from_another_shape_is_refused(make_config, tmp_path):
    train(make_config(total_steps=4), tmp_path / "run")
    config = make_config(model__width=64, init__checkpoint=str(tmp_path / "run"))
    with pytest.raises(UserError, match="and should be"):
        train(config, tmp_path / "other")
