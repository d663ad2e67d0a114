"""`vitscale plan` with the compiler of GPUs, and attention by cuDNN, neither of which is here: `make test-aot`."""

import json

import pytest

from vitscale.cli import main
from vitscale.parallel.aot import CHIPS, has_gpu_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not has_gpu_compiler(), reason="jax's CUDA plugin: `make test-aot`"),
]


@pytest.mark.parametrize("chip", ["a100-80gb", "h100"])
def test_a_plan_of_gpus(chip, tmp_path, capsys):
    words = ["plan", "--config", "configs/pretrain_vit_b16.py", "--topology", f"{chip}:8"]
    words += ["--config.data.global_batch_size=1024", "--config.model.depth=2"]
    assert main([*words, "--json", str(tmp_path / "plan.json")]) == 0, capsys.readouterr().err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["compiled"]
    assert plan["on_real_chips"]
    assert plan["fits"]
    assert plan["device_memory"] == CHIPS[chip].memory_bytes
    assert plan["hosts"] == 1
    # Products, or memory counted kernel by kernel: this small a step is near both.
    assert 0.3 < plan["seconds"]["memory"] / plan["seconds"]["compute"] < 3
