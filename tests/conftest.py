"""The whole suite runs on 8 fake CPU devices."""

import os

# Before the first import of jax anywhere in the session.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
