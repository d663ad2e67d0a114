"""What pages, examples of `--help` and heads of configs say can be typed: every option and config key of it exists."""

import argparse
from pathlib import Path

import pytest
from written_commands import Written, of_config, of_page, of_shell

from data_prep.schema import PrepConfig
from vitscale.cli import _join_overrides, _split_overrides, make_parser
from vitscale.config import EvalConfig, TrainConfig
from vitscale.config_loading import load_config

ROOT = Path(__file__).parents[1]
SCHEMAS = {"eval": EvalConfig, "prep": PrepConfig}  # of all others: TrainConfig


def parsers(parser: argparse.ArgumentParser):
    yield parser
    for each in parser._actions:
        if isinstance(each, argparse._SubParsersAction):
            for inner in each.choices.values():
                yield from parsers(inner)


def all_written() -> list[Written]:
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        found += of_page(page, ROOT)
    for config in sorted((ROOT / "configs").rglob("*.py")):
        found += of_config(config, ROOT)
    for parser in parsers(make_parser()):
        found += of_shell((parser.epilog or "").partition("\n")[2], f"{parser.prog} --help")
    return found


def check(written: Written) -> None:
    words = list(written.words)
    end = words.index("--") if "--" in words else len(words)
    arguments, rest = make_parser().parse_known_args(_join_overrides(words[:end]))
    overrides = _split_overrides(rest, allowed=getattr(arguments, "takes_overrides", False))
    schema = SCHEMAS.get(arguments.command, TrainConfig)
    config = getattr(arguments, "config", None)
    if config and (ROOT / config.partition(":")[0]).is_file():
        load_config(schema, config, overrides)
    elif config:
        assert not config.startswith("configs/"), f"{config} does not exist"
    if words[end + 1 :]:
        check(Written(written.where, tuple(words[end + 1 :])))


def test_every_written_command_can_be_typed(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    wrong = []
    written = all_written()
    for each in written:
        try:
            check(each)
        except (Exception, SystemExit) as error:
            said = capsys.readouterr().err.strip().splitlines()
            wrong.append(f"{each.where}: {' '.join(each.words)}\n    {error} {said[-1:]}")
    assert not wrong, "\n".join(wrong)
    assert len(written) > 200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vitscale plan --a b   # words\n", [("plan", "--a", "b")]),
        ("vitscale plan \\\n  --a b\n", [("plan", "--a", "b")]),
        ('vitscale launch --then "eval\n x"\n', [("launch", "--then", "eval\n x")]),
        ("for k in 1 2; do vitscale a; vitscale b $k; done\n", [("a",), ("b", "1")]),
        ("vitscale a --b=$(python -c 'print(1)')\n", [("a", "--b=1")]),
        ("vitscale a … --b\n", []),
        ("X=1 vitscale a && vitscale b | tee c\n", [("a",), ("b",)]),
        ("pip install vitscale\n", []),
    ],
)
def test_commands_are_found_in_a_shell_script(text, found):
    assert [each.words for each in of_shell(text, "here")] == found


def test_a_wrong_option_is_seen(capsys):
    with pytest.raises(SystemExit):
        check(Written("here", ("embed", "--chekpoint", "x")))
    assert "required" in capsys.readouterr().err
