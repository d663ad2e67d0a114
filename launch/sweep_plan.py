"""From a file with `get_sweep()` and one command to the runs of a sweep, all checked before the first one starts."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from launch.job import (
    Job,
    check_name,
    in_letters_of,
    job_of,
    option,
    suggest_name,
    with_option,
)
from launch.launch_folder import launch_folder, make_folder
from launch.secrets import refuse_secrets
from launch.sweep_state import RunState, SweepState, check_same_root, check_sole_owner
from launch.trained import config_differences, last_step, read_config
from vitscale.errors import UserError

WAY_OUT = "elsewhere than here pass --secret; here runs inherit the sweep's own environment"


@dataclass(frozen=True)
class Variant:
    """A named set of overrides: config keys such as `model.depth`, or options of the command such as `--config`."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run before it starts."""

    name: str
    workdir: str
    here: Path | None  # the workdir, where this machine sees it
    files: Path  # for what the launches of its jobs leave
    job: Job
    then: Job | None  # follows it
    overrides: Mapping[str, Any]
    config: (
        Mapping[str, Any] | None
    )  # with its overrides and defaults; None: the command is not `train`

    @property
    def then_words(self) -> str:
        return "" if self.then is None else shlex.join(self.then.command)

    @property
    def changed_keys(self) -> list[str]:
        return [key for key in self.overrides if not key.startswith("--")]

    @property
    def digest(self) -> str:
        if self.config is None:
            return ""
        text = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def folder(self, stage: str) -> Path:
        """For the logs of its jobs: `train`, or `then`."""
        return self.files / stage


@dataclass(frozen=True)
class Where:
    """Where the runs of a sweep are, and where the sweep keeps what it knows of them."""

    place: str
    root: str  # every run has its workdir in it
    folder: Path  # of the sweep's own files
    prefix: str  # of the names of jobs
    sees_workdirs: bool = True
    name_suffix: str = ""  # the longest that the place hangs on the name of a job

    def make_folder(self) -> None:
        if not self.sees_workdirs:
            make_folder(self.folder)

    def workdir(self, name: str, redone: int) -> str:
        folder = name + (f".redo-{redone}" if redone else "")
        if self.sees_workdirs:
            return str(Path(self.root) / folder)
        return f"{self.root.rstrip('/')}/{folder}"  # it may be a URL


def where_of(
    command: Sequence[str],
    place: str,
    *,
    name: str | None = None,
    sees_workdirs: bool = True,
    name_suffix: str = "",
) -> Where:
    """By the command's `--workdir`. Where it cannot be seen from here, the sweep's files are in `.vitscale/launch`.

    name: of the jobs and of that folder; default: the workdir's last part.
    """
    root = option(command, "--workdir")
    if root is None:
        raise UserError(
            "a sweep's command needs --workdir: the folder in which every run has its own."
        )
    prefix = name or PurePosixPath(root).name
    if sees_workdirs:
        if "://" in root:
            raise UserError(f"a sweep's --workdir must be a folder here, not {root}.")
        return Where(place, root, Path(root), prefix, name_suffix=name_suffix)
    if name is not None:
        check_name(place, name)
    folder = launch_folder(Path.cwd()) / f"{place}-sweeps" / suggest_name("local", prefix)
    check_same_root(folder, root)
    check_sole_owner(folder, root)
    return Where(place, root, folder, prefix, sees_workdirs, name_suffix)


def load_sweep(spec: str) -> list[Variant]:
    """Runs `get_sweep()` of "configs/study/x.py", or `get_sweep(argument)` of "configs/study/x.py:argument".

    It gives pairs of a name and a dict of overrides.
    """
    from vitscale.config_loading import call_of_file, failure_named

    name = spec.partition(":")[0]
    found = call_of_file(spec, "sweep", "get_sweep", "give pairs of a name and overrides")
    with failure_named(f"get_sweep() of {name}"):
        pairs = list(found)  # it may be a generator
    return check_variants(pairs, name)


def select(variants: Sequence[Variant], pattern: str) -> list[Variant]:
    """Those whose name fits a pattern such as `*-seed-0`."""
    chosen = [each for each in variants if fnmatch.fnmatchcase(each.name, pattern)]
    if not chosen:
        names = ", ".join(each.name for each in variants[:10])
        raise UserError(
            f"--only {pattern!r} fits none of the {len(variants)} runs, such as {names}."
        )
    return chosen


