"""A launch on TPU VMs that ends with its launcher: the run saves, and its chips are deleted."""

from __future__ import annotations

from launch.gcloud import EndAsked
from launch.signals import on_termination
from launch.tpu_vm import TpuVm
from vitscale.errors import Preempted


def run_until_asked(session: TpuVm, *, keep: bool) -> None:
    """`session.run`, until SIGTERM or SIGHUP comes. No call of gcloud is cut off, lest chips come of it unseen.

    Raises:
        Preempted: a signal came; the run has ended and its chips are deleted.
    """
    with on_termination() as asked:
        session.gcloud.end_asked = asked
        try:
            session.run(keep=keep)
        except EndAsked:
            _end(session)


def _end(session: TpuVm) -> None:
    session.gcloud.say("asked to end: the run saves, then its chips are deleted")
    try:
        look = session.resource.look()
        if look is not None and look.state == "ACTIVE" and session.launch.run:
            session.stop()
        session.down()
    except BaseException:
        session.say_what_stays()
        raise
    raise Preempted(f"{session.name} was stopped, and its chips are deleted")
