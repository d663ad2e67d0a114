"""Every recipe: where its parameters lie, from sizes alone; and, slowly, that it fits the chips it names.

The layouts are compared with `golden/<recipe>.json`. A change that is meant:
    UPDATE_GOLDEN=1 .venv/bin/python -m pytest -n0 tests/parallel/test_recipes.py
The slow part compiles each recipe ahead of time: `make test-aot-tpu`, and `make test-aot` for the GPUs.
"""

import dataclasses
import functools
import json
import math
import os
import time
from pathlib import Path

import pytest

from configs.common import RECIPES
from launch.plan import known_classes
from vitscale.config import TrainConfig
from vitscale.config_loading import load_config
from vitscale.errors import UserError
from vitscale.models.flops import data_sheet_peak
from vitscale.models.multitask import define_model_from_counts
from vitscale.parallel.aot import (
    CHIPS,
    GIB,
    assume_kernels,
    fits,
    has_gpu_compiler,
    has_tpu_compiler,
    parse_topology,
    peak_memory,
    topology_devices,
)
from vitscale.parallel.mesh import AXES, resolve_sizes
from vitscale.parallel.rules import LayoutRow, layout_table, layout_warnings, resolve_layout
from vitscale.train.setup import lower_step

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
recipes = pytest.mark.parametrize("path", RECIPES, ids=lambda path: Path(path).stem)


def _config(path: str) -> TrainConfig:
    return load_config(TrainConfig, str(ROOT / path))


@functools.cache
def _layout(config: TrainConfig, topology_name: str) -> tuple[dict[str, int], list[LayoutRow]]:
    """Mesh sizes and the place of every parameter, without a device."""
    topology = parse_topology(topology_name)
    chips = topology.slices * math.prod(topology.shape)
    is_gpu = not topology.chip.torus
    slices = chips // topology.chip.chips_per_host if is_gpu else topology.slices
    if is_gpu and config.mesh.layout != "hybrid":
        slices = 1
    sizes = dict(zip(AXES, resolve_sizes(config.mesh, chips, slices), strict=True))
    definition = define_model_from_counts(config.model, config.tasks, known_classes(config))
    return sizes, resolve_layout(definition.shapes(), definition.axes(), sizes, config.mesh.layout)


def _summary(sizes: dict[str, int], rows: list[LayoutRow]) -> dict:
    return {
        "mesh": sizes,
        "warnings": layout_warnings(rows),
        # name: shape, what each dimension is split over, bytes a device
        "parameters": {
            name: [shape, spec, size] for name, shape, _, spec, size in layout_table(rows)
        },
    }


@recipes
def test_layout_is_the_golden_one(path):
    summary = _summary(*_layout(_config(path), RECIPES[path]))
    golden = GOLDEN / f"{Path(path).stem}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(summary, indent=1) + "\n")
    assert summary == json.loads(golden.read_text())


@recipes
def test_shards_are_whole_tiles(path):
    config = _config(path)
    _, rows = _layout(config, RECIPES[path])
    assert [row.name for row in rows if row.is_padded] == []
    assert any(row.shard_rows for row in rows) == (config.mesh.layout != "dp")


def test_a_mesh_that_cuts_tiles_is_named_with_its_parameter():
    config = _config("configs/pretrain_vit_l16.py")
    mesh = dataclasses.replace(config.mesh, fsdp=256, data=1)
    _, rows = _layout(dataclasses.replace(config, mesh=mesh), "v5e:16x16")
    warnings = layout_warnings(rows)
    # Width 1,024 over 256 chips; the MLP has a dimension of 4,096 to split instead.
    query = next(line for line in warnings if "attention/query/kernel" in line)
    assert "shards of 4 rows" in query
    assert "smaller mesh.fsdp" in query
    assert not any("mlp/hidden/kernel" in line for line in warnings)


def _has_compiler(path: str) -> bool:
    return has_tpu_compiler() if parse_topology(RECIPES[path]).chip.torus else has_gpu_compiler()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@recipes
def test_compiles_inside_the_memory_of_its_chips(path):
    if not _has_compiler(path):
        pytest.skip(
            "its compiler is not installed: `make test-aot-tpu` (TPU), `make test-aot` (GPU)"
        )
    topology = RECIPES[path]
    start = time.perf_counter()
    chip = parse_topology(topology).chip
    with assume_kernels(chip):
        config = _config(path)
        _, lowered = lower_step(config, topology_devices(topology), known_classes(config))
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    print(
        f"\n{Path(path).stem} on {topology}: {peak_memory(compiled) / GIB:.2f} of "
        f"{chip.device_memory / GIB:.0f} GiB, compiled in {seconds:.0f} s"
    )
    assert fits(compiled, chip)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "v7x:4x4",
            "write a chip .v4, v5e, v5p, v6e, tpu7x, a100-40gb, a100-80gb, h100, h200. and its shape",
        ),
        ("v5e", "as in v5e:4x4"),
        ("v5p:8x8", "of the form v5p:NxNxN"),
        ("2*h100:8", "hosts x GPUs"),
    ],
)
def test_unknown_topologies_are_refused_in_words(name, words):
    with pytest.raises(UserError, match=words):
        parse_topology(name)


def test_chips_have_the_peaks_that_mfu_is_measured_by():
    known = {chip.name: data_sheet_peak(chip.device_name) for chip in CHIPS.values()}
    assert {n: p for n, p in known.items() if p} == {
        n: CHIPS[n].flops for n, p in known.items() if p
    }
    assert known["v5e"]
    assert known["h100"]
