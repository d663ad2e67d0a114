"""Apache Beam, imported without its warnings about Google Cloud's optional clients, on the root logger."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from vitscale.errors import UserError

_ROOT = logging.getLogger()
_LEVEL = _ROOT.level
_ROOT.setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import apache_beam as beam
        import apache_beam.options.pipeline_options  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"vitscale prep needs {error.name}, which is not installed: pip install 'vitscale[prep]'."
        ) from error
_ROOT.setLevel(_LEVEL)

__all__ = ["beam", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Beam from logging an exception that whoever runs the pipeline gets anyway."""
    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
