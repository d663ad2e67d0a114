"""Which kind of device a model is being traced for: not always the one that is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target_platform", default=None)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: what `compiling_for` names, else jax's default backend."""
    return _target.get() or jax.default_backend()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Traces inside choose kernels for `platform`, as devices name it ("cuda" is gpu)."""
    token = _target.set("gpu" if platform in ("cuda", "rocm") else platform)
    try:
        yield
    finally:
        _target.reset(token)
