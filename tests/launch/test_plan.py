"""`vitscale plan` where no compiler of the chips is installed: as many fake CPU devices, and it says so."""

import os
import subprocess
import sys

import pytest

from launch.plan import count_devices
from vitscale.config_loading import to_json
from vitscale.errors import UserError
from vitscale.parallel.aot import has_tpu_compiler


def plan(config, folder, *arguments):
    path = folder / "config.py"
    path.write_text(f"import json\ndef get_config():\n    return json.loads({to_json(config)!r})\n")
    command = [sys.executable, "-m", "vitscale.cli", "plan", "--config", str(path), *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(has_tpu_compiler(), reason="libtpu is here: plans are made with it")
def test_layout_memory_and_collectives_are_printed(make_config, tmp_path):
    config = make_config(data__global_batch_size=32, mesh={"layout": "fsdp", "fsdp": 4})
    result = plan(config, tmp_path, "--topology", "v5e:2x4", "--output", str(tmp_path / "p.txt"))
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert (tmp_path / "p.txt").read_text() == text
    assert "mesh: replica 1 x data 2 x fsdp 4 x tensor 1" in text
    assert "heads/embedding/proxies" in text
    assert "8 fake CPU devices in place of v5e" in text
    assert "of 16 GiB: fits" in text
    assert "all-gather" in text
    # Width 32 over 4: shards of 8 rows; the 2 x 2 positions are not split along them.
    assert "warning: " not in text


@pytest.mark.skipif(has_tpu_compiler(), reason="libtpu is here: plans are made with it")
def test_what_does_not_fit_is_an_exit_code_and_a_way_out(make_config, tmp_path):
    config = make_config(data__global_batch_size=2**21)
    result = plan(config, tmp_path, "--topology", "v5e:1x1")
    assert result.returncode == 1
    assert "DOES NOT FIT" in result.stdout
    assert "optim.accumulate_steps" in result.stderr


def test_topologies():
    assert count_devices("4*v5e:16x16") == 1024
    assert count_devices("v5p:8x8x8") == 512
    assert count_devices("h100:32") == 32
    with pytest.raises(UserError, match=r"v5e:4x4, v5p:8x8x8"):
        count_devices("v5litepod-16")
