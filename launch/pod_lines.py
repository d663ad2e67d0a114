"""What the pods of a launch on GKE do, in lines for a terminal."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

LISTED = 10  # pods that a table names one by one


def pod_lines(pods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Pods by what they do; those that are not well one by one."""
    if not pods:
        return ["no pods"]
    counts = collections.Counter(pod["status"].get("phase", "Unknown") for pod in pods)
    lines = [", ".join(f"{count} pods {phase.lower()}" for phase, count in counts.most_common())]
    told = [(pod["metadata"]["name"], _complaint(pod)) for pod in pods]
    unwell = [f"  {name}: {words}" for name, words in sorted(told) if words]
    if len(unwell) > LISTED:
        unwell[LISTED:] = [f"  and {len(unwell) - LISTED} more"]
    return lines + unwell


def _complaint(pod: Mapping[str, Any]) -> str:
    """Why a pod does not run: no node, no image, an exit code."""
    for container in pod["status"].get("containerStatuses", ()):
        for state, found in container.get("state", {}).items():
            if state == "terminated" and found.get("exitCode"):
                return f"exit code {found['exitCode']} ({found.get('reason', 'no reason')})"
            if state == "waiting" and found.get("reason") not in (None, "ContainerCreating"):
                return f"{found['reason']}: {found.get('message', '')}".rstrip(": ")
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message', '')}".rstrip(": ")
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"stopped by the cluster: {condition.get('reason')}"
    return ""
