"""SHA-256 of every file of a checkpoint, written inside it, so that bytes that changed on disk are found before use.

Why: Orbax's formats notice a file that is gone or cut short, but not flipped bytes in an array. Its chunks are zstd
frames without a checksum, and OCDBT's CRC-32C covers its index only (measured with Orbax 0.12 in
tests/train/test_damage.py).
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
# Orbax rewrites these two when it renames the folder, after the checksums are made; reading the arrays needs neither.
VOLATILE = ("_CHECKPOINT_METADATA", "commit_success.txt")
THREADS = 4  # the hash runs outside the interpreter lock


def write_checksums(folder: Path) -> None:
    """Hashes the files of a checkpoint that is written and not yet visible (or not yet in use)."""
    names = _file_names(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: _digest(folder / name), names)
        files = dict(zip(names, digests, strict=True))
    content = {"files": files, "list": _list_digest(files)}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(content, indent=0))


def find_damage(
    folder: Path, *, item: str = "", share: int = 0, shares: int = 1, required: bool = True
) -> str:
    """What is wrong with the files of a checkpoint, in words; empty when they are as they were written.

    Args:
        item: only the files below this sub-folder.
        share, shares: only every `shares`-th file, from number `share` on: processes divide the reading.
        required: whether a checkpoint without checksums counts as damaged.
    """
    try:
        content = json.loads((folder / CHECKSUMS_FILE).read_text())
    except FileNotFoundError:
        return f"{CHECKSUMS_FILE} is missing" if required else ""
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read: {error}"
    if set(content) != {"files", "list"} or content["list"] != _list_digest(content["files"]):
        return f"{CHECKSUMS_FILE} has changed since it was written"
    expected = content["files"]
    names = sorted(name for name in expected if name.startswith(f"{item}/" if item else ""))

    def check(name: str) -> str:
        try:
            found = _digest(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error}"
        return "" if found == expected[name] else f"{name} has changed since it was written"

    with ThreadPoolExecutor(THREADS) as pool:
        problems = [p for p in pool.map(check, names[share::shares]) if p]
    more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else ""


def _file_names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    return sorted(name for name in names if name not in (*VOLATILE, CHECKSUMS_FILE))


def _list_digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
