"""What a training step moves on an H100, compiled ahead of time: `make test-aot`.

A change that makes XLA split a fusion or keep another activation shows here, on a machine without a GPU.
"""

import sys
from pathlib import Path

import pytest

from vitscale.parallel.aot import has_gpu_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not has_gpu_compiler(), reason="jax's CUDA plugin is not installed: `make test-aot`"
    ),
]

BATCH, DEPTH = 512, 4
# Measured 43.3, 76.5 and 14.5 MB an image and 10.5 GiB (jax 0.10.2), and 3 % more. Gradients of biases in float32
# (model.gradient_dtype) are 2.4 of the 43.3.
OVERHEAD_MB, MATMUL_MB, ATTENTION_MB, MEMORY_GIB = 44.6, 78.8, 15.0, 10.9
MB = 10**6


@pytest.fixture(scope="module")
def traffic_tool():
    """`benchmarks/hlo_traffic.py`, which is a script and not in a package."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import hlo_traffic

        yield hlo_traffic
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def step(traffic_tool):
    """B/16 with fewer layers: every kernel of the whole model is in it, a third of the compile time."""
    config = traffic_tool.training_config("B/16", BATCH, overrides=[f"model.depth={DEPTH}"])
    return traffic_tool.compile_step(config, classes=1000, target="h100")


def test_bytes_outside_products_and_attention_stay_in_budget(step):
    assert step.overhead_bytes_per_image() < OVERHEAD_MB * MB


def test_bytes_of_products_and_attention_stay_in_budget(step):
    kinds = step.traffic()
    assert kinds["matmul"].bytes / BATCH < MATMUL_MB * MB
    assert kinds["attention"].bytes / BATCH < ATTENTION_MB * MB


def test_attention_is_cudnn_and_products_are_those_of_the_formula(step):
    kinds = step.traffic()
    # Forward and backward, a call a layer; in XLA's own attention there would be none.
    assert kinds["attention"].count == 2 * DEPTH
    # A layer has four projections and two MLP products, each with two more backwards; the head has three in all, the
    # patch embedding two: images need no gradient.
    assert kinds["matmul"].count == 3 * 6 * DEPTH + 2 + 3


def test_no_parameter_is_copied(step):
    assert step.traffic()["copy"].bytes < MB


def test_memory_stays_in_budget(step):
    assert step.memory_bytes / 2**30 < MEMORY_GIB
