"""Several processes on this machine, joined by `jax.distributed`: what a pod does, small enough for a test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from vitscale.errors import UserError


def launch_local(command: Sequence[str], *, processes: int, devices: int | None = None) -> None:
    """Runs `vitscale COMMAND` in every process, output prefixed by its number. One failure stops them all.

    `devices`: that many fake CPU devices a process; None: the real devices of the machine.
    Raises `UserError` naming the first process that failed.
    """
    if processes < 1:
        raise UserError(f"--processes={processes} must be at least 1.")
    if not command:
        raise UserError(
            "name the command to run after `--`, such as: -- train --config X --workdir D."
        )
    port = _free_port()
    children = [_start(command, rank, processes, port, devices) for rank in range(processes)]
    readers = [threading.Thread(target=_relay, args=(c, r)) for r, c in enumerate(children)]
    for reader in readers:
        reader.start()
    try:
        failed = _wait(children)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
        for reader in readers:
            reader.join()
    if failed is not None:
        raise UserError(
            f"process {failed} ended with code {children[failed].returncode}; its last lines are above."
        )


def _start(
    command: Sequence[str], rank: int, processes: int, port: int, devices: int | None
) -> subprocess.Popen[str]:
    environment = dict(os.environ)
    if processes > 1:
        environment |= {
            "VITSCALE_COORDINATOR": f"127.0.0.1:{port}",
            "VITSCALE_NUM_PROCESSES": str(processes),
            "VITSCALE_PROCESS_ID": str(rank),
        }
    if devices is not None:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "vitscale.cli", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _relay(child: subprocess.Popen[str], rank: int) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        print(f"[{rank}] {line}", end="", flush=True)


def _wait(children: Sequence[subprocess.Popen[str]]) -> int | None:
    """The rank of the first process that fails, or None when all end well."""
    waiting = dict(enumerate(children))
    while waiting:
        for rank, child in list(waiting.items()):
            try:
                code = child.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            del waiting[rank]
            if code != 0:
                return rank
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
