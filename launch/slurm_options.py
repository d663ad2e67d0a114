"""What `vitscale launch slurm` asks Slurm for, checked before anything is written or submitted."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.environment import environment_of
from launch.job import Job
from launch.preflight import check_plan
from launch.secrets import refuse_secrets
from vitscale.errors import UserError
from vitscale.parallel.aot import CHIPS

GPU_TYPES = tuple(name for name, chip in CHIPS.items() if not chip.torus)
SECRETS = Path(".vitscale/secrets")  # below the home folder: a file a secret
_GPUS = re.compile(r"(?:([A-Za-z0-9_.-]+):)?([0-9]+)")
# Slurm's own forms: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?|(?P<rest>\d+(?::\d+){0,2}))"
)
# What the script says itself; a second value would break it. sbatch also takes the beginning of a long name.
OURS = (
    *("--job-name", "-J", "--comment", "--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--output", "-o"),
    *("--error", "-e", "--open-mode", "--requeue", "--no-requeue", "--signal", "--export", "--chdir", "-D"),
    *("--array", "-a", "--wrap", "--time", "-t", "--partition", "-p", "--account", "-A", "--qos", "-q"),
    *("--constraint", "-C", "--exclusive", "--cpus-per-task", "-c", "--gpus-per-node"),
)  # fmt: skip
_WITHOUT_VALUE = "HIOQVWhkqsuv"  # short options that another may follow in the same word: -HJname


@dataclass(frozen=True)
class Container:
    """An image that the processes run in: by NVIDIA's pyxis (a plugin of `srun`) or by Apptainer."""

    image: str
    runtime: str  # "pyxis" or "apptainer"
    mounts: tuple[str, ...] = ()  # HOST:CONTAINER, besides the folder of the launch and the workdir


@dataclass(frozen=True)
class Options:
    """Of the job and its processes; a process is a Slurm task."""

    nodes: int = 1
    gpus_per_node: str = "0"  # as Slurm takes it: 8, or h100:8
    gpu_type: str | None = None  # whose memory the plan must fit, and whose flags are set
    processes_per_node: int | None = 1  # None: one for each GPU
    cpus_per_process: int | None = None  # None: the whole node, shared by its processes
    devices: int | None = None  # fake CPU devices a process
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    extra: tuple[str, ...] = ()  # further options of sbatch, such as --mem=64G
    setup: tuple[str, ...] = ()  # shell lines before the run, such as `module load cuda`
    python: str = sys.executable
    container: Container | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)  # variable -> file below ~/SECRETS
    grace: int = 120  # seconds before the time limit at which the run is told to save
    requeues: int = 100  # how often it goes on in the queue after it was stopped
    restarts: int = 0  # how often a failed run is started again within the job

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.gpu_type is not None and self.gpu_type not in GPU_TYPES:
            raise UserError(f"--gpu-type={self.gpu_type!r} is not known: {', '.join(GPU_TYPES)}.")
        if self.gpus:
            if self.devices is not None:
                raise UserError(
                    "--devices are fake ones: leave --gpus-per-node away, or --devices."
                )
            stated = replace(self, gpu_type=None).chip if self.gpu_type else None
            if stated not in (None, self.gpu_type):
                raise UserError(
                    f"--gpus-per-node={self.gpus_per_node} and --gpu-type={self.gpu_type} are different GPUs: give one."
                )
            if self.gpus % self.processes:
                raise UserError(
                    f"{self.gpus} GPUs of a node do not divide among {self.processes} processes: "
                    "--processes-per-node is 1, a divisor of them, or `gpus` for one each."
                )
        elif self.processes_per_node is None:
            raise UserError("--processes-per-node=gpus needs --gpus-per-node.")
        elif self.gpu_type is not None:
            raise UserError("--gpu-type needs --gpus-per-node.")
        _check_times(self)
        for line in self.extra:
            _check_extra(line)
        for line in self.setup:
            if "\n" in line or "\r" in line:
                raise UserError("a --setup is one line; give several --setup.")

    @property
    def gpus(self) -> int:
        """Of a node."""
        match = _GPUS.fullmatch(self.gpus_per_node)
        if not match:
            raise UserError(f"--gpus-per-node={self.gpus_per_node!r} is neither 8 nor like h100:8.")
        return int(match[2])

    @property
    def chip(self) -> str | None:
        """The type of the GPUs, as stated by `--gpu-type`, or by Slurm's own name for them: h100, nvidia_h100_80gb.

        An A100 has 40 or 80 GB: where its name does not say which, None.
        """
        if self.gpu_type is not None:
            return self.gpu_type
        words = re.split(r"[^a-z0-9]+", self.gpus_per_node.lower().rpartition(":")[0])
        return next((name for name in GPU_TYPES if set(name.split("-")) <= set(words)), None)

    @property
    def processes(self) -> int:
        """Of a node."""
        return self.gpus if self.processes_per_node is None else self.processes_per_node

    def check(self, job: Job) -> None:
        """Raises `UserError` for a job with a secret in it."""
        way_out = f"write it into ~/{SECRETS}/NAME and launch with --secret VARIABLE=NAME"
        refuse_secrets(job.environment, [*job.command, *self.extra], way_out, self.setup)

    def plan(self, job: Job, *, skip: bool) -> str:
        """Whether the job fits its GPUs, in a sentence. Raises `UserError` where it does not."""
        if not self.gpus:
            return "not planned: it asks for no GPUs."
        if self.chip is None and not skip:
            return f"not planned: --gpu-type ({', '.join(GPU_TYPES)}) says what it must fit."
        return check_plan(job.command, f"{self.chip}:{self.nodes}x{self.gpus}", skip=skip)

    def variables(self, job: Job) -> dict[str, str]:
        """What every process sees besides Slurm's own."""
        own = dict(job.environment)
        if not self.gpus:
            # Else jax looks for a GPU on a node that may have some, and they are not ours.
            own.setdefault("JAX_PLATFORMS", "cpu")
            if self.devices is not None:
                count = f"--xla_force_host_platform_device_count={self.devices}"
                own["XLA_FLAGS"] = f"{own.get('XLA_FLAGS', '')} {count}".strip()
        return own | environment_of(self.chip or "cpu", self.nodes, own)