def check_variants(pairs: Sequence[Any], where: str) -> list[Variant]:
    """Raises `UserError` for what is no list of named overrides, and for names that no folder can have."""
    from vitscale.config_loading import to_plain

    variants: dict[str, Variant] = {}
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise UserError(f"{where}: get_sweep() gave {pair!r}; it must give (name, overrides).")
        name, overrides = pair[0], to_plain(pair[1])
        if not isinstance(name, str) or not isinstance(overrides, dict):
            raise UserError(f"{where}: get_sweep() gave {pair!r}; it must give (name, overrides).")
        try:
            check_name("local", name)
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('--name=')}") from None
        # On a disk that does not tell `A` from `a` they would be one folder.
        if name.lower() in variants:
            raise UserError(f"{where}: two runs are called {name!r}; names must differ.")
        if any(not isinstance(key, str) for key in overrides) or "--workdir" in overrides:
            raise UserError(
                f"{where}: overrides of {name!r} must be config keys or options, and not --workdir."
            )
        try:
            json.dumps(overrides)
        except TypeError as error:
            raise UserError(
                f"{where}: overrides of {name!r} are no plain values: {error}."
            ) from None
        variants[name.lower()] = Variant(name, overrides)
    if not variants:
        raise UserError(f"{where}: get_sweep() gave no runs.")
    return list(variants.values())


def plan_runs(
    variants: Sequence[Variant],
    command: Sequence[str],
    where: Where,
    *,
    then: str = "",
    environment: Mapping[str, str] | None = None,
    redone: Mapping[str, int] | None = None,
) -> dict[str, Planned]:
    """A run for every variant, in `--workdir`/NAME; configs are loaded, so that a typo is found before anything runs.

    `{name}` and `{workdir}` in the words of `command` and `then` are those of the run.

    redone: of runs that `--redo` gave a new workdir, how often.
    """
    after = shlex.split(then)
    names = _job_names(variants, where, follows=bool(after))
    planned = {}
    for variant in variants:
        workdir = where.workdir(variant.name, (redone or {}).get(variant.name, 0))
        known = {"{name}": variant.name, "{workdir}": workdir}
        words = with_option(_fill(command, known), "--workdir", workdir)
        for key, value in variant.overrides.items():
            if key.startswith("--"):
                words = with_option(words, key, _text(value))
            else:
                words = (*words, f"--config.{key}={_text(value)}")
        name = names[variant.name]
        follows = _fill(after, known)
        refuse_secrets({}, [*words, *follows], WAY_OUT)  # files and logs have the words
        try:
            config = _config_of(words)
        except UserError as error:
            raise UserError(f"run {variant.name}: {error}") from error
        here = Path(workdir) if where.sees_workdirs else None
        planned[variant.name] = Planned(
            variant.name,
            workdir,
            here,
            here / "launch" if here else where.folder / variant.name,
            job_of(words, where.place, name, environment),
            job_of(follows, where.place, f"{name}-then", environment) if after else None,
            variant.overrides,
            config,
        )
    return planned


def _job_names(variants: Sequence[Variant], where: Where, *, follows: bool) -> dict[str, str]:
    """Run -> name of its job. Raises `UserError` for those that the place would refuse, or take for one another."""
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for variant in variants:
        name = in_letters_of(where.place, f"{where.prefix}-{variant.name}")
        for each in (name, f"{name}-then") if follows else (name,):
            try:
                check_name(where.place, each, where.name_suffix)
            except UserError as error:
                why = str(error).removeprefix("--name=").rpartition("; such as")[0]
                raise UserError(
                    f"run {variant.name}: {why}. Give the run a shorter name, or a sweep that has not begun yet a "
                    "shorter --name."
                ) from error
            # Where workdirs are not seen, a job is found by nothing but its name.
            owner = owners.setdefault(each, variant.name)
            if owner != variant.name and not where.sees_workdirs:
                raise UserError(
                    f"runs {owner} and {variant.name} would both have a job {each!r} at {where.place}: give one of "
                    "them another name."
                )
        names[variant.name] = name
    return names


