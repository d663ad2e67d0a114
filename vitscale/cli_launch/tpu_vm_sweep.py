"""`vitscale launch tpu-vm --sweep`: every run is a `vitscale launch tpu-vm run` with the sweep's own options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.cli_launch import tpu_vm
from vitscale.errors import UserError

if TYPE_CHECKING:
    from launch.job import Job
    from launch.sweep_tpu_vm import TpuVmPlace

# Of `run`, as argparse names them: what a run's own launch is told. The rest is the sweep's, or of other actions.
OPTIONS = (
    *("topology", "zone", "any_zone", "project", "spot", "reserved", "valid_until", "runtime"),
    *("network", "subnetwork", "internal_ips", "service_account", "bucket", "own_disk", "secret"),
    *("env_file", "env", "with_uncommitted", "recreate", "restarts", "poll_seconds"),
)


def place_of(arguments: argparse.Namespace) -> TpuVmPlace:
    from launch.chips import gcloud_flags, rent
    from launch.code_bundle import check_files, find_repository
    from launch.sweep_tpu_vm import TpuVmPlace
    from launch.tpu_launches import Launches

    if arguments.action != "run":
        raise UserError(
            f"{arguments.action} is of one launch: `vitscale launch tpu-vm {arguments.action} --name NAME-RUN`, "
            "without --sweep."
        )
    if arguments.keep:
        raise UserError("a --sweep deletes the chips of every run at its end: leave out --keep.")
    for name, example in (("topology", "v5e:4x4"), ("zone", "us-west4-a")):
        if getattr(arguments, name) is None:
            raise UserError(
                f"a --sweep asks for chips for every run: give --{name}, such as {example}."
            )
    tpu_vm.check_numbers(arguments)
    rented = rent(arguments.topology)
    gcloud_flags(rented)
    repository = find_repository(Path.cwd())
    launches = Launches(repository)

    def refuse(job: Job) -> None:
        of_run = argparse.Namespace(**{**vars(arguments), "name": job.name})
        tpu_vm.launch_of(of_run, list(job.command), launches, job.name)
        check_files(repository, with_uncommitted=arguments.with_uncommitted)

    return TpuVmPlace(
        rented,
        lambda job: run_words(arguments, job.name, job.command),
        refuse,
        launches,
        skip_plan=arguments.skip_plan,
    )


def run_words(arguments: argparse.Namespace, name: str, command: Sequence[str]) -> list[str]:
    """Of `vitscale`, to launch one run. It was planned with the others."""
    words = ["launch", "tpu-vm", "run", "--name", name, "--skip-plan", "--stop-on-sigterm"]
    for option in OPTIONS:
        value = getattr(arguments, option)
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                words.append(f"--{option.replace('_', '-')}")
            elif each not in (None, False):
                words.append(f"--{option.replace('_', '-')}={each}")
    return [*words, "--", *command]
