"""Checks of `vitscale doctor` that need no device: versions, processors, limits, clocks, disks."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed as jax_distributed

from launch.doctor_result import Result
from vitscale.config import TrainConfig
from vitscale.train.agreement import gather

# Packages whose version must be jax's own: each release of a plugin talks to one jaxlib.
SAME_AS_JAX = (
    *("jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt"),
)
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
MAX_CLOCK_OFFSET = 1.0  # seconds; logs, checkpoints' times and cloud signatures go wrong beyond
CLOCK_ROUNDS = 5
MIN_OPEN_FILES = 4096
MIN_SHARED_MEMORY = 2**30  # bytes; worker processes hand batches over in it
KEY = "vitscale/doctor"


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_versions(versions: Mapping[str, str] | None = None) -> Result:
    """jax, its jaxlib and its plugins are of one release, on every process."""
    if versions is None:
        versions = installed_versions((*SHOWN, *SAME_AS_JAX))
    wanted = versions["jax"]
    shown = ", ".join(f"{n} {versions[n]}" for n in SHOWN if n in versions)
    everywhere = gather(shown)  # by all, whatever each of them finds
    wrong = [f"{n} {versions[n]}" for n in SAME_AS_JAX if versions.get(n, wanted) != wanted]
    if wrong:
        return Result(
            "versions",
            "fail",
            f"jax {wanted} with {', '.join(wrong)}",
            f"Install them together: pip install -U 'jax[cuda13]=={wanted}' (or [tpu]).",
        )
    for process, other in enumerate(everywhere):
        if other != everywhere[0]:
            return Result(
                "versions",
                "fail",
                f"process 0 has {everywhere[0]}; process {process} has {other}",
                "Install constraints.txt on every host.",
            )
    return Result("versions", "ok", shown)


def check_processors() -> Result:
    """Cores that this process may use, and the memory of its host or container."""
    cores = len(os.sched_getaffinity(0))
    limit, used = container_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(total, limit or total)
    found = f"{cores} cores, {memory / 2**30:.0f} GiB of memory"
    if limit and used and used > 0.9 * limit:
        return Result(
            "processors",
            "warn",
            f"{found}, {used / limit:.0%} of the container's in use",
            "Give the container more memory, or lower data.num_workers.",
        )
    return Result("processors", "ok", found)


def container_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int | None]:
    """Limit and use of the control group, in bytes; None where there is none."""
    values: list[int | None] = []
    for name in ("memory.max", "memory.current"):
        try:
            values.append(int((root / name).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            values.append(None)
    return values[0], values[1]


def check_limits(shared: Path = Path("/dev/shm")) -> Result:
    """Open files, and shared memory for worker processes."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = shutil.disk_usage(shared).free if shared.is_dir() else 0
    found = f"{files:,} open files, {free / 2**30:.1f} GiB of shared memory free"
    if files < MIN_OPEN_FILES:
        return Result("limits", "warn", found, f"Raise it: ulimit -n {MIN_OPEN_FILES}.")
    if free < MIN_SHARED_MEMORY:
        return Result(
            "limits",
            "warn",
            found,
            "Give the container more (docker run --shm-size=8g; in a pod an emptyDir of medium Memory at /dev/shm), or "
            "use threads (data.num_workers=0).",
        )
    return Result("limits", "ok", found)


