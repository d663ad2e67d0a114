"""`.vitscale/launch`: what launches remember on this machine, and never in a commit."""

from __future__ import annotations

import os
from pathlib import Path

from launch.code_bundle import find_repository
from vitscale.errors import UserError


def launch_folder(start: Path) -> Path:
    """That of the checkout around `start`, else of `start` itself: with the code in an image, none is needed."""
    try:
        top = find_repository(start)
    except UserError:
        top = start
    return top / ".vitscale" / "launch"


def make_folder(folder: Path) -> None:
    """Makes a folder below `.vitscale`, of which nothing belongs into a commit or into the bundle of a launch."""
    folder.mkdir(parents=True, exist_ok=True)
    top = next((path for path in folder.parents if path.name == ".vitscale"), folder)
    ignore = top / ".gitignore"
    if not ignore.is_file():
        # Whole at once: another launch may be asking git what is not committed.
        part = top / f".gitignore.{os.getpid()}"
        part.write_text("*\n")
        part.replace(ignore)
