"""Mesh sizes and where parameters go."""

import jax
import pytest
from jax.sharding import PartitionSpec

from vitscale.config import MeshConfig, ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.multitask import define_model
from vitscale.parallel.mesh import check_batch, make_mesh, resolve_sizes
from vitscale.parallel.rules import LAYOUTS, resolve_layout, resolve_spec


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(fsdp=4), 8, (1, 2, 4, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), 8, (1, 2, 2, 2)),
        (MeshConfig(), 1, (1, 1, 1, 1)),
    ],
)
def test_sizes(config, devices, sizes):
    assert resolve_sizes(config, devices) == sizes


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=3), "do not divide by 3"),
        (MeshConfig(data=2), "needs 2 devices, but there are 8"),
        (MeshConfig(fsdp=-1), "at most one"),
        (MeshConfig(tensor=0), "at least 1"),
    ],
)
def test_impossible_meshes_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        resolve_sizes(config, 8)


def test_batch_must_divide():
    with pytest.raises(UserError, match="the next one that does is 104"):
        check_batch(100, make_mesh(MeshConfig()))


def test_rules_take_each_mesh_axis_once_and_skip_what_does_not_divide():
    sizes = {"replica": 1, "data": 1, "fsdp": 4, "tensor": 2}
    rules = LAYOUTS["fsdp_tp"]
    assert resolve_spec(("embed", "mlp"), (64, 256), sizes, rules) == PartitionSpec(
        "fsdp", "tensor"
    )
    assert resolve_spec(("embed", "mlp"), (66, 255), sizes, rules) == PartitionSpec(None, None)
    assert resolve_spec(("embed",), (64,), sizes, LAYOUTS["dp"]) == PartitionSpec(None)


def test_layout_table_adds_up():
    tasks = (TaskConfig("kind", "single_label"),)
    definition = define_model(
        ModelConfig(variant="mu/8", image_size=16), tasks, {"kind": ["a"] * 8}
    )
    sizes = {"replica": 1, "data": 1, "fsdp": 4, "tensor": 2}
    rows = resolve_layout(definition.shapes(), definition.axes(), sizes, "fsdp_tp")
    whole = resolve_layout(definition.shapes(), definition.axes(), sizes, "dp")
    assert sum(r.bytes_per_device for r in whole) == 4 * sum(
        s.size for s in definition.shapes().values()
    )
    kernel = next(r for r in rows if r.name == "backbone/blocks/0/mlp/hidden/kernel")
    assert kernel.bytes_per_device == 32 * 128 * 4 // 8


def test_eight_devices_are_here():
    assert jax.device_count() == 8
