"""Freed buffers stay in the process: seen in the page faults of a process of its own."""

import subprocess
import sys

import pytest

from vitscale.parallel.host_memory import computes_on_cpu

PROGRAM = """
import resource, sys
import numpy as np
from vitscale.parallel.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
np.ones(4_000_000)  # 32 MB, touched: the heap grows to its size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_freed_buffer_is_not_faulted_in_again():
    def run(mode):
        command = [sys.executable, "-c", PROGRAM, mode]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    could, faults = run("keep")
    assert could == "True"
    assert int(faults) < 1_000  # pages; each of the 20 arrays has 7,800 (or 16 huge ones)


def test_the_platform_is_known_without_starting_jax(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert computes_on_cpu()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not computes_on_cpu()
