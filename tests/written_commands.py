"""The `vitscale` commands that are written in pages, in examples of `--help` and in the heads of configs."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^ *```(?:bash|console|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_VALUE = re.compile(r"\$\((?:[^()]|\([^()]*\))*\)|\$\{?\w+\}?")  # what the shell puts in: here a 1
_LEFT_OUT = {"…", "..."}
_ENDS = {"|", "&", ";", "&&", "||", "done", ">", "2>", "do", ">>"}
_LEADS = {"do", "time", "srun", "nohup", "then", "{"}


@dataclass(frozen=True)
class Written:
    where: str  # file and line
    words: tuple[str, ...]  # after `vitscale`


def of_page(path: Path, root: Path) -> Iterator[Written]:
    """Those in the fenced blocks of a Markdown file."""
    text = path.read_text()
    for block in _FENCE.finditer(text):
        line = text.count("\n", 0, block.start(1)) + 1
        yield from of_shell(block[1], str(path.relative_to(root)), line)


def of_config(path: Path, root: Path) -> Iterator[Written]:
    """Those in the docstring of a Python file: its indented lines."""
    head = ast.get_docstring(ast.parse(path.read_text())) or ""
    lines = [line if line.startswith("    ") else "" for line in head.splitlines()]
    yield from of_shell("\n".join(lines), str(path.relative_to(root)), 1)


def of_shell(text: str, where: str, first_line: int = 1) -> Iterator[Written]:
    """A statement may go over several lines, by a backslash or inside quotes. One with dots for words is left out."""
    statement, start = "", first_line
    for number, line in enumerate(text.splitlines(), first_line):
        start = start if statement else number
        statement += line + "\n"
        try:
            words = shlex.split(_VALUE.sub("1", statement.replace("\\\n", " ")), comments=True)
        except ValueError:  # a quote is open
            continue
        if line.rstrip().endswith("\\"):
            continue
        if not _LEFT_OUT & set(words):
            yield from _commands(words, f"{where}:{start}")
        statement = ""
    assert not statement, f"{where}:{start}: the quotes do not close"


def _commands(words: list[str], where: str) -> Iterator[Written]:
    rest = iter(words)
    begins = True
    for word in rest:
        if begins and word == "vitscale":
            found = []
            for each in rest:
                ended = each.endswith(";")
                if each in _ENDS:
                    break
                found.append(each.rstrip(";"))
                if ended:
                    break
            yield Written(where, tuple(found))
            begins = True
        else:
            begins = (
                word in _ENDS | _LEADS
                or word.endswith(";")
                or bool(re.fullmatch(r"[A-Z_]+=.*", word))
                or word == "$"
            )
