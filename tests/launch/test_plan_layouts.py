"""Plans by libtpu of the four layouts of FINDINGS 2: `make test-aot-tpu`."""

import pytest

from launch.plan import Plan, make_plan
from launch.plan_search import mesh_sizes
from launch.preflight import check_plan
from vitscale.config import TrainConfig
from vitscale.config_loading import from_mapping
from vitscale.errors import UserError
from vitscale.parallel.aot import has_tpu_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_tpu_compiler(), reason="libtpu is not here: `make test-aot-tpu`"),
]
# ViT-22B (Dehghani et al., 2023, arXiv 2302.05442, table 1).
VIT_22B = {"variant": "e/14", "width": 6144, "depth": 48, "mlp_dim": 24576, "num_heads": 48}


def config_of(model: dict, mesh: dict, batch: int, remat: str = "full") -> TrainConfig:
    tree = {
        "duration": 1000,
        "model": {
            **{"scan_layers": True, "compute_dtype": "bfloat16", "remat": remat},
            **model,
        },
        "mesh": mesh,
        "data": {
            "root": "/nowhere",
            "sources": [{"kind": "shards", "path": "shards"}],
            "global_batch_size": batch,
        },
        "tasks": [{"name": "label", "kind": "single_label", "num_classes": 1024}],
    }
    return from_mapping(TrainConfig, tree)


def planned(topology: str, model: dict, mesh: dict, batch: int, remat: str = "full") -> Plan:
    plan = make_plan(config_of(model, mesh, batch, remat), topology)
    print(
        f"\n{model['variant']} {remat} on {topology}: {plan.memory.temporaries / 2**30:.2f} GiB of temporaries, peak "
        f"{plan.memory.peak / 2**30:.2f}, {plan.compile_seconds:.0f} s"
    )
    assert plan.on_real_chips
    return plan


def test_b_on_16_chips():
    mesh = {"layout": "fsdp", "fsdp": 16}
    plan = planned("v5e:4x4", {"variant": "B/16"}, mesh, 512, remat="none")
    assert plan.fits
    assert plan.hosts == 4
    assert plan.warnings == ()
    # Two bfloat16 passes over the parameters, and one of float32 gradients (the classifier's is split otherwise). Some
    # shards go round while the product with them is made: libtpu permutes those instead of gathering them.
    ways = ("all-gather", "reduce-scatter", "collective-permute")
    for dtype, wanted in (("bf16", 2 * 2 * 86e6), ("f32", 4 * 86e6)):
        sent = sum(s for (kind, _, its), s in plan.sent.items() if kind in ways and its == dtype)
        assert sent == pytest.approx(wanted, rel=0.1)


def test_remat_is_what_fits_l_on_256_chips_and_its_shards_of_4_rows_are_named():
    mesh = {"layout": "fsdp", "fsdp": 256}
    plans = {
        remat: planned("v5e:16x16", {"variant": "L/16"}, mesh, 16_384, remat)
        for remat in ("full", "dots", "none")
    }
    temporaries = [plans[remat].memory.temporaries for remat in ("full", "dots", "none")]
    # FINDINGS 2: 0.64, 3.2 and 15.3 GiB, at another batch size.
    assert temporaries[0] < temporaries[1] / 2
    assert temporaries[1] < temporaries[2] / 2
    assert not plans["none"].fits
    assert plans["full"].fits
    assert any("shards of 4 rows" in sentence for sentence in plans["full"].warnings)
    # And what they cost: gathers that are all-reduces.
    reduced = sum(s for (kind, *_), s in plans["full"].sent.items() if kind == "all-reduce")
    gathered = sum(s for (kind, *_), s in plans["full"].sent.items() if kind == "all-gather")
    assert reduced > gathered


def test_g_over_data_8_and_fsdp_32():
    mesh = {"layout": "fsdp", "data": 8, "fsdp": 32}
    plan = planned("v5e:16x16", {"variant": "G/14"}, mesh, 1024)
    assert plan.fits
    with pytest.raises(UserError, match=r"do not divide by 384"):
        mesh_sizes(
            config_of({"variant": "G/14"}, {"layout": "fsdp", "fsdp": 384}, 1024).mesh, "v5e:16x16"
        )


def test_22b_over_fsdp_64_and_tensor_8():
    mesh = {"layout": "fsdp_tp", "fsdp": 64, "tensor": 8}
    plan = planned("v5p:8x8x8", VIT_22B, mesh, 512)
    assert plan.fits
    assert plan.memory.parameters * 512 == pytest.approx(4 * 21.8e9, rel=0.05)


def test_a_launch_is_refused_what_the_compiler_refuses(tmp_path):
    page = "from configs.pretrain_vit_b16 import get_config as page\ndef get_config():\n    return page()\n"
    (tmp_path / "config.py").write_text(page)
    command = ["train", "--config", str(tmp_path / "config.py"), "--workdir", "w"]
    command.append("--config.data.global_batch_size=65536")
    with pytest.raises(UserError, match=r"GiB a device on v5e:4x4\). Change it, or launch with"):
        check_plan(command, "v5e:4x4")
