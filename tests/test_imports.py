"""The core imports neither TensorFlow nor PyTorch, also where they are installed."""

import os
import subprocess
import sys

import pytest

MODULES = [
    "vitscale",
    "vitscale.cli",
    "vitscale.data.loader",
    "vitscale.models.weights",
    "vitscale.train.loop",
    "vitscale.evals.evaluate",
    "data_prep.pipeline",
    "data_prep.shop",
]


@pytest.mark.parametrize("module", MODULES)
def test_no_tensorflow_and_no_torch(module, tmp_path):
    # Stand-ins that can be imported: with nothing installed, an optional import would go unseen.
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text("")
    code = f"import {module}, sys; print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_catalogue_imports_no_jax():
    code = "import data_prep.shop, sys; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
