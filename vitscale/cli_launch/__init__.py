"""`vitscale launch PLACE ... -- COMMAND`: where a command runs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from vitscale.cli_common import action, command
from vitscale.cli_launch import gke, local, slurm, tpu_vm
from vitscale.errors import LaunchFailed, UserError

if TYPE_CHECKING:
    from launch.job import Job
    from launch.sweep import Place
    from launch.sweep_plan import Planned

# A module for each place: `HELP`, `EXAMPLE`, `add_arguments(parser)`, `run(arguments, command)`, and
# `sweep_place(arguments)`, a `launch.sweep.Place`.
PLACES: dict[str, ModuleType] = {"local": local, "slurm": slurm, "gke": gke, "tpu-vm": tpu_vm}


def add_launch(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands,
        "launch",
        _launch,
        "run the command after `--` here, on Slurm, on TPU VMs or on GKE",
        "\n".join(place.EXAMPLE for place in PLACES.values()),
    )
    places = parser.add_subparsers(dest="place", required=True, metavar="PLACE")
    for name, place in PLACES.items():
        inner = action(places, name, _launch, place.HELP, place.EXAMPLE)
        place.add_arguments(inner)
        _add_common(inner)
        _add_sweep(inner)


def job_from(arguments: argparse.Namespace, words: list[str]) -> Job:
    """The job of the common options and the words after `--`."""
    from launch.job import job_of, parse_environment

    return job_of(words, arguments.place, arguments.name, parse_environment(arguments.env))


def _launch(arguments: argparse.Namespace, overrides: list[str]) -> None:
    place = PLACES[arguments.place]
    if arguments.sweep is not None:
        return run_sweep(arguments, place.sweep_place(arguments), arguments.inner_command)
    for name in ("then", "redo"):
        if getattr(arguments, name):
            raise UserError(f"--{name} belongs to a --sweep.")
    place.run(arguments, arguments.inner_command)


def run_sweep(arguments: argparse.Namespace, place: Place, words: list[str]) -> None:
    """The runs of `--sweep` at a place, with a table of how they ended. Raises `LaunchFailed` when one has not."""
    from launch.job import parse_environment
    from launch.sweep import Sweep, table_of
    from launch.sweep_plan import load_sweep, plan_runs, select, settle_runs, where_of
    from launch.sweep_state import load_state, sweep_lock
    from vitscale.terminal import print_table

    for name, least in (("concurrency", 1), ("retries", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name}={getattr(arguments, name)} must be at least {least}.")
    where = where_of(
        words,
        arguments.place,
        name=arguments.name,
        sees_workdirs=place.sees_workdirs,
        name_suffix=place.name_suffix,
    )
    plan = functools.partial(
        plan_runs,
        *(select(load_sweep(arguments.sweep), arguments.only), words, where),
        then=arguments.then,
        environment=parse_environment(arguments.env),
    )
    # Mistakes are told before a folder is made.
    planned = plan(redone=load_state(where.folder, words).redone())
    if arguments.dry_run:
        return _print_runs(planned)
    where.make_folder()
    with sweep_lock(where.folder):
        state = load_state(where.folder, words)
        planned = settle_runs(state, plan, redo=arguments.redo)
        sweep = Sweep(state, planned, place, arguments.concurrency, arguments.retries)
        try:
            sweep.run()
        finally:
            title = f"sweep {arguments.sweep}: {where.root}"
            print_table(title, *table_of(state, list(planned)))
        failed = [name for name in planned if state.runs[name].state == "failed"]
        if failed:
            raise LaunchFailed(
                f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed[:10])}; the same command tries them "
                "again.",
                1,
            )


def _print_runs(planned: Mapping[str, Planned]) -> None:
    for run in planned.values():
        for job in filter(None, (run.job, run.then)):
            print(job)


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("every place")
    group.add_argument(
        "--name", help="of the job; default: the workdir's folder, or the sub-command"
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for every process; may be repeated. No secrets: see docs/launch",
    )
    group.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="K",
        help="how often a run that failed goes on from its last checkpoint; default: 0",
    )
    group.add_argument(
        "--skip-plan", action="store_true", help="launch what `vitscale plan` says does not fit"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "sweeps", "many runs of one command; see docs/launch/sweeps.md"
    )
    group.add_argument(
        "--sweep",
        metavar="FILE",
        help="with get_sweep(): one run for each of its named overrides, in WORKDIR/NAME; also FILE:ARGUMENT",
    )
    group.add_argument(
        "--only", default="*", metavar="PATTERN", help="of the runs' names, such as '*-seed-0'"
    )
    group.add_argument(
        "--concurrency", type=int, default=1, metavar="N", help="runs at a time; default: 1"
    )
    group.add_argument(
        "--retries", type=int, default=1, metavar="K", help="of a run that failed; default: 1"
    )
    group.add_argument(
        "--then",
        default="",
        metavar="COMMAND",
        help="after each run; {workdir} and {name} are the run's: \"eval --config X --checkpoint {workdir} --output "
        '{workdir}/eval"',
    )
    group.add_argument(
        "--redo",
        action="store_true",
        help="do runs again whose overrides or config have changed; their folders are kept",
    )
