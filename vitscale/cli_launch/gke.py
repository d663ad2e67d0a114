"""`vitscale launch gke`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.errors import UserError

if TYPE_CHECKING:
    from launch.chips import Rented
    from launch.gke import Record
    from launch.job import Job
    from launch.manifests import Manifest
    from launch.sweep_gke import GkePlace

HELP = "run the command on TPU slices or GPUs of a Kubernetes cluster (GKE)"
EXAMPLE = """
vitscale launch gke --topology v5e:4x4 --image us-docker.pkg.dev/my-project/vitscale/tpu:1 --bucket my-bucket \\
  -- train --config configs/pretrain_vit_b16.py --workdir /mnt/bucket/runs/b16
vitscale launch gke status --name b16
vitscale launch gke --sweep configs/study/model_size.py --concurrency 4 --topology v5e:1x1 --bucket my-bucket \\
  --image us-docker.pkg.dev/my-project/vitscale/tpu:1 -- train --config configs/small/multitask.py \\
  --workdir /mnt/bucket/runs/model-size
""".strip()
BUCKET_PATH = "/mnt/bucket"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default="run",
        choices=("run", "status", "logs", "delete"),
        help="status, logs and delete: of the launch --name; default: run",
    )
    parser.add_argument("--topology", metavar="NAME", help="v5e:4x4, 4*v5e:16x16, h100:16, ...")
    parser.add_argument("--image", help="built from launch/docker, with a tag or a digest")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the manifest is also written there"
    )
    _add_cluster(parser.add_argument_group("cluster"))
    _add_storage(parser.add_argument_group("storage"))
    _add_pods(parser.add_argument_group("pods"))
    logs = parser.add_argument_group("logs")
    logs.add_argument("--process", type=int, metavar="I", help="of this process; default: of all")
    logs.add_argument("--tail", type=int, default=20, metavar="N", help="lines each; default: 20")
    logs.add_argument("--follow", action="store_true", help="and go on")


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--context", help="of the kubeconfig; default: its current one")
    group.add_argument("--namespace", default="default", help="default: default")
    group.add_argument("--service-account", help="Kubernetes' own, bound to one that may read data")
    group.add_argument("--queue", help="Kueue's LocalQueue, which says when the run may start")
    group.add_argument("--priority-class", help="of the pods")
    group.add_argument("--zone", help="only nodes there; checked against a table")
    group.add_argument("--any-zone", action="store_true", help="the table may be out of date")
    group.add_argument("--spot", action="store_true", help="nodes that Google may take back")
    group.add_argument("--reservation", help="nodes of this reservation")
    group.add_argument("--autopilot", action="store_true", help="the cluster is one of Autopilot's")
    group.add_argument("--launch-id", help="of a launch from another machine: status, logs, delete")


def _add_storage(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--bucket", help=f"of Cloud Storage, mounted at {BUCKET_PATH}")
    group.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="gs://BUCKET[/FOLDER]=/PATH[:ro]",
        help="a bucket elsewhere; may be repeated",
    )
    group.add_argument(
        "--local-ssd", metavar="PATH", help="the node's own disks there (GPUs); lost with the pod"
    )


def _add_pods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="VARIABLE=SECRET[:KEY]",
        help="a variable from a Kubernetes secret; default KEY: the variable's name",
    )
    group.add_argument(
        "--grace",
        type=int,
        metavar="SECONDS",
        help="from SIGTERM to SIGKILL; default: survival.peer_timeout and two minutes",
    )
    group.add_argument("--cpu", metavar="CORES", help="that a pod asks for; default: not said")
    group.add_argument("--memory", metavar="SIZE", help="that a pod asks for, such as 100Gi")
    group.add_argument("--shared-memory", default="16Gi", metavar="SIZE", help="default: 16Gi")
    group.add_argument(
        "--host-network", action="store_true", help="pods use the node's network: faster slices"
    )
    group.add_argument(
        "--as-root", action="store_true", help="where the device plugin gives chips to root only"
    )


def run(arguments: argparse.Namespace, command: list[str]) -> None:
    if arguments.action == "run":
        _run(arguments, command)
    else:
        _look(arguments, command)


def sweep_place(arguments: argparse.Namespace) -> GkePlace:
    from launch import gke
    from launch.sweep_gke import GkePlace

    if arguments.action != "run":
        raise UserError(
            f"{arguments.action} is of one launch: `vitscale launch gke {arguments.action} --name NAME-RUN`, without "
            "--sweep."
        )
    if arguments.output is not None:
        raise UserError("a --sweep has a manifest for every run: leave out --output.")
    rented = _rent(arguments)
    if not arguments.dry_run:
        _tell_of_restarts(arguments, rented)
    return GkePlace(
        rented,
        lambda job, record: _documents(arguments, job, rented, record),
        gke.find_folder(Path.cwd()),
        context=arguments.context,
        namespace=arguments.namespace,
        skip_plan=arguments.skip_plan,
    )


def _rent(arguments: argparse.Namespace) -> Rented:
    from launch.chips import check_zone, rent

    for name in ("topology", "image"):
        if getattr(arguments, name) is None:
            raise UserError(f"--{name} is missing; such as: {EXAMPLE.splitlines()[0]}")
    rented = rent(arguments.topology)
    if arguments.zone:
        check_zone(rented.chip, arguments.zone, any_zone=arguments.any_zone)
    return rented


def _tell_of_restarts(arguments: argparse.Namespace, rented: Rented) -> None:
    if not rented.is_tpu and rented.hosts > 1 and arguments.restarts == 0:
        print(
            "[launch] --restarts 0: when one machine is lost, the others end with code 76, which counts, and so does "
            "the run",
            file=sys.stderr,
        )


def _run(arguments: argparse.Namespace, command: list[str]) -> None:
    from launch import gke
    from launch.kubectl import current_context
    from launch.manifests import to_yaml
    from launch.preflight import check_plan
    from vitscale.cli_launch import job_from

    rented = _rent(arguments)
    job = job_from(arguments, command)
    context = arguments.context or ("" if arguments.dry_run else current_context())
    folder = gke.find_folder(Path.cwd())
    record = gke.new_record(job, rented, context, arguments.namespace, folder)
    documents = _documents(arguments, job, rented, record)
    # On stderr: what is on stdout can go to kubectl.
    plan = check_plan(command, arguments.topology, skip=arguments.skip_plan)
    machines = f"{rented.processes} machines {rented.machine}"
    print(f"[launch] plan: {plan}\n[launch] {machines}", file=sys.stderr)
    _tell_of_restarts(arguments, rented)
    text = to_yaml(documents)
    if arguments.output:
        try:
            arguments.output.write_text(text)
        except OSError as error:
            raise UserError(
                f"--output {arguments.output} cannot be written ({error.strerror}): name a file in a folder that is "
                "there."
            ) from error
    if arguments.dry_run:
        print(text, end="")
        return
    gke.create(record, documents, folder)
    print(f"launched {job.name} on {machines} in {context}, id {record.launch_id}")
    for action in ("status", "logs --follow", "delete"):
        print(f"  vitscale launch gke {action} --name {job.name}")


def _documents(
    arguments: argparse.Namespace, job: Job, rented: Rented, record: Record
) -> list[Manifest]:
    from launch import pods
    from launch.gke import grace_of
    from launch.manifests import JobOptions, manifests
    from launch.secrets import refuse_secrets

    refuse_secrets(
        job.environment,
        job.command,
        "use --secret VARIABLE=SECRET:KEY, a reference to a Kubernetes secret",
    )
    mounts = [f"gs://{arguments.bucket}={BUCKET_PATH}"] if arguments.bucket else []
    if arguments.grace is not None and arguments.grace < 1:
        raise UserError(f"--grace={arguments.grace} must be at least 1 second.")
    options = pods.PodOptions(
        image=arguments.image,
        mounts=tuple(map(pods.parse_mount, mounts + arguments.mount)),
        secrets=pods.parse_secrets(arguments.secret),
        service_account=arguments.service_account,
        grace=grace_of(job) if arguments.grace is None else arguments.grace,
        cpu=arguments.cpu,
        memory=arguments.memory,
        shared_memory=arguments.shared_memory,
        local_ssd=arguments.local_ssd,
        zone=arguments.zone,
        spot=arguments.spot,
        reservation=arguments.reservation,
        host_network=arguments.host_network,
        as_root=arguments.as_root,
        autopilot=arguments.autopilot,
    )
    pods.check_image(options.image)
    pods.check_paths(job.workdir, options.mounts, options.local_ssd)
    return manifests(
        job,
        rented,
        options,
        JobOptions(record.launch_id, arguments.restarts, arguments.queue, arguments.priority_class),
    )


def _look(arguments: argparse.Namespace, command: list[str]) -> None:
    from launch import gke
    from launch.job import check_name
    from launch.kubectl import Kubectl, current_context

    if command:
        raise UserError(f"{arguments.action} takes no command after `--`.")
    if arguments.name is None:
        raise UserError(f"say which launch: vitscale launch gke {arguments.action} --name NAME")
    check_name("gke", arguments.name)
    kubectl = None
    if arguments.launch_id:
        kubectl = Kubectl(arguments.context or current_context(), arguments.namespace)
    folder = gke.find_folder(Path.cwd())
    record = gke.find(arguments.name, launch_id=arguments.launch_id, kubectl=kubectl, folder=folder)
    if arguments.action == "status":
        print("\n".join(gke.status(record)))
    elif arguments.action == "logs":
        gke.logs(record, process=arguments.process, tail=arguments.tail, follow=arguments.follow)
    elif arguments.dry_run:
        words = ("delete", record.created_kinds, f"--selector={record.selector}", *gke.DELETE[0])
        print(" ".join(record.kubectl.command(*words)))
    else:
        print("deleted " + ", ".join(gke.delete(record, folder)) + "; pods that run save first")
