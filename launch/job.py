"""What is launched: a `vitscale` command with a name that its place accepts, and the variables it sees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from vitscale.errors import UserError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """One run of `vitscale COMMAND`, wherever."""

    name: str
    command: tuple[str, ...]  # words after `vitscale`
    workdir: str | None = None  # the command's `--workdir`
    config: str | None = None  # the command's `--config`
    environment: Mapping[str, str] = field(default_factory=dict)  # the user's own variables

    def __str__(self) -> str:
        return shlex.join(["vitscale", *self.command])


@dataclass(frozen=True)
class NameRule:
    """Which names a place takes."""

    pattern: str
    longest: int
    words: str


_CLOUD = r"[a-z]([-a-z0-9]*[a-z0-9])?"
NAME_RULES: Mapping[str, NameRule] = {
    # Names of folders and log files.
    "local": NameRule(
        r"[A-Za-z0-9][A-Za-z0-9._-]*", 100, "letters, digits, '.', '_' and '-', first no sign"
    ),
    # Slurm itself takes any text; ours also becomes part of file names (`%x`) and of `squeue`'s columns.
    "slurm": NameRule(
        r"[A-Za-z0-9][A-Za-z0-9._-]*", 64, "letters, digits, '.', '_' and '-', first no sign"
    ),
    # Google Cloud: resource names of RFC 1035.
    "tpu-vm": NameRule(
        _CLOUD, 63, "lower-case letters, digits and '-', first a letter, last no '-'"
    ),
    # Kubernetes: a JobSet's name is a label of RFC 1035, and those of its pods must be as well.
    "gke": NameRule(_CLOUD, 63, "lower-case letters, digits and '-', first a letter, last no '-'"),
}


def job_of(
    command: Sequence[str],
    place: str,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Job:
    """The job of the words after `--`.

    Args:
        place: a key of `NAME_RULES`.
        name: default: the workdir's folder, or the sub-command, in letters that the place takes.
    """
    if not command:
        raise UserError(
            "name the command to run after `--`, such as: -- train --config X --workdir D."
        )
    workdir, config = option(command, "--workdir"), option(command, "--config")
    if name is None:
        name = suggest_name(place, PurePath(workdir).name if workdir else command[0])
    check_name(place, name)
    return Job(name, tuple(command), workdir, config, dict(environment or {}))


def check_name(place: str, name: str, suffix: str = "") -> None:
    """Raises `UserError` for a name that the place would refuse.

    suffix: the longest that the place hangs on it, such as a pod's `-slice-3-15-abcde`.
    """
    rule = NAME_RULES[place]
    longest = rule.longest - len(suffix)
    if re.fullmatch(rule.pattern, name) and len(name) <= longest:
        return
    why = f"; {len(suffix)} of {rule.longest} are for {suffix!r}" if suffix else ""
    raise UserError(
        f"--name={name!r} is no name for {place}: at most {longest} characters{why}, {rule.words}; such as "
        f"{suggest_name(place, name, suffix)!r}."
    )


def suggest_name(place: str, text: str, suffix: str = "") -> str:
    """The nearest name that the place takes."""
    name = in_letters_of(place, text)
    return name[: NAME_RULES[place].longest - len(suffix)].rstrip("-._") or "run"


def in_letters_of(place: str, text: str) -> str:
    """The text in letters that the place takes in a name, however long it is."""
    if NAME_RULES[place].pattern == _CLOUD:
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("0123456789-").rstrip("-")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")


def option(words: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`; the last, as argparse takes it. None: not there."""
    value = None
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            value = words[i + 1]
        elif word.startswith(f"{name}="):
            value = word[len(name) + 1 :]
    return value


def with_option(words: Sequence[str], name: str, value: str) -> tuple[str, ...]:
    """The words with `--name VALUE` in place of what they say of it."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == name:
            next(rest, None)
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return (*kept, name, value)


def parse_environment(pairs: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` of `--env`. Raises `UserError` for anything else."""
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            # The value may be a secret: it is not repeated.
            raise UserError(f"--env {name!r} is not NAME=VALUE.")
        environment[name] = value
    return environment
