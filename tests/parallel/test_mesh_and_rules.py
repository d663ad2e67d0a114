"""Mesh sizes and where parameters go."""

from dataclasses import dataclass

import jax
import pytest
from jax.sharding import PartitionSpec

from vitscale.config import MeshConfig, ModelConfig, TaskConfig
from vitscale.errors import UserError
from vitscale.models.multitask import define_model
from vitscale.parallel.mesh import check_batch, make_mesh, resolve_sizes
from vitscale.parallel.rules import (
    LAYOUTS,
    add_zero1,
    layout_table,
    layout_warnings,
    resolve_layout,
    resolve_spec,
)


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(layout="fsdp_tp", fsdp=4), 8, (1, 2, 4, 1)),
        (MeshConfig(layout="fsdp_tp", data=2, fsdp=-1, tensor=2), 8, (1, 2, 2, 2)),
        (MeshConfig(layout="fsdp"), 8, (1, 1, 8, 1)),
        (MeshConfig(layout="fsdp_tp", tensor=2), 8, (1, 1, 4, 2)),
        (MeshConfig(layout="hybrid", replica=2), 8, (2, 1, 4, 1)),
        (MeshConfig(), 1, (1, 1, 1, 1)),
    ],
)
def test_sizes(config, devices, sizes):
    assert resolve_sizes(config, devices) == sizes


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(layout="fsdp", fsdp=3), "do not divide by 3"),
        (MeshConfig(data=2), "needs 2 devices, but there are 8"),
        (MeshConfig(layout="fsdp", data=-1, fsdp=-1), "at most one"),
        (MeshConfig(tensor=0), "at least 1"),
        (MeshConfig(fsdp=2), "splits no parameter; use layout=fsdp"),
        (MeshConfig(layout="fsdp", tensor=2), "does not use `tensor`; use layout=fsdp_tp"),
    ],
)
def test_impossible_meshes_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        resolve_sizes(config, 8)


def test_replicas_run_across_slices():
    assert resolve_sizes(MeshConfig(), 8, num_slices=2) == (2, 4, 1, 1)
    assert resolve_sizes(MeshConfig(layout="hybrid"), 8, num_slices=2) == (2, 1, 4, 1)
    with pytest.raises(UserError, match="2 slices need replica=2"):
        resolve_sizes(MeshConfig(layout="fsdp", replica=1), 8, num_slices=2)


@dataclass(frozen=True)
class Device:
    """What `make_mesh` asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"


def test_devices_of_a_slice_are_one_block_and_gpu_hosts_are_slices_of_a_hybrid_mesh():
    slices = [Device(i, 0, i % 2) for i in range(8)]  # interleaved
    mesh = make_mesh(MeshConfig(layout="fsdp"), slices)
    assert mesh.devices.shape == (2, 1, 4, 1)
    assert [[d.slice_index for d in row.flat] for row in mesh.devices] == [[0] * 4, [1] * 4]
    hosts = [Device(i, i // 4, 0) for i in range(8)]
    assert make_mesh(MeshConfig(layout="hybrid"), hosts).devices.shape == (2, 1, 4, 1)
    assert make_mesh(MeshConfig(layout="fsdp"), hosts).devices.shape == (1, 1, 8, 1)
    with pytest.raises(UserError, match="unequal size"):
        make_mesh(MeshConfig(), slices[:7])


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


def test_shards_of_whole_tiles_come_first_and_others_are_named():
    sizes = {"replica": 1, "data": 1, "fsdp": 16, "tensor": 1}
    rules = LAYOUTS["fsdp"]
    # 96 / 16 = 6 rows would not fill a tile of 8; 256 / 16 do.
    assert resolve_spec(("embed", "mlp"), (96, 256), sizes, rules) == PartitionSpec(None, "fsdp")
    shapes = {"kernel": jax.ShapeDtypeStruct((96, 48), "float32")}
    (row,) = resolve_layout(shapes, {"kernel": ("embed", "mlp")}, sizes, "fsdp")
    assert row.shard_rows == 6
    (sentence,) = layout_warnings([row])
    assert "kernel" in sentence
    assert "6 rows" in sentence


def test_class_tables_are_split_over_both_axes_and_vectors_stay_whole():
    sizes = {"replica": 1, "data": 1, "fsdp": 4, "tensor": 2}
    both = ("fsdp", "tensor")
    for layout in ("fsdp_tp", "hybrid"):
        rules = LAYOUTS[layout]
        assert resolve_spec(("embed", "classes"), (64, 1024), sizes, rules) == PartitionSpec(
            None, both
        )
        assert resolve_spec(("classes", "projection"), (1024, 64), sizes, rules) == PartitionSpec(
            both, None
        )
        assert resolve_spec(("classes",), (1024,), sizes, rules) == PartitionSpec(both)
        assert resolve_spec(("embed",), (64,), sizes, rules) == PartitionSpec(None)
        assert resolve_spec(("layers", "embed"), (4, 64), sizes, rules) == PartitionSpec(None, None)


def test_zero1_takes_a_dimension_that_is_left():
    sizes = {"replica": 1, "data": 4, "fsdp": 2, "tensor": 1}
    spec = PartitionSpec("fsdp", None)
    assert add_zero1(spec, (16, 64), sizes) == PartitionSpec("fsdp", "data")
    assert add_zero1(spec, (64, 30), sizes) == PartitionSpec(("fsdp", "data"), None)
    assert add_zero1(spec, (6, 30), sizes) == spec
    assert add_zero1(PartitionSpec(None), (64,), sizes) == PartitionSpec(None)


def test_the_table_joins_equal_blocks():
    shapes = {f"blocks/{i}/kernel": jax.ShapeDtypeStruct((64, 64), "float32") for i in range(3)}
    axes = dict.fromkeys(shapes, ("embed", "mlp"))
    sizes = {"replica": 1, "data": 1, "fsdp": 2, "tensor": 1}
    rows = layout_table(resolve_layout(shapes, axes, sizes, "fsdp"))
    assert rows == [("blocks/*/kernel (x 3)", "(64, 64)", "embed, mlp", "fsdp, -", f"{3 * 8192:,}")]


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