def settle_runs(
    state: SweepState, plan: Callable[..., dict[str, Planned]], *, redo: bool
) -> dict[str, Planned]:
    """The runs as `plan(redone=…)` gives them, all of them in `state` (`add_runs`)."""
    before = state.redone()
    planned = plan(redone=before)
    add_runs(state, planned, redo=redo)
    if state.redone() != before:
        planned = plan(redone=state.redone())
        for name, run in planned.items():
            state.runs[name].digest = run.digest  # its words may have the workdir in them
    return planned


def add_runs(state: SweepState, planned: Mapping[str, Planned], *, redo: bool) -> None:
    """Gives `state` every planned run. One that was started with other overrides or another config is an error.

    redo: its folder is kept as NAME.old-1, and the run is done again. A folder that is not seen here stays as it is,
        and the run gets another one, NAME.redo-1, when it is planned anew.
    """
    changed = {name: why for name, run in planned.items() if (why := _changed(state, run))}
    if changed and not redo:
        first = next(iter(changed))
        raise UserError(
            f"{len(changed)} runs are there with other settings ({first}: {changed[first]}): give them new names, or "
            "add --redo, which keeps their folders and does them again."
        )
    for name, run in planned.items():
        if name in changed:
            _put_aside(state, run)
        if name not in state.runs:
            state.runs[name] = RunState(dict(run.overrides), run.digest)


def _put_aside(state: SweepState, run: Planned) -> None:
    old = state.runs.get(run.name)
    if old is not None and old.handle is not None:
        raise UserError(f"run {run.name} has a job ({old.handle}); stop it before --redo.")
    new = RunState(dict(run.overrides), run.digest)
    if run.here is not None and run.here.exists():
        run.here.rename(_free_name(run.here))
    if run.here is None and old is not None:
        new.redone, new.known = old.redone + 1, old.known
    state.runs[run.name] = new


def _changed(state: SweepState, run: Planned) -> str:
    """What is not as in an earlier start; empty: nothing is."""
    old = state.runs.get(run.name)
    started = _has_started(run, old)
    if old:
        if not started and old.handle is None and old.state != "finished":
            old.overrides, old.digest = dict(run.overrides), run.digest  # nothing is lost
        keys = [k for k in {**old.overrides, **run.overrides} if _differ(old.overrides, run, k)]
        if keys:
            return f"overrides of {', '.join(keys[:5])}"
        if old.digest != run.digest:
            return "the config, or the command's own overrides"
    elif run.config is not None and run.here is not None and started:
        found = read_config(run.here) or {}
        if keys := config_differences(found, run.config, run.changed_keys):
            return f"a config with other {', '.join(keys[:5])}"
    return ""


def _has_started(run: Planned, old: RunState | None) -> bool:
    """Whether something would be lost. Of a workdir that is not seen here: whether a job of it has ended."""
    if run.here is not None:
        return last_step(run.here) is not None
    return old is not None and bool(old.known)


def _differ(old: Mapping[str, Any], run: Planned, key: str) -> bool:
    return key not in old or key not in run.overrides or old[key] != run.overrides[key]


def _free_name(folder: Path) -> Path:
    number = 1
    while (taken := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return taken


def _fill(words: Sequence[str], known: Mapping[str, str]) -> tuple[str, ...]:
    filled = list(words)
    for mark, value in known.items():
        filled = [word.replace(mark, value) for word in filled]
    return tuple(filled)


def _text(value: Any) -> str:
    """As `--config.key=TEXT` is read: text as it is, all else a Python literal."""
    return value if isinstance(value, str) else repr(value)


def _config_of(words: Sequence[str]) -> dict[str, Any] | None:
    """What `train` would load, plain and with defaults; None for other commands."""
    if words[0] != "train":
        return None
    from vitscale.config import TrainConfig
    from vitscale.config_loading import load_config, to_plain

    spec = option(words, "--config")
    if spec is None:
        raise UserError("the command to launch has no --config; see `vitscale train --help`.")
    return to_plain(load_config(TrainConfig, spec, config_overrides(words)))


def config_overrides(words: Sequence[str]) -> list[str]:
    """`key=value` of every `--config.key=value` and `--config.key value`."""
    found = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--config."):
            text = word.removeprefix("--config.")
            found.append(text if "=" in text else f"{text}={next(rest, '')}")
    return found
