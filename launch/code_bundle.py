"""The code of a run as one file: a git bundle of the commit, or of the commit and what is not committed yet.

The repository is read and never written: with what is not committed, a commit on top of HEAD is made in a temporary
repository that borrows its objects.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitscale.errors import UserError

BRANCH = "launch"  # what the bundle calls its commit
LARGEST = 100 * 2**20  # bytes of files that are not committed
# Never swept along with what is not committed, whatever .gitignore forgets.
_PRIVATE = re.compile(
    r"(^|/)(\.env(\..*)?|id_(rsa|ed25519|ecdsa)[^/]*|[^/]*\.(pem|key|p12|pfx)|[^/]*credential[^/]*|\.netrc|\.npmrc"
    r"|service[-_]account[^/]*\.json)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Bundle:
    """What a worker clones."""

    path: Path
    commit: str  # that the worker checks out; not in the repository where `changed` is not empty
    base: str  # the repository's HEAD
    changed: tuple[str, ...]  # files that differ from HEAD, or are new

    @property
    def name(self) -> str:
        return self.commit[:12]


def find_repository(start: Path) -> Path:
    """The checkout of vitscale around `start`. Raises `UserError` where there is none."""
    done = _try_git(start, "rev-parse", "--show-toplevel")
    top = Path(done.stdout.strip()) if done.returncode == 0 else None
    if top is None or not (top / "vitscale" / "cli.py").is_file():
        raise UserError(
            f"{start} is not inside a git checkout of vitscale, whose code the workers need: run the launch from there."
        )
    return top


def make_bundle(repository: Path, output: Path, *, with_uncommitted: bool = False) -> Bundle:
    """Writes the bundle of HEAD into `output`.

    Args:
        with_uncommitted: also what is changed or new and not ignored, as a commit on top; else that is refused.

    Raises:
        UserError: there is no commit; files are changed; a new file looks like a secret or is large.
    """
    changed = check_files(repository, with_uncommitted=with_uncommitted)
    base = _git(repository, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        borrowed = Path(folder) / "borrowed.git"
        environment = _borrow(repository, borrowed)
        commit = _commit_all(repository, base, environment) if changed else base
        _git(repository, "update-ref", f"refs/heads/{BRANCH}", commit, environment=environment)
        output.parent.mkdir(parents=True, exist_ok=True)
        _git(
            *(repository, "bundle", "create", "--quiet", str(output.absolute()), BRANCH),
            environment=environment,
        )
    return Bundle(output, commit, base, changed)


def check_files(repository: Path, *, with_uncommitted: bool) -> tuple[str, ...]:
    """The files that are not committed. Raises `UserError` where `make_bundle` would."""
    if _try_git(repository, "rev-parse", "--verify", "--quiet", "HEAD").returncode:
        raise UserError(f"{repository} has no commit yet: commit what is to run.")
    changed = tuple(_changed(repository))
    if changed and not with_uncommitted:
        some = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
        raise UserError(
            f"{len(changed)} files are not committed ({some}) and the workers would not have them: commit them, or add "
            "--with-uncommitted."
        )
    _check_private(repository, changed)
    return changed


def bundle_path(folder: Path, commit: str) -> Path:
    """Of the bundle of a commit in a folder: its name says what is in it, whenever a launch dies."""
    return folder / f"code-{commit[:12]}.bundle"


def make_bundle_in(folder: Path, repository: Path, *, with_uncommitted: bool = False) -> Bundle:
    """`make_bundle` at `bundle_path`; other bundles there stay as they are."""
    part = folder / "code.part"
    bundle = make_bundle(repository, part, with_uncommitted=with_uncommitted)
    return replace(bundle, path=part.replace(bundle_path(folder, bundle.commit)))


def remove_others(bundle: Bundle) -> None:
    """Removes the bundles of other commits beside this one."""
    for other in bundle.path.parent.glob(bundle_path(Path(), "*").name):
        if other != bundle.path:
            other.unlink()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(repository: Path) -> list[str]:
    """Paths that differ from HEAD or are new and not ignored, from the repository's root."""
    listed = _try_git(
        repository, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames"
    )
    return sorted(entry[3:] for entry in listed.stdout.split("\0") if entry)


def _check_private(repository: Path, changed: Sequence[str]) -> None:
    private = [name for name in changed if _PRIVATE.search(name)]
    if private:
        raise UserError(
            f"{', '.join(private)}: looks like a secret and would be copied to the workers; add it to .gitignore."
        )
    size = sum(
        (repository / name).lstat().st_size
        for name in changed
        if (repository / name).exists() or (repository / name).is_symlink()
    )
    if size > LARGEST:
        raise UserError(
            f"files that are not committed hold {size / 2**20:,.0f} MiB, more than {LARGEST / 2**20:.0f}: add data and "
            "results to .gitignore, and let the workers read data from a bucket."
        )


def _borrow(repository: Path, target: Path) -> Mapping[str, str]:
    """An empty repository with the objects of another; the variables that make git work there, on the same files."""
    _git(repository, "init", "--quiet", "--bare", str(target))
    objects = _git(repository, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    (target / "objects" / "info").mkdir(parents=True, exist_ok=True)
    (target / "objects" / "info" / "alternates").write_text(objects + "\n")
    exclude = Path(
        _git(repository, "rev-parse", "--path-format=absolute", "--git-path", "info/exclude")
    )
    if exclude.is_file():
        (target / "info").mkdir(exist_ok=True)
        shutil.copy(exclude, target / "info" / "exclude")
    return {
        "GIT_DIR": str(target),
        "GIT_WORK_TREE": str(repository),
        "GIT_INDEX_FILE": str(target / "index"),
        **{f"GIT_{who}_NAME": "vitscale launch" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "launch@localhost" for who in ("AUTHOR", "COMMITTER")},
    }


def _commit_all(repository: Path, base: str, environment: Mapping[str, str]) -> str:
    _git(repository, "read-tree", base, environment=environment)
    _git(repository, "add", "--all", environment=environment)
    tree = _git(repository, "write-tree", environment=environment)
    # The same files give the same commit: a worker that has it need not install it again.
    when = _git(repository, "show", "--no-patch", "--format=%ct", base)
    dates = {f"GIT_{who}_DATE": f"{when} +0000" for who in ("AUTHOR", "COMMITTER")}
    message = f"What was not committed on top of {base}"
    return _git(
        *(repository, "commit-tree", tree, "-p", base, "-m", message),
        environment={**environment, **dates},
    )


def _try_git(
    repository: Path, *words: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # A hook or an alias that calls us must not lead git elsewhere.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "-C", str(repository), *words],
            env={**clean, **(environment or {})},
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise UserError("git is not on the PATH; the code is copied as a git bundle.") from error


def _git(repository: Path, *words: str, environment: Mapping[str, str] | None = None) -> str:
    done = _try_git(repository, *words, environment=environment)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words[:2])}: {done.stderr.strip()}")
    return done.stdout.strip()
