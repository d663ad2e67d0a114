"""Starting one process of many. `vitscale launch` sets the environment; a lone process needs none."""

from __future__ import annotations

import os

import jax

from vitscale.errors import UserError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "VITSCALE_COORDINATOR",
    "VITSCALE_NUM_PROCESSES",
    "VITSCALE_PROCESS_ID",
)


def initialise() -> None:
    """Joins the other processes when the environment names a coordinator. Call before any device is touched."""
    coordinator = os.environ.get(COORDINATOR)
    if not coordinator:
        return
    missing = [
        name for name in (NUM_PROCESSES, PROCESS_ID) if not os.environ.get(name, "").isdigit()
    ]
    if missing:
        raise UserError(f"{COORDINATOR} is set but {' and '.join(missing)} is not a number.")
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=int(os.environ[NUM_PROCESSES]),
        process_id=int(os.environ[PROCESS_ID]),
    )
