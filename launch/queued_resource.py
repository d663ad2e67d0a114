"""A queued resource of Cloud TPU: asked for, waited for, deleted. Only what this launch made is ever touched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.chips import gcloud_flags, rent
from launch.gcloud import Gcloud, GcloudFailed, meaning
from vitscale.errors import UserError

LABEL = "vitscale-launch"  # on every node: the launch that made it
GOING = ("SUSPENDING", "DELETING")
TIERS: Mapping[str, tuple[str, ...]] = {
    "on-demand": (),
    "spot": ("--spot",),
    "reserved": ("--reserved",),
}
STATE_SECONDS = 600.0  # between lines that say that nothing has changed
DELETE_LIMIT = 900.0


class CapacityLost(Exception):
    """The chips are gone, or could not be had: another request may get them."""


@dataclass(frozen=True)
class Capacity:
    """What the cloud is asked for."""

    name: str
    topology: str  # as `vitscale plan` takes it
    tier: str = "on-demand"  # a key of TIERS
    valid_until: str | None = None  # "6h": the request ends unfilled after that
    runtime: str | None = None  # None: the one for the chip
    network: str | None = None
    subnetwork: str | None = None
    service_account: str | None = None
    internal_ips: bool = False

    def words(self, launch_id: str) -> list[str]:
        """Of `gcloud compute tpus`, to ask for it. `UserError` for chips that are not rented so."""
        rented = rent(self.topology)
        chips = gcloud_flags(rented)
        nodes = (
            [f"--node-id={self.name}"]
            if rented.slices == 1
            else [f"--node-count={rented.slices}", f"--node-prefix={self.name}"]
        )
        optional = {
            "--valid-until-duration": self.valid_until,
            "--network": self.network,
            "--subnetwork": self.subnetwork,
            "--service-account": self.service_account,
        }
        return [
            *("queued-resources", "create", self.name),
            *nodes,
            *chips,
            f"--runtime-version={self.runtime or rented.runtime}",
            *TIERS[self.tier],
            *(f"{flag}={value}" for flag, value in optional.items() if value),
            *(["--internal-ips"] if self.internal_ips else []),
            f"--labels={LABEL}={launch_id}",
            "--async",
        ]


@dataclass(frozen=True)
class Look:
    """What the cloud says of a queued resource."""

    state: str
    owners: frozenset[str]  # values of LABEL on its nodes; "" where one has none
    error: str = ""

    def __str__(self) -> str:
        return f"{self.state} ({self.error})" if self.error else self.state


def read_look(document: Mapping[str, Any]) -> Look:
    """Of `queued-resources describe --format=json`."""
    state = document.get("state", {})
    nodes = document.get("tpu", {}).get("nodeSpec", [])
    return Look(
        state.get("state", "STATE_UNSPECIFIED"),
        frozenset(node.get("node", {}).get("labels", {}).get(LABEL, "") for node in nodes),
        state.get("failedData", {}).get("error", {}).get("message", ""),
    )


class QueuedResource:
    """The queued resource of one launch."""

    def __init__(
        self,
        gcloud: Gcloud,
        name: str,
        launch_id: str,
        *,
        poll_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gcloud, self.name, self._launch_id = gcloud, name, launch_id
        self._poll_seconds, self._clock = poll_seconds, clock

    def look(self) -> Look | None:
        """None: there is none of that name. With `--dry-run` it is there and ours."""
        try:
            document = self._gcloud.ask("queued-resources", "describe", self.name)
        except GcloudFailed as failed:
            if failed.kind == "not found":
                return None
            raise
        if document is None:
            return Look("ACTIVE", frozenset({self._launch_id}))
        return read_look(document)

    def is_ours(self, look: Look) -> bool:
        return look.owners == {self._launch_id}

    def check_ours(self, look: Look) -> None:
        if not self.is_ours(look):
            raise UserError(
                f"the queued resource {self.name} in {self._gcloud.zone} was not created by this launch (its label "
                f"{LABEL} is {', '.join(sorted(look.owners)) or 'missing'!r}, not {self._launch_id!r}): nothing was "
                "changed or deleted. Take another --name, or delete it yourself."
            )

    def create(self, capacity: Capacity) -> None:
        """Asks for it. One that an earlier call of this launch asked for is taken."""
        try:
            self._gcloud.call(*capacity.words(self._launch_id))
        except GcloudFailed as failed:
            if failed.kind == "stockout":
                raise CapacityLost(str(failed)) from failed
            if failed.kind != "exists":
                raise UserError(str(failed)) from failed
            # A request that timed out here may have come through there.
            found = self.look()
            if found is not None:
                self.check_ours(found)

    def bring_up(self, capacity: Capacity) -> bool:
        """Until it is ACTIVE, however it stands now. Whether it was created just now.

        Raises:
            CapacityLost: there is no capacity, or it went again; what is left of it is deleted first.
            UserError: the request itself is wrong; the name is taken by somebody else's.
        """
        found = self.look() if not self._gcloud.dry_run else None
        if found is not None:
            self.check_ours(found)
            if found.state in GOING or found.state == "SUSPENDED":
                self.delete()
                found = None
            elif found.state == "FAILED":
                self._fail(found)
        if found is None:
            self.create(capacity)
        self.wait()
        return found is None

    def wait(self) -> None:
        """Until ACTIVE; says each new state, and now and then the old one."""
        last, said = "", self._clock()
        while True:
            look = self.look()
            if look is None:
                raise CapacityLost(f"the queued resource {self.name} is not there any more")
            self.check_ours(look)
            if self._gcloud.dry_run:
                return
            if look.state != last or self._clock() - said > STATE_SECONDS:
                last, said = look.state, self._clock()
                self._gcloud.say(f"queued resource {self.name}: {look}")
            if look.state == "ACTIVE":
                return
            if look.state == "FAILED":
                self._fail(look)
            if look.state in (*GOING, "SUSPENDED"):
                raise CapacityLost(f"the queued resource {self.name} is {look}")
            self._gcloud.pause(self._poll_seconds)

    def _fail(self, look: Look) -> None:
        """Deletes a request that failed, and says whether another one may do better."""
        kind = meaning(look.error)
        self.delete()
        if kind == "quota":
            raise UserError(
                f"the queued resource {self.name} failed: {look.error}. Ask for quota, or name another --zone or "
                "fewer chips; it was deleted."
            )
        raise CapacityLost(f"the queued resource {self.name} failed: {look.error or 'no reason'}")

    def delete(self) -> bool:
        """Deletes it and its nodes, and waits until they are gone. Whether there was one.

        Raises:
            UserError: it was not created by this launch, or does not go.
        """
        look = self.look()
        if look is None:
            return False
        self.check_ours(look)
        until = self._clock() + DELETE_LIMIT
        try:
            self._gcloud.call(
                *("queued-resources", "delete", self.name, "--force"), retry=("passing", "busy")
            )
            while not self._gcloud.dry_run and (look := self.look()) is not None:
                self.check_ours(look)  # in between somebody else may have taken the name
                if self._clock() > until:
                    raise UserError(
                        f"the queued resource {self.name} is {look} and not gone after {DELETE_LIMIT:.0f} s; look at "
                        "console.cloud.google.com/compute/tpus."
                    )
                self._gcloud.sleep(self._poll_seconds)
        except GcloudFailed as failed:
            if failed.kind != "not found":
                raise
        return True

    def worker_count(self) -> int | None:
        """Machines of all nodes, as the cloud counts them; None where it does not say."""
        counts = [len(node.get("networkEndpoints", [])) for node in self._nodes()]
        return sum(counts) if counts and all(counts) else None

    def lost_nodes(self, expected: int = 0) -> list[str]:
        """Nodes of this launch that cannot be used, and their state (`b16: PREEMPTED`), or how many are missing.

        A queued resource can be ACTIVE for minutes after its node was preempted (skypilot-org/skypilot #1468).
        """
        usable = ("READY", "CREATING", "STARTING", "RESTARTING", "REPAIRING")
        nodes = self._nodes()
        lost = [
            f"{node['name'].rpartition('/')[2]}: {node.get('state', '?')}"
            for node in nodes
            if node.get("state") not in usable
        ]
        if len(nodes) < expected:
            lost.append(f"{expected - len(nodes)} of {expected} nodes are not there")
        return lost

    def unhealthy_nodes(self) -> list[str]:
        """Nodes of which the cloud says that they are not well (`b16: UNHEALTHY_MAINTENANCE`; TPU API v2, Health)."""
        return [
            f"{node['name'].rpartition('/')[2]}: {health}"
            for node in self._nodes()
            if (health := node.get("health")) not in (None, "HEALTH_UNSPECIFIED", "HEALTHY")
        ]

    def _nodes(self) -> list[dict[str, Any]]:
        label = f"--filter=labels.{LABEL}={self._launch_id}"
        return self._gcloud.ask("tpu-vm", "list", label) or []
