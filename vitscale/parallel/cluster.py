"""Which processes belong to this run: read from flags, our variables, Slurm, Cloud TPU or Kubernetes.

`jax.distributed.initialize()` finds some of these by itself. It gives every Slurm task one GPU whatever Slurm gave it,
asks Kubernetes' API for what the pod already knows, and its errors name no variable; so the reading is ours, a pure
function of the environment. Only a Cloud TPU VM without variables (its metadata server knows) is left to JAX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vitscale.errors import UserError

COORDINATOR = "VITSCALE_COORDINATOR"
NUM_PROCESSES = "VITSCALE_NUM_PROCESSES"
PROCESS_ID = "VITSCALE_PROCESS_ID"
SERVICE = "VITSCALE_SERVICE"  # the headless service of a Kubernetes Job
PORT = "JAX_COORDINATOR_PORT"  # where the port is ours to choose

TPU_PORT, KUBERNETES_PORT = 8482, 55527  # those that JAX chooses
FIRST_SLURM_PORT, SLURM_PORTS = 61440, 4096


@dataclass(frozen=True)
class DistributedFlags:
    """`--coordinator HOST:PORT --num-processes N --process-id I`; `--num-processes 1` is a lone process anywhere."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclass(frozen=True)
class Cluster:
    """One process's place among all of a run."""

    kind: str  # who told us, for the log
    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None  # GPUs of this process; None: all it can see

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"{self.kind}: the coordinator {self.coordinator!r} is not HOST:PORT.")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"{self.kind}: process id {self.process_id} is not one of {self.num_processes} "
                f"processes (0 to {self.num_processes - 1})."
            )

    def __str__(self) -> str:
        words = f"{self.kind}: process {self.process_id} of {self.num_processes}"
        return f"{words}, coordinator {self.coordinator}"


def detect(environ: Mapping[str, str], flags: DistributedFlags | None = None) -> Cluster | None:
    """The run that this process is part of; None: it is alone. `UserError` where half of it is known."""
    flags = flags or DistributedFlags()
    if wants_to_be_alone(environ, flags):
        return None
    if flags != DistributedFlags():
        return _from_flags(flags)
    # Cloud TPU before Kubernetes: GKE's TPU pods have the variables of both, and those of the TPU are complete.
    for find in (_from_vitscale, _from_slurm, _from_tpu, _from_kubernetes):
        found = find(environ)
        if found is not None:
            return found
    return None


def wants_to_be_alone(environ: Mapping[str, str], flags: DistributedFlags) -> bool:
    """`--num-processes 1`, or `VITSCALE_NUM_PROCESSES=1`: one process, whatever the machine is part of."""
    if flags.num_processes is not None:
        return flags.num_processes == 1
    return environ.get(NUM_PROCESSES) == "1"


def _from_flags(flags: DistributedFlags) -> Cluster:
    values = {
        "--coordinator": flags.coordinator,
        "--num-processes": flags.num_processes,
        "--process-id": flags.process_id,
    }
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise UserError(
            f"{', '.join(values.keys() - set(missing))} also needs {' and '.join(missing)}."
        )
    assert flags.coordinator is not None
    assert flags.num_processes is not None
    assert flags.process_id is not None
    return Cluster("flags", flags.coordinator, flags.num_processes, flags.process_id)


def _from_vitscale(environ: Mapping[str, str]) -> Cluster | None:
    """What `vitscale launch` sets, or anybody else."""
    coordinator = environ.get(COORDINATOR)
    if not coordinator:
        return None
    return Cluster(
        "environment",
        coordinator,
        _number(environ, NUM_PROCESSES, because=COORDINATOR),
        _number(environ, PROCESS_ID, because=COORDINATOR),
    )


def _from_slurm(environ: Mapping[str, str]) -> Cluster | None:
    """`srun` starts one process per task; process 0 is on the first node of the step's list."""
    if "SLURM_JOB_ID" not in environ:
        return None
    tasks_in = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    if environ.get(tasks_in, "1") == "1":
        return None
    tasks = _number(environ, tasks_in, because="SLURM_JOB_ID")
    nodes = environ.get("SLURM_STEP_NODELIST")
    if not nodes:  # inside `sbatch` or `salloc`, but not started by `srun`
        raise UserError(
            f"{tasks_in}={tasks} but SLURM_STEP_NODELIST is not set: start the command with srun, or set "
            f"{NUM_PROCESSES}=1 to run this one process alone."
        )
    job = _number(environ, "SLURM_JOB_ID", because=tasks_in)
    # Two jobs can share a node: the port comes from the job's number.
    port = environ.get(PORT) or str(FIRST_SLURM_PORT + job % SLURM_PORTS)
    return Cluster(
        "Slurm",
        f"{first_host(nodes)}:{port}",
        tasks,
        _number(environ, "SLURM_PROCID", because=tasks_in),
        _slurm_gpus(environ),
    )


