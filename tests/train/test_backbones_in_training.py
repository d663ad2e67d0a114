"""What backbones ask of the trainer: batch statistics, dropout keys, sampled patch sizes, other layouts."""

import dataclasses

import jax
import numpy as np
import pytest

from vitscale.config import MeshConfig
from vitscale.errors import UserError
from vitscale.models import resnet
from vitscale.models.layers import unstack_layers
from vitscale.models.multitask import define_model
from vitscale.models.weights import load_model
from vitscale.parallel.mesh import make_mesh
from vitscale.train import loop
from vitscale.train.initialise import initial_params
from vitscale.train.loop import build, init_state, make_loader, open_data, train
from vitscale.train.metrics import read_metrics
from vitscale.train.step import sample_patch_size

REGULARISED = {"variant": "mu/8", "image_size": 16, "dropout": 0.1, "stochastic_depth": 0.2}
CNN = {"variant": "resnet50", "image_size": 32}


@pytest.fixture
def shallow_resnet(monkeypatch):
    """Two stages of one block: the whole of resnet50 would compile for a minute, and its parts are the same."""
    monkeypatch.setitem(resnet.PRESETS, "resnet50", resnet.ResNetSize((1, 1)))


def losses(workdir):
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir)}


def one_step(config, devices):
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    classes, sources = open_data(config.data)
    definition = define_model(config.model, config.tasks, classes)
    setup = build(definition, config, mesh)
    state = jax.jit(
        lambda: init_state(definition, setup.optimizer, 0), out_shardings=setup.shardings
    )()
    with make_loader(config, sources) as loader:
        return setup.step(state, loop.put_batch(next(loader), mesh), None)


def test_batch_statistics_are_of_the_global_batch(make_config, shallow_resnet):
    config = make_config(model=CNN)
    one, metrics_one = one_step(config, devices=1)
    sharded = dataclasses.replace(
        config, mesh=MeshConfig(layout="fsdp_tp", data=2, fsdp=2, tensor=2)
    )
    many, metrics_many = one_step(sharded, devices=8)
    assert float(metrics_one["loss"]) == pytest.approx(float(metrics_many["loss"]), rel=1e-4)
    assert one.statistics
    moved = 0
    for name, value in one.statistics.items():
        np.testing.assert_allclose(value, many.statistics[name], rtol=2e-3, atol=2e-4, err_msg=name)
        moved += bool(np.abs(value - name.endswith("/var")).max() > 1e-3)
    assert moved > len(one.statistics) / 2


def test_a_cnn_trains_saves_and_is_read_back_with_its_statistics(
    make_config, tmp_path, shallow_resnet
):
    config = make_config(model={**CNN, "cnn_norm": "batch"}, duration=3)
    state = train(config, tmp_path)
    model = load_model(tmp_path)
    assert model.params.keys() == {**state.params, **state.statistics}.keys()
    name = next(name for name in state.statistics if name.endswith("stem/norm/var"))
    np.testing.assert_array_equal(model.params[name], state.statistics[name])
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    outputs = jax.jit(model.apply)(model.params, images)
    assert outputs["pooled"].shape == (2, 512)
    # Statistics belong to the model, not to what an optimiser touches.
    assert not set(state.statistics) & set(state.params)


def test_dropout_follows_the_step_so_that_resumed_equals_uninterrupted(make_config, tmp_path):
    whole = make_config(model=REGULARISED, duration=6, checkpoint={"every_steps": 3})
    train(whole, tmp_path / "whole")
    folder = tmp_path / "whole" / "checkpoints"
    (folder / "6").rename(tmp_path / "gone")
    before = losses(tmp_path / "whole")
    train(whole, tmp_path / "whole")
    assert losses(tmp_path / "whole") == before


def test_patch_sizes_are_sampled_by_step(make_config, tmp_path):
    config = make_config(model__patch_sizes=[4, 8], duration=8)
    sizes = [sample_patch_size(config, step) for step in range(100)]
    assert set(sizes) == {4, 8}
    assert 30 < sizes.count(4) < 70
    assert sizes == [sample_patch_size(config, step) for step in range(100)]
    assert sample_patch_size(make_config(), 0) is None
    train(config, tmp_path)
    assert len(losses(tmp_path)) == 8


def test_init_adapts_layout_resolution_and_patch_size(make_config, tmp_path):
    first = make_config(duration=3, model__scan_layers=True, model__depth=2)
    train(first, tmp_path)
    taken = unstack_layers(load_model(tmp_path).params)
    second = make_config(
        model={"variant": "mu/4", "depth": 2, "image_size": [24, 16]},
        init__checkpoint=str(tmp_path),
    )
    classes, _ = open_data(second.data)
    params, _ = initial_params(second.init, define_model(second.model, second.tasks, classes))
    assert params["backbone/position_embedding"].shape == (24, 32)
    assert params["backbone/patch_embedding/kernel"].shape == (48, 32)
    name = "backbone/blocks/1/mlp/out/kernel"
    np.testing.assert_array_equal(params[name], taken[name])


def test_non_square_images_train(make_config, tmp_path):
    train(make_config(model__image_size=[16, 24], duration=3), tmp_path)
    shape = load_model(tmp_path).params["backbone/position_embedding"].shape
    assert shape == (6, 32)


def test_a_kernel_that_this_machine_lacks_is_refused_before_anything_is_built(
    make_config, tmp_path
):
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        train(make_config(model__attention="cudnn"), tmp_path)


def test_a_checkpoint_of_another_machines_kernel_is_read_here(make_config, tmp_path):
    from vitscale.models.weights import write_model

    config = make_config(model__attention="tpu_flash", model__remat="full")
    classes, _ = open_data(config.data)
    definition = define_model(config.model, config.tasks, classes)
    params = jax.jit(definition.init)(0)
    write_model(tmp_path, config.model, config.tasks, classes, params)
    model = load_model(tmp_path)
    assert (model.model.attention, model.model.remat) == ("auto", "none")
    images = np.zeros((1, 16, 16, 3), np.uint8)
    assert model.apply(model.params, images)["colour"].shape == (1, 3)
    with pytest.raises(UserError, match="holds checkpoints already"):
        write_model(tmp_path, config.model, config.tasks, classes, params)
