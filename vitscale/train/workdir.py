"""The folder of a run: one run at a time, one config, and the files beside the checkpoints."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from vitscale.config import FREE_KEYS, TrainConfig
from vitscale.config_loading import to_json
from vitscale.data.batches import Reject
from vitscale.errors import UserError
from vitscale.models.weights import has_step
from vitscale.train.agreement import first_complaint

logger = logging.getLogger(__name__)
CONFIG_FILE, CLASSES_FILE, REJECTS_FILE = "config.json", "classes.json", "rejects.jsonl"
LOCK_FILE = ".lock"


class WorkdirLock:
    """Holds a workdir for one run. Use it as a context manager, on every process of the run.

    Process 0 holds an advisory lock (flock) on `WORKDIR/.lock`. The kernel gives it up when the process ends, however
    it ends, so there is never a stale lock to remove. The file says who holds it, for the message only.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._file: IO[str] | None = None

    def __enter__(self) -> WorkdirLock:
        complaint = first_complaint(self._acquire() if jax.process_index() == 0 else "")
        if complaint:
            self._release()
            raise UserError(complaint)
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _acquire(self) -> str:
        """Takes the lock, or says why not."""
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = (self._workdir / LOCK_FILE).open("a+")
        except OSError as error:
            return f"the workdir {self._workdir} cannot be written: {error.strerror}."
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return (
                    f"{self._workdir} is in use by {_holder(self._file)}; wait for it or take another "
                    "--workdir."
                )
            logger.warning(
                "the file system of %s has no locks (%s): nothing stops a second run there",
                self._workdir,
                error.strerror,
            )
        self._file.seek(0)
        self._file.truncate()
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        self._file.write(json.dumps(holder))
        self._file.flush()
        return ""

    def _release(self) -> None:
        # The file stays: removing it would let two runs hold locks on two files of one name.
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return (
            "another process"  # which took the lock a moment ago and has not written its name yet
        )


def claim_workdir(workdir: Path, config: TrainConfig, classes: Mapping[str, Sequence[str]]) -> None:
    """Writes `config.json` and `classes.json`; refuses a workdir with checkpoints of another config.

    Every process calls it; process 0 reads and writes, and all of them raise.
    """
    complaint = first_complaint(
        _claim(workdir, config, classes) if jax.process_index() == 0 else ""
    )
    if complaint:
        raise UserError(complaint)


def _claim(workdir: Path, config: TrainConfig, classes: Mapping[str, Sequence[str]]) -> str:
    text = to_json(config)
    path = workdir / CONFIG_FILE
    changed: list[str] = []
    if path.is_file() and has_step(workdir):
        try:
            old = json.loads(path.read_text())
        except ValueError:
            return f"{path} is not JSON; restore it, or take a new --workdir."
        keys = _changed_keys(old, json.loads(text))
        changed = [key for key in keys if not _is_free(key)]
    if changed:
        return (
            f"{workdir} holds a run of another config (it differs in {', '.join(changed[:5])}); "
            "take a new --workdir, or the old config to go on with that run."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write(
            workdir / CLASSES_FILE,
            json.dumps({k: list(v) for k, v in classes.items()}, ensure_ascii=False),
        )
        _write(path, text)
    except OSError as error:
        return f"the workdir {workdir} cannot be written: {error.strerror}."
    return ""


class RejectsFile:
    """Examples that training could not use, one JSON line each: `id`, `source`, `reason`.

    Each is named once, however often it is drawn and the run started. Process p > 0 has `rejects-p.jsonl`: files
    that several hosts append to are not safe on every file system.
    """

    def __init__(self, workdir: Path) -> None:
        number = jax.process_index()
        path = Path(REJECTS_FILE)
        self._path = workdir / (path.with_stem(f"{path.stem}-{number}") if number else path)
        self._known = {_identity(line) for line in _complete_lines(self._path)}

    def add(self, rejects: Iterable[Reject]) -> None:
        """Written at once: a run that is killed leaves them."""
        lines = []
        for reject in rejects:
            line = json.dumps(dataclasses.asdict(reject), ensure_ascii=False)
            if (known := _identity(line)) not in self._known:
                self._known.add(known)
                lines.append(line + "\n")
        if lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)


def _identity(line: str) -> bytes:
    # A digest, since there may be millions of rejects in a data set of billions.
    return hashlib.blake2b(line.encode(), digest_size=8).digest()


def _complete_lines(path: Path) -> list[str]:
    """The file's lines, after it is cut to those that a kill did not tear."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole, end, torn = text.rpartition("\n")
    if torn:
        _write(path, whole + end)
    return whole.split("\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _changed_keys(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            key
            for name in {**old, **new}
            for key in _changed_keys(
                old.get(name), new.get(name), f"{where}.{name}" if where else name
            )
        ]
    return [] if old == new else [where]