def first_host(nodes: str) -> str:
    """`gpu[007-015,020],login1` → `gpu007`: the first host of a Slurm node list."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first)


def _slurm_gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """The tasks of a node share its GPUs evenly, unless Slurm has already given each task its own."""
    local = environ.get("SLURM_LOCALID", "")
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    tasks = _tasks_here(per_node, int(environ.get("SLURM_NODEID", "0")))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([name for name in visible.split(",") if name])
    else:
        gpus = int(environ.get("SLURM_GPUS_ON_NODE", "0"))
    if "SLURM_GPUS_PER_TASK" in environ or not local.isdigit() or tasks < 2 or gpus < tasks:
        return None
    if gpus % tasks:
        raise UserError(
            f"Slurm: {gpus} GPUs of this node do not divide among its {tasks} tasks; take --ntasks-per-node="
            f"{gpus} or 1, or give each task its own by --gpus-per-task."
        )
    share = gpus // tasks
    return tuple(range(int(local) * share, (int(local) + 1) * share))


def _tasks_here(per_node: str, node: int) -> int:
    """`4(x2),3` → 4, 4, 3 tasks on nodes 0, 1, 2."""
    counts: list[int] = []
    for part in per_node.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match:
            counts += [int(match[1])] * int(match[2] or 1)
    return counts[node] if node < len(counts) else 1


def _from_tpu(environ: Mapping[str, str]) -> Cluster | None:
    """GKE's TPU pods, and several slices anywhere: every worker's host name is in the environment."""
    names_in = next(
        (n for n in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES") if environ.get(n)), None
    )
    if names_in is None:
        return None
    hosts = environ[names_in].split(",")
    slices = slice_id = 0
    if environ.get("MEGASCALE_NUM_SLICES"):
        slices = _number(environ, "MEGASCALE_NUM_SLICES", because=names_in)
    if len(hosts) * max(slices, 1) == 1:
        return None
    host = hosts[0]
    if slices > 1:
        host = environ.get("MEGASCALE_COORDINATOR_ADDRESS", "")
        slice_id = _number(environ, "MEGASCALE_SLICE_ID", because="MEGASCALE_NUM_SLICES")
        if not host:
            raise UserError(
                f"MEGASCALE_NUM_SLICES={slices} but MEGASCALE_COORDINATOR_ADDRESS is not set."
            )
    worker = 0 if len(hosts) == 1 else _number(environ, "TPU_WORKER_ID", because=names_in)
    return Cluster(
        "Cloud TPU",
        f"{host.split(':')[0]}:{environ.get(PORT) or TPU_PORT}",
        len(hosts) * max(slices, 1),
        slice_id * len(hosts) + worker,
    )


def _from_kubernetes(environ: Mapping[str, str]) -> Cluster | None:
    """A pod of an Indexed Job, alone or in a JobSet: its index is there, the other two come from the manifest."""
    if "JOB_COMPLETION_INDEX" not in environ:
        return None
    index = _number(environ, "JOB_COMPLETION_INDEX")
    host = _kubernetes_host(environ)
    count_in = next(
        (n for n in (NUM_PROCESSES, "JAX_NUM_PROCESSES", "NNODES") if environ.get(n)), None
    )
    if count_in is None:
        if host is None and index == 0:
            return None  # a Job of one pod
        raise UserError(
            f"JOB_COMPLETION_INDEX={index} but nothing says how many pods there are: set {NUM_PROCESSES} "
            "to the Job's completions."
        )
    count = _number(environ, count_in)
    if count == 1:
        return None
    if host is None:
        raise UserError(
            f"{count_in}={count} but nothing says where pod 0 is: set JAX_COORDINATOR_ADDRESS, or {SERVICE} "
            "to the Job's headless service (its pods need it as `subdomain`)."
        )
    if not re.search(r":[0-9]+$", host):
        host = f"{host}:{environ.get(PORT) or KUBERNETES_PORT}"
    return Cluster("Kubernetes", host, count, index)


def _kubernetes_host(environ: Mapping[str, str]) -> str | None:
    """Pod 0 by its stable name: Jobs name pods JOB-INDEX, JobSets SET-JOB-REPLICA-INDEX, under the service."""
    if environ.get("JAX_COORDINATOR_ADDRESS"):
        return environ["JAX_COORDINATOR_ADDRESS"]
    job_set, job = environ.get("JOBSET_NAME"), environ.get("REPLICATED_JOB_NAME")
    if job_set and job:
        return f"{job_set}-{job}-0-0.{job_set}"
    # An Indexed Job's pods have the host name JOB-INDEX.
    name, _, index = environ.get("HOSTNAME", "").rpartition("-")
    if environ.get(SERVICE) and name and index == environ["JOB_COMPLETION_INDEX"]:
        return f"{name}-0.{environ[SERVICE]}"
    return None


def _number(environ: Mapping[str, str], name: str, *, because: str | None = None) -> int:
    text = environ.get(name)
    if text is not None and text.isdigit():
        return int(text)
    why = f"{because} is set but " if because else ""
    if text is None:
        raise UserError(f"{why}{name} is not.")
    raise UserError(f"{why}{name}={text!r} is not a number.")
