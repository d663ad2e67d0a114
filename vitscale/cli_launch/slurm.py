"""`vitscale launch slurm`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vitscale.errors import UserError

if TYPE_CHECKING:
    from launch.job import Job
    from launch.slurm import SlurmPlace
    from launch.slurm_options import Options

HELP = "submit the command to Slurm: one job, queued again whenever it was stopped"
EXAMPLE = (
    "vitscale launch slurm --nodes 4 --gpus-per-node 8 --gpu-type h100 --time 1-00 --follow"
    " -- train --config configs/pretrain_vit_l16_h100.py --workdir runs/l16"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_job(parser)
    _add_processes(parser)
    _add_container(parser)
    group = parser.add_argument_group("the job's life")
    group.add_argument(
        "--grace",
        type=int,
        default=120,
        metavar="SECONDS",
        help="before its time limit the run is told to save; default: 120",
    )
    group.add_argument(
        "--requeues",
        type=int,
        default=100,
        metavar="N",
        help="how often a run that was stopped and has saved goes on in the queue; default: 100",
    )
    group.add_argument(
        "--follow",
        action="store_true",
        help="print its states and logs until it ends; Ctrl-C ends it. Of a job that is in the queue: follow that one",
    )
    group.add_argument(
        "--cancel", action="store_true", help="end the job of this workdir, after it has saved"
    )


def _add_job(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what Slurm gives")
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    group.add_argument("--gpus-per-node", default="0", metavar="[TYPE:]N", help="default: 0")
    for name in ("partition", "account", "qos", "constraint"):
        group.add_argument(f"--{name}", help="as of sbatch")
    group.add_argument(
        "--time", help="as of sbatch: MINUTES, HH:MM:SS, D-HH; the run goes on after it"
    )
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other option of sbatch, as in --sbatch=--mem=64G; may be repeated",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--processes-per-node",
        default="1",
        metavar="N|gpus",
        help="`gpus`: one for each GPU; default: 1, which has all GPUs of the node",
    )
    group.add_argument(
        "--cpus-per-process",
        type=int,
        metavar="N",
        help="default: the node is taken whole (--exclusive)",
    )
    group.add_argument(
        "--devices", type=int, metavar="N", help="fake CPU devices per process, without GPUs"
    )
    group.add_argument(
        "--gpu-type",
        help="a100-40gb, a100-80gb, h100 or h200: refuses what does not fit its memory, and sets its flags",
    )
    group.add_argument("--python", help="interpreter of the run; default: this one")
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="of shell before the run, such as 'module load cuda'; may be repeated",
    )
    group.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="VARIABLE=NAME",
        help="a variable with what is in the file ~/.vitscale/secrets/NAME on the node; may be repeated",
    )


def _add_container(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("container")
    group.add_argument(
        "--container-image", metavar="IMAGE", help="of pyxis, or a .sif of Apptainer"
    )
    group.add_argument("--container-runtime", choices=("pyxis", "apptainer"))
    group.add_argument(
        "--container-mount",
        action="append",
        default=[],
        metavar="HOST:CONTAINER",
        help="besides the workdir and this directory; may be repeated",
    )


def run(arguments: argparse.Namespace, command: list[str]) -> None:
    from launch.slurm import base_folder, find_going, find_or_start
    from launch.slurm_follow import cancel_going, follow
    from vitscale.cli_launch import job_from

    job, options = job_from(arguments, command), options_of(arguments)
    base = base_folder(job)
    if arguments.dry_run:
        return _print_script(job, options, arguments.skip_plan)
    if arguments.cancel:
        return print(cancel_going(base, grace=options.grace))
    launched, mine = find_going(base), False
    if launched is None:
        options.check(job)
        print(f"[launch] {options.plan(job, skip=arguments.skip_plan)}", file=sys.stderr)
        launched, mine = find_or_start(job, options, base)  # planning takes long enough for another
    if mine:
        print(f"submitted job {launched.job_id}, {job.name}; its logs are in {launched.folder}")
    elif not arguments.follow:
        raise UserError(
            f"job {launched.job_id} of this workdir is in the queue or running (logs: {launched.folder}): "
            "the same command with --follow shows it, with --cancel ends it."
        )
    if arguments.follow:
        follow(launched, mine=mine, grace=options.grace)


def sweep_place(arguments: argparse.Namespace) -> SlurmPlace:
    from launch.slurm import SlurmPlace

    if arguments.follow or arguments.cancel:
        raise UserError(
            "--follow and --cancel are for one job; a --sweep waits for its jobs by itself."
        )
    return SlurmPlace(options_of(arguments), skip_plan=arguments.skip_plan)


def options_of(arguments: argparse.Namespace) -> Options:
    from launch.secrets import parse_references
    from launch.slurm_options import Options, container_of

    container = container_of(
        arguments.container_image, arguments.container_runtime, arguments.container_mount
    )
    per_node = arguments.processes_per_node
    if per_node != "gpus" and not per_node.isdigit():
        raise UserError(f"--processes-per-node={per_node!r} is neither a number nor `gpus`.")
    return Options(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu_type=arguments.gpu_type,
        processes_per_node=None if per_node == "gpus" else int(per_node),
        cpus_per_process=arguments.cpus_per_process,
        devices=arguments.devices,
        partition=arguments.partition,
        account=arguments.account,
        qos=arguments.qos,
        time=arguments.time,
        constraint=arguments.constraint,
        extra=tuple(arguments.sbatch),
        setup=tuple(arguments.setup),
        python=arguments.python or ("python" if container else sys.executable),
        container=container,
        secrets=parse_references(arguments.secret),
        grace=arguments.grace,
        requeues=arguments.requeues,
        restarts=arguments.restarts,
    )


def _print_script(job: Job, options: Options, skip_plan: bool) -> None:
    from pathlib import Path

    from launch.slurm import base_folder, new_launch
    from launch.slurm_script import script_of

    options.check(job)
    print(f"[launch] {options.plan(job, skip=skip_plan)}", file=sys.stderr)
    print(script_of(job, options, new_launch(base_folder(job)), Path.cwd()), end="")