def check_clocks(now: Callable[[], float] = time.time) -> Result:
    """How far this host's clock is from that of process 0.

    Each process asks process 0 for its time through the coordinator, a few times; the answer with the shortest round
    trip counts, and is known to half of that trip (Cristian, 1989).
    """
    if jax.process_count() == 1:
        return Result("clocks", "ok", "one process")
    store: Any = jax_distributed.global_state.client
    me = jax.process_index()
    best = (float("inf"), 0.0)  # round trip, offset
    for process in range(1, jax.process_count()):
        for turn in range(CLOCK_ROUNDS):
            name = f"{KEY}/clock/{process}/{turn}"
            if me == process:
                sent, began = now(), time.monotonic()
                store.key_value_set(f"{name}/ask", "1")
                theirs = float(store.blocking_key_value_get(f"{name}/answer", 60_000))
                trip = time.monotonic() - began
                best = min(best, (trip, sent + trip / 2 - theirs))
            elif me == 0:
                store.blocking_key_value_get(f"{name}/ask", 60_000)
                store.key_value_set(f"{name}/answer", repr(now()))
    if me == 0:
        return Result("clocks", "ok", "process 0 is what the others are compared with")
    trip, offset = best
    found = f"{offset:+.3f} s from process 0 (known to {trip / 2:.3f} s)"
    if abs(offset) - trip / 2 > MAX_CLOCK_OFFSET:
        return Result(
            "clocks", "fail", found, "Synchronise the hosts' clocks: chrony or systemd-timesyncd."
        )
    return Result("clocks", "ok", found)


def check_workdir(workdir: Path) -> Result:
    """The workdir can be written, and all processes mean the same folder."""
    problem, token = "", secrets.token_hex(8)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=workdir, prefix=".doctor-"):
            pass
    except OSError as error:
        problem = f"{workdir} cannot be written: {error.strerror}"
    others = gather(problem)
    if any(others):
        if problem:
            return Result(
                "workdir", "fail", problem, "Choose another, or give this user write access."
            )
        return Result("workdir", "ok", f"{workdir} can be written here")
    token = gather(token)[0]
    mark = workdir / f".doctor-{token}"
    # What goes wrong is kept until all have gone through both gatherings: the others wait for this process there.
    problem = ""
    if jax.process_index() == 0:
        problem = _attempt(lambda: mark.write_text(token))
    written = gather(problem)[0]
    problem = problem or _attempt(lambda: _expect(mark, token))
    gather("read")
    if jax.process_index() == 0:
        problem = problem or _attempt(mark.unlink)
    if problem or written:
        return Result(
            "workdir",
            "fail",
            f"{workdir}: {problem or written}",
            "Use a folder that all hosts share (NFS, Filestore, a mounted bucket) and that this user may write on all.",
        )
    return Result("workdir", "ok", f"{workdir} can be written, the same for all")


def _attempt(action: Callable[[], object]) -> str:
    """What went wrong, in the system's words; empty where nothing did."""
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _expect(mark: Path, token: str) -> None:
    if not mark.is_file() or mark.read_text() != token:
        raise FileNotFoundError(0, "it is not the folder that process 0 writes")


def check_space(workdir: Path, config: TrainConfig | None) -> Result:
    """Free disk against the checkpoints that the config keeps, and one that is being written."""
    place = next(p for p in (workdir.resolve(), *workdir.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if config is None:
        return Result("disk", "ok", f"{free / 1e9:,.1f} GB free; --config says how much is needed")
    size = checkpoint_bytes(config)
    needed = size * (config.checkpoint.keep + 1)
    found = (
        f"{free / 1e9:,.1f} GB free; {config.checkpoint.keep} checkpoints of {size / 1e9:,.2f} GB and one being "
        f"written need {needed / 1e9:,.1f}"
    )
    if free < needed:
        return Result("disk", "fail", found, "Free space there, or lower checkpoint.keep.")
    return Result("disk", "ok", found)


def checkpoint_bytes(config: TrainConfig) -> int:
    """Of one checkpoint: parameters, moments and moving average, without compression."""
    from launch.plan import known_classes
    from vitscale.config import resolve_durations, select_tasks
    from vitscale.models.multitask import define_model_from_counts
    from vitscale.train.setup import plan_state

    chosen = resolve_durations(select_tasks(config), num_examples=None)
    definition = define_model_from_counts(chosen.model, chosen.tasks, known_classes(config))
    _, state = plan_state(definition, chosen)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
