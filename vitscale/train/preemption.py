"""Stopping in time: SIGTERM or a notice on any process → all processes agree on one step to save and end at."""

from __future__ import annotations

import logging
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)
NOTICE_FILE = (
    "VITSCALE_PREEMPTION_FILE"  # a file that a scheduler creates before it takes the machine
)
NOTICE_EVERY = 5.0  # seconds
METADATA_TIMEOUT = 1.0
# Google's clients name the metadata server by these; TPU VMs and GKE's TPU pods have the others.
GOOGLE_VARIABLES = (
    "GCE_METADATA_HOST",
    "GCE_METADATA_IP",
    "TPU_WORKER_ID",
    "TPU_ACCELERATOR_TYPE",
    "CLOUD_TPU_TASK_ID",
    "MEGASCALE_COORDINATOR_ADDRESS",
)


class StopSignal:
    """Whether the run should save and end, with the same answer at the same step on every process.

    One process: a handler of SIGTERM. Several: JAX's preemption service, which has taken SIGTERM over when the process
    joined the others; a Python handler would displace it. It tells all processes, and picks the step after the
    furthest. Ctrl-C stays KeyboardInterrupt. A second SIGTERM changes nothing, so it cannot cut a save short: keep
    this context open around the save.
    """

    def __init__(self, *, notice: Callable[[], bool] | None = None, every: float = NOTICE_EVERY):
        """`notice`: asked every `every` seconds in a thread; true counts as SIGTERM (see `find_notice`)."""
        self._notice, self._every = notice, every
        self._requested = False
        self._previous: Callable[[int, FrameType | None], object] | int | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._shared = False

    def __enter__(self) -> StopSignal:
        self._shared = jax.distributed.is_initialized()
        if not self._shared:
            try:
                self._previous = signal.signal(signal.SIGTERM, self._note)
            except ValueError:  # not the main thread (a notebook's worker): nobody will signal us
                self._previous = None
        if self._notice is not None:
            self._thread = threading.Thread(
                target=self._poll, name="preemption-notice", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * METADATA_TIMEOUT)
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def should_stop(self, step: int) -> bool:
        """Call once after every step, on every process, with the same numbers."""
        if self._shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def _poll(self) -> None:
        assert self._notice is not None
        while not self._closing.wait(self._every):
            if self._notice():
                logger.warning("this machine is about to be taken away: the run saves and stops.")
                if self._shared:
                    os.kill(os.getpid(), signal.SIGTERM)  # the only door of JAX's service
                else:
                    self._requested = True
                return


def find_notice(environ: Mapping[str, str]) -> Callable[[], bool] | None:
    """What to ask on this machine: the file named by `VITSCALE_PREEMPTION_FILE`, or Google's metadata server."""
    if environ.get(NOTICE_FILE):
        return Path(environ[NOTICE_FILE]).exists
    if any(environ.get(name) for name in GOOGLE_VARIABLES):
        host = (
            environ.get("GCE_METADATA_HOST")
            or environ.get("GCE_METADATA_IP")
            or "metadata.google.internal"
        )
        return lambda: gce_preempted(host)
    return None


def gce_preempted(host: str = "metadata.google.internal") -> bool:
    """Whether Compute Engine is taking this VM: a spot VM preempted, or TPU and GPU maintenance, which ends it."""
    return (
        _metadata(host, "preempted") == "TRUE"
        or _metadata(host, "maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE"
    )


def _metadata(host: str, key: str) -> str:
    """One value of the metadata server; empty where there is none."""
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{key}", headers={"Metadata-Flavor": "Google"}
    )
    # A proxy of the environment is for the internet, not for a link-local address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=METADATA_TIMEOUT) as response:
            return response.read().decode().strip()
    except (OSError, urllib.error.URLError):
        return ""
