"""Joining the other processes of a run, and leaving them so that none waits for one that is gone."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax._src import cloud_tpu_init, clusters
from jax._src import distributed as jax_distributed

from vitscale.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, UserError
from vitscale.parallel.cluster import Cluster, DistributedFlags, detect, wants_to_be_alone
from vitscale.parallel.peers import PeerWatch, exit_now, translate

logger = logging.getLogger(__name__)
START_TIMEOUT = 300.0  # seconds until all processes must have started
SHUTDOWN_TIMEOUT = 24 * 3600  # process 0 may write a long report while the others wait at the end

_watch: PeerWatch | None = None


def initialise(
    flags: DistributedFlags | None = None,
    *,
    peer_timeout: float = 100.0,
    start_timeout: float = START_TIMEOUT,
) -> str | None:
    """Joins the other processes, if there are any. Call before any device is touched.

    Returns what was found, for the log: "Slurm: process 3 of 8, coordinator node1:12345"; None: a lone process.
    From here on a process that dies, or is silent for `peer_timeout` seconds, ends the others with exit code 76.
    """
    global _watch
    flags = flags or DistributedFlags()
    cluster = detect(os.environ, flags)
    if cluster is None and not wants_to_be_alone(os.environ, flags):
        cluster = ask_tpu_metadata()
    if cluster is None:
        return None
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = cluster.coordinator.rpartition(":")[0]
    _await_name(cluster, host, start_timeout)
    try:
        with _limit(cluster, start_timeout):
            jax.distributed.initialize(
                coordinator_address=cluster.coordinator,
                num_processes=cluster.num_processes,
                process_id=cluster.process_id,
                local_device_ids=cluster.local_device_ids,
                cluster_detection_method="deactivate",
                # The nets below ours: JAX aborts a process in words that no user understands.
                initialization_timeout=round(2 * start_timeout),
                heartbeat_timeout_seconds=max(2, round(2 * peer_timeout)),
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            )
    except jax.errors.JaxRuntimeError as error:
        port = cluster.coordinator.rpartition(":")[2]
        raise UserError(
            f"{cluster}: the processes cannot meet ({error}); is port {port} of process 0 taken by another run? "
            "Where it is not yours to choose, set JAX_COORDINATOR_PORT to a free one."
        ) from error
    store = jax_distributed.global_state.client
    assert store is not None
    watch = PeerWatch(cluster.process_id, cluster.num_processes, timeout=0.9 * peer_timeout)
    try:
        watch.start(store, host)
    except OSError as error:
        logger.warning(
            "%s: no connection beside JAX's own (%s); a lost process is noticed after up to %.0f s only.",
            cluster,
            error,
            2 * peer_timeout,
        )
    _watch = watch
    atexit.register(_at_exit)  # before JAX's own, which waits for the others
    return str(cluster)


def leave(code: int) -> None:
    """The last call of a process that ends with `code`. Does nothing in a lone process.

    0 and 75: waits for the others, which end as well. Any other code: the others are told, and this process ends
    here and now, since they will not come to where it would wait for them.
    """
    global _watch
    if _watch is None:
        return
    watch, _watch = _watch, None
    watch.leave(code)
    if code not in (0, EXIT_PREEMPTED):
        watch.close()
        exit_now(code)
    try:
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
        lost = translate(error)
        if lost is None:
            raise
        print(f"vitscale: at the end of the run {lost}", file=sys.stderr)
        exit_now(EXIT_PEER_LOST)
    watch.close()


def _at_exit() -> None:
    """A script that does not call `leave` itself. An error that nobody caught has been printed by now."""
    leave(1 if hasattr(sys, "last_value") else 0)


def ask_tpu_metadata() -> Cluster | None:
    """A Cloud TPU VM outside Kubernetes: JAX asks its metadata server for the other hosts."""
    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return None
    tpu = clusters.GceTpuCluster
    if not tpu.is_env_present():
        return None
    count = tpu.get_process_count()
    if count == 1:
        return None
    return Cluster(
        "Cloud TPU metadata",
        tpu.get_coordinator_address(int(START_TIMEOUT), os.environ.get("JAX_COORDINATOR_PORT")),
        count,
        tpu.get_process_id(),
    )


@contextlib.contextmanager
def _limit(cluster: Cluster, seconds: float) -> Iterator[None]:
    """Ends this process in words when the others do not come; what waits for them is C++, and aborts at its limit."""

    def give_up() -> None:
        text = (
            f"vitscale: {cluster}: the other processes have not come within {seconds:g} s. Are all "
            f"{cluster.num_processes} started, and can this one reach that address?\n"
        )
        os.write(2, text.encode())
        exit_now(EXIT_PEER_LOST)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _await_name(cluster: Cluster, host: str, seconds: float) -> None:
    """A pod's name resolves only once the pod runs."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), None)
            return
        except socket.gaierror as error:
            if time.monotonic() > until:
                raise UserError(f"{cluster}: the host name {host} does not resolve.") from error
            time.sleep(1.0)
