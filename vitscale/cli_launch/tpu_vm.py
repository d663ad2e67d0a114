"""`vitscale launch tpu-vm`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.errors import EXIT_PREEMPTED, LaunchFailed, UserError
from vitscale.terminal import print_table

if TYPE_CHECKING:
    from launch.queued_resource import Capacity
    from launch.sweep_tpu_vm import TpuVmPlace
    from launch.tpu_launches import Launch, Launches
    from launch.tpu_vm import TpuVm

HELP = "run the command on Cloud TPU VMs: ask for chips, copy the code, start, follow, go on after preemptions, delete"
EXAMPLE = """
vitscale launch tpu-vm --name b16 --topology v5e:4x4 --zone us-west4-a --spot --bucket my-bucket -- \\
    train --config configs/pretrain_vit_b16.py --workdir /mnt/bucket/runs/b16
vitscale launch tpu-vm status --name b16
vitscale launch tpu-vm --sweep configs/study/model_size.py --concurrency 4 --topology v5e:2x2 --zone us-west4-a \\
    --spot --bucket my-bucket -- train --config configs/small/multitask.py --workdir /mnt/bucket/runs/model-size
""".strip()
ACTIONS = {
    "run": "all of it; the default",
    "up": "ask for the chips and wait for them",
    "start": "copy the code as it is now, install it, start the command",
    "status": "of chips and workers",
    "logs": "the last lines of every worker; --follow: of the first one, until the end",
    "stop": "let the run save and end; chips stay",
    "down": "delete the chips",
}
LOOKS = ("status", "logs", "stop")  # may be used beside another process that works on the launch
EXIT_KILLED = 137  # by SIGKILL
WAY_OUT = (
    "keep it in Secret Manager and pass --secret VARIABLE=NAME, which the workers read themselves"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=list(ACTIONS),
        default="run",
        help="; ".join(f"{name}: {what}" for name, what in ACTIONS.items()),
    )
    _add_chips(parser.add_argument_group("chips", "for run and up"))
    _add_run(parser.add_argument_group("run"))


def _add_chips(chips: argparse._ArgumentGroup) -> None:
    chips.add_argument("--topology", help="such as v5e:4x4; 4*v5e:16x16 are four slices")
    chips.add_argument("--zone", help="such as us-west4-a")
    chips.add_argument("--any-zone", action="store_true", help="a zone that our table lacks")
    chips.add_argument("--project", help="default: gcloud's own")
    tiers = chips.add_mutually_exclusive_group()
    tiers.add_argument("--spot", action="store_true", help="cheap, and taken away at any time")
    tiers.add_argument("--reserved", action="store_true", help="from the project's reservation")
    chips.add_argument(
        "--valid-until",
        metavar="TIME",
        help="such as 6h: a request that is not filled by then fails",
    )
    chips.add_argument("--runtime", help="image of the VMs; default: the one for the chip")
    chips.add_argument("--network")
    chips.add_argument("--subnetwork")
    chips.add_argument("--internal-ips", action="store_true", help="no external addresses")
    chips.add_argument("--service-account", metavar="EMAIL", help="whose rights the VMs have")


def _add_run(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--bucket",
        metavar="NAME",
        help="a Cloud Storage bucket, mounted at /mnt/bucket on all workers",
    )
    run.add_argument(
        "--own-disk",
        action="store_true",
        help="a workdir elsewhere: on the VMs' own disks it is lost with them",
    )
    run.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="VARIABLE=NAME",
        help="a variable that the workers read from Secret Manager; also NAME:VERSION; may be repeated",
    )
    run.add_argument(
        "--env-file",
        metavar="PATH",
        help="a file of variables that lies on the workers; it is not copied",
    )
    run.add_argument(
        "--with-uncommitted", action="store_true", help="also code that is not committed"
    )
    run.add_argument(
        "--recreate",
        type=int,
        default=10,
        metavar="K",
        help="how often chips are asked for again, when preempted or when there were none; default: 10",
    )
    run.add_argument(
        "--stop-on-sigterm",
        action="store_true",
        help="SIGTERM and a closed terminal let the run save and delete the chips; without it both go on",
    )
    run.add_argument("--keep", action="store_true", help="leave the chips when the run has ended")
    run.add_argument("--follow", action="store_true", help="for logs: until the run ends")
    run.add_argument("--lines", type=int, default=50, help="for logs; default: 50")
    run.add_argument(
        "--poll-seconds", type=float, default=30.0, metavar="S", help="between looks; default: 30"
    )


def run(arguments: argparse.Namespace, command: list[str]) -> None:
    from launch.code_bundle import find_repository
    from launch.tpu_launches import Launches

    repository = find_repository(Path.cwd())
    launches = Launches(repository)
    name = _name(arguments, command)
    if arguments.action in ("run", "up", "start"):
        launch = launch_of(arguments, command, launches, name)
    else:
        launch = launches.need(name)
    session = _session(arguments, launch, launches, repository, name)
    if arguments.action in LOOKS or arguments.dry_run:
        return _act(arguments, session)
    with launches.alone(name):
        _act(arguments, session)


def _name(arguments: argparse.Namespace, command: list[str]) -> str:
    from launch.job import check_name
    from vitscale.cli_launch import job_from

    if command:
        return job_from(arguments, command).name
    if arguments.name is None:
        raise UserError("name the launch: --name NAME.")
    check_name("tpu-vm", arguments.name)
    return str(arguments.name)


def launch_of(
    arguments: argparse.Namespace, command: list[str], launches: Launches, name: str
) -> Launch:
    """The launch of that name if there is one and the words agree with it, else a new one. Checked before any call."""
    from launch.secrets import parse_references, refuse_secrets
    from launch.tpu_launches import check_command, check_same, new_launch
    from vitscale.cli_launch import job_from

    stated: dict[str, object] = {}
    if command:
        job = job_from(arguments, command)
        refuse_secrets(job.environment, job.command, WAY_OUT)
        stated = {
            "command": job.command,
            "environment": dict(job.environment) or None,
            "secrets": parse_references(arguments.secret) or None,
            "env_file": arguments.env_file,
        }
    elif arguments.env or arguments.secret or arguments.env_file:
        raise UserError(
            "--env, --secret and --env-file belong to a command: repeat it after `--` as it was."
        )
    launch = launches.read(name)
    if launch is None:
        launch = new_launch(_capacity(arguments, name), arguments.zone, arguments.project)
        launch.bucket = arguments.bucket
    else:
        # `start` may run something else on the same chips; what has been asked for otherwise stays what it is.
        check_same(launch, _chips(arguments) | (stated if arguments.action != "start" else {}))
    if command:
        check_command(job, launch, own_disk=arguments.own_disk)
        if arguments.action == "start" or not launch.command:
            launch.command, launch.environment = job.command, dict(job.environment)
            launch.secrets = parse_references(arguments.secret)
            launch.env_file = arguments.env_file
    elif arguments.action != "up" and not launch.command:
        raise UserError(
            "name the command to run after `--`, such as: -- train --config X --workdir D."
        )
    return launch


def _chips(arguments: argparse.Namespace) -> dict[str, object]:
    """What the words say of chips and machines; None: nothing."""
    words = (
        *("topology", "zone", "project", "bucket", "valid_until"),
        *("runtime", "network", "subnetwork", "service_account"),
    )
    tier = "spot" if arguments.spot else "reserved" if arguments.reserved else None
    stated = {word: getattr(arguments, word) for word in words}
    return {**stated, "tier": tier, "internal_ips": arguments.internal_ips or None}


def _capacity(arguments: argparse.Namespace, name: str) -> Capacity:
    from launch.chips import check_zone, gcloud_flags, rent
    from launch.job import check_name
    from launch.queued_resource import Capacity

    if arguments.topology is None or arguments.zone is None:
        raise UserError(
            f"there is no launch {name!r} yet: give --topology (such as v5e:4x4) and --zone (such as us-west4-a)."
        )
    rented = rent(arguments.topology)
    gcloud_flags(rented)
    check_zone(rented.chip, arguments.zone, any_zone=arguments.any_zone)
    if rented.slices > 1:
        check_name("tpu-vm", name, f"-{rented.slices - 1}")  # every slice's node has a number
    return Capacity(
        name,
        arguments.topology,
        "spot" if arguments.spot else "reserved" if arguments.reserved else "on-demand",
        arguments.valid_until,
        arguments.runtime,
        arguments.network,
        arguments.subnetwork,
        arguments.service_account,
        arguments.internal_ips,
    )


def _session(
    arguments: argparse.Namespace,
    launch: Launch,
    launches: Launches,
    repository: Path,
    name: str,
) -> TpuVm:
    from launch.gcloud import Gcloud
    from launch.tpu_vm import Limits, TpuVm

    check_numbers(arguments)
    gcloud = Gcloud(launch.zone, launch.project, arguments.dry_run, say=_say(arguments.dry_run))
    return TpuVm(
        name,
        launch,
        launches,
        repository,
        gcloud,
        Limits(arguments.recreate, arguments.restarts),
        arguments.with_uncommitted,
        arguments.poll_seconds,
        remember=arguments.action not in LOOKS,
    )


def _say(dry_run: bool) -> Callable[[str], None]:
    """With `--dry-run` a shell could take what is printed."""
    return print if dry_run else lambda text: print(f"[launch] {text}", flush=True)


def _act(arguments: argparse.Namespace, session: TpuVm) -> None:
    from launch.gcloud import GcloudFailed
    from launch.queued_resource import CapacityLost

    try:
        _ACTIONS[arguments.action](arguments, session)
    except GcloudFailed as failed:
        raise LaunchFailed(str(failed), 1) from failed
    except CapacityLost as lost:
        raise LaunchFailed(
            f"{lost}; `vitscale launch tpu-vm run` asks again", EXIT_PREEMPTED
        ) from lost


def sweep_place(arguments: argparse.Namespace) -> TpuVmPlace:
    from vitscale.cli_launch.tpu_vm_sweep import place_of

    return place_of(arguments)


def check_numbers(arguments: argparse.Namespace) -> None:
    for option, least in (("restarts", 0), ("recreate", 0), ("lines", 1)):
        if getattr(arguments, option) < least:
            raise UserError(f"--{option.replace('_', '-')} must be at least {least}.")
    if not arguments.poll_seconds > 0:
        raise UserError(f"--poll-seconds={arguments.poll_seconds:g} must be above 0.")


def _check_plan(arguments: argparse.Namespace, session: TpuVm) -> None:
    from launch.preflight import check_plan, plan_arguments

    launch = session.launch
    if launch.command in ((), launch.planned):
        return
    if arguments.dry_run:
        if launch.command[0] == "train" and not arguments.skip_plan:
            words = ["vitscale", "plan", *plan_arguments(launch.command)]
            print(shlex.join([*words, "--topology", launch.capacity.topology]))
        return
    said = check_plan(launch.command, launch.capacity.topology, skip=arguments.skip_plan)
    launch.planned = launch.command
    print(f"[launch] plan: {said}", flush=True)


def _run(arguments: argparse.Namespace, session: TpuVm) -> None:
    from launch.tpu_end import run_until_asked

    _check_plan(arguments, session)
    if arguments.stop_on_sigterm:
        run_until_asked(session, keep=arguments.keep)
    else:
        session.run(keep=arguments.keep)


def _up(arguments: argparse.Namespace, session: TpuVm) -> None:
    _check_plan(arguments, session)
    session.up()


def _start(arguments: argparse.Namespace, session: TpuVm) -> None:
    _check_plan(arguments, session)
    session.start_anew()


def _status(arguments: argparse.Namespace, session: TpuVm) -> None:
    print_table(f"launch {session.name}", ["", "state"], session.status())


def _logs(arguments: argparse.Namespace, session: TpuVm) -> None:
    if not arguments.follow:
        return print(session.logs(arguments.lines), end="")
    outcome = session.follow()
    if outcome.code:
        raise LaunchFailed(f"{outcome.worker} ended with code {outcome.code}", outcome.code)


def _stop(arguments: argparse.Namespace, session: TpuVm) -> None:
    outcome = session.stop()
    what = {
        "absent": "there was no run",
        "stopped": "killed, since it had not saved in time"
        if outcome.code == EXIT_KILLED
        else f"stopped, code {outcome.code}",
    }.get(outcome.state, f"{outcome.state}, code {outcome.code}")
    print(f"[launch] {session.name}: {what}; chips stay until `down`")


def _down(arguments: argparse.Namespace, session: TpuVm) -> None:
    found = session.down()
    if not arguments.dry_run:
        print(f"[launch] {session.name}: {'deleted' if found else 'there was nothing to delete'}")


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, TpuVm], None]] = {
    "run": _run,
    "up": _up,
    "start": _start,
    "status": _status,
    "logs": _logs,
    "stop": _stop,
    "down": _down,
}