def _check_numbers(options: Options) -> None:
    numbers = {
        "nodes": (options.nodes, 1),
        "processes-per-node": (options.processes_per_node, 1),
        "cpus-per-process": (options.cpus_per_process, 1),
        "devices": (options.devices, 1),
        "grace": (options.grace, 0),
        "requeues": (options.requeues, 0),
        "restarts": (options.restarts, 0),
    }
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise UserError(f"--{name}={value} must be at least {least}.")
    if options.grace > 65535:
        raise UserError(f"--grace={options.grace}: Slurm takes at most 65535 seconds.")


def _check_times(options: Options) -> None:
    if options.time is None:
        return
    seconds = parse_time(options.time)
    if seconds <= options.grace:
        raise UserError(
            f"--time={options.time} is no longer than --grace={options.grace} s before its end, at which the run "
            "saves: ask for more time, or for less grace."
        )


def parse_time(text: str) -> int:
    """Seconds of a time limit as Slurm writes it. Raises `UserError` for anything else."""
    match = _TIME.fullmatch(text)
    if not match:
        raise UserError(
            f"--time={text!r} is no time of Slurm: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."
        )
    if match["rest"] is None:
        days, hours, minutes, seconds = (int(match[k] or 0) for k in ("days", "hours", "m", "s"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = [int(part) for part in match["rest"].split(":")]
    if len(parts) == 1:
        return parts[0] * 60
    hours, minutes, seconds = [0, *parts][-3:]
    return (hours * 60 + minutes) * 60 + seconds


def _check_extra(line: str) -> None:
    # Backslashes and quotes are not the same to sbatch and to `shlex` in every corner: none of the former.
    try:
        words = shlex.split(line) if re.fullmatch(r"--?[A-Za-z][^\\\x00-\x1f\x7f]*", line) else []
    except ValueError:  # a quote that does not end
        words = []
    if not words:
        raise UserError(f"--sbatch {line!r} is no option of sbatch; write --sbatch=--mem=64G.")
    for word in words:
        if name := _ours(word):
            raise UserError(f"--sbatch {line!r}: {name} is set by `vitscale launch slurm` itself.")


def _ours(word: str) -> str | None:
    """The option in a word of sbatch's that the script sets itself."""
    if word.startswith("--"):
        name = word.split("=")[0]
        return next((own for own in OURS if own.startswith(name)), None)
    for letter in word[1:] if word.startswith("-") else "":
        if f"-{letter}" in OURS:
            return f"-{letter}"
        if letter not in _WITHOUT_VALUE:
            break  # the rest is its value
    return None


def secret_files(references: Mapping[str, str], home: Path) -> dict[str, Path]:
    """The file of each secret: it must be there, and nobody else may read it. Raises `UserError`."""
    files = {}
    folder = (home / SECRETS).resolve()
    for variable, reference in references.items():
        path = (folder / reference).resolve()
        if not path.is_relative_to(folder):
            raise UserError(f"--secret {variable}={reference} is outside of {folder}.")
        if not path.is_file():
            raise UserError(
                f"--secret {variable}={reference}: there is no file {path} with its value in it; write one, with "
                "`umask 077`, where every node sees your home folder."
            )
        if path.stat().st_mode & 0o077:
            raise UserError(f"others can read {path}: chmod 600 {path}.")
        files[variable] = path
    return files


def container_of(image: str | None, runtime: str | None, mounts: Sequence[str]) -> Container | None:
    """`.sif` files are Apptainer's, anything else (`nvcr.io#nvidia/jax:…`, `.sqsh`) is pyxis's."""
    if image is None:
        if mounts or runtime:
            raise UserError(
                "--container-mount and --container-runtime belong to a --container-image."
            )
        return None
    for mount in mounts:
        if not re.fullmatch(r"/[^:,\n]*:/[^:,\n]*(:[a-z]+)?", mount):
            raise UserError(f"--container-mount {mount!r} is not /ON/THE/NODE:/IN/THE/CONTAINER.")
    guess = "apptainer" if image.endswith(".sif") or "://" in image else "pyxis"
    return Container(image, runtime or guess, tuple(mounts))
