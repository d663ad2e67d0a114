"""`vitscale launch local` with real processes."""

import subprocess
import sys

import pytest

from launch.local import launch_local
from vitscale.config_loading import to_json
from vitscale.errors import UserError
from vitscale.train.hooks import read_metrics


def launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitscale.cli", "launch", "local", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_train_like_one(make_config, tmp_path):
    config = tmp_path / "config.py"
    text = to_json(make_config(total_steps=6, checkpoint__every_steps=3))
    config.write_text(f"import json\ndef get_config():\n    return json.loads({text!r})\n")
    losses = {}
    for processes, devices in ((1, 4), (2, 2)):
        workdir = tmp_path / f"run{processes}"
        places = ["--processes", str(processes), "--devices", str(devices)]
        command = ["--", "train", "--config", str(config), "--workdir", str(workdir)]
        result = launch([*places, *command])
        assert result.returncode == 0, result.stdout + result.stderr
        losses[processes] = [row["train/loss"] for row in read_metrics(workdir)]
    assert len(losses[1]) == 6
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)


def test_one_failing_process_is_an_error_with_its_words(tmp_path):
    result = launch(
        ["--processes", "2", "--devices", "1", "--", "train", "--config", "no.py", "--workdir", "x"]
    )
    assert result.returncode == 2
    assert "config file no.py does not exist" in result.stdout
    assert "ended with code 2" in result.stderr


@pytest.mark.parametrize(("command", "processes"), [([], 1), (["train"], 0)])
def test_nonsense_is_refused(command, processes):
    with pytest.raises(UserError):
        launch_local(command, processes=processes)
