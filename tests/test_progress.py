import io
import re

import pytest
from rich.console import Console

from vitscale import progress
from vitscale.progress import Task


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)


def text(console):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_a_terminal_shows_the_bar_the_rate_the_time_left_and_the_details(terminal, monkeypatch):
    now = [0.0]
    with Task("train", 100, console=terminal) as task:
        monkeypatch.setattr(task._bar, "get_time", lambda: now[0])
        task.update(1, "loss 3.000")
        now[0] = 40.0  # seconds between two reports of slow steps
        task.update(21, "loss 2.000", details={"colour": "1.25", "shade": "0.75"})
        task._live.refresh()
    shown = text(terminal)
    for part in ("train", "━", "21/100", "0.5/s", "loss 2.000", "0:02:38 left"):
        assert part in shown
    assert re.search(r"colour +1\.25", shown)
    assert re.search(r"shade +0\.75", shown)


def test_details_stay_until_they_are_replaced(terminal):
    with Task("train", 10, console=terminal) as task:
        task.update(1, details={"colour": "1.25"})
        task.update(2)
        task._live.refresh()
        assert "1.25" in text(terminal)
        terminal.file.truncate(0)
        task.update(3, details={})
        task._live.refresh()
    assert "colour" not in text(terminal)


def test_names_are_shown_as_they_are(terminal):
    with Task("train", 10, console=terminal) as task:
        task.update(1, details={"[red]": "[/x]"})
    assert "[red]" in text(terminal)


def test_elsewhere_plain_lines_every_few_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    with Task("train", 100, 40, console=console) as task:
        for done in (50, 60, 70):  # of which 40 were done before
            now[0] += 6.0
            task.update(done, "loss 2.0", details={"colour": "1.25"})
        now[0] += 2.0
        task.update(100)
    assert console.file.getvalue().splitlines() == [
        "train: 60/100 loss 2.0 (1.7/s, 24 s left)",
        "train: 100/100 loss 2.0 (3.0/s, in 20.0 s)",
    ]


def test_a_total_that_becomes_known_late(capsys):
    with Task("render", 0) as task:
        task.update(5, total=5)
    assert "render: 5/5" in capsys.readouterr().err


def test_an_error_gets_no_last_line(capsys):
    with pytest.raises(RuntimeError), Task("render", 5) as task:  # noqa: PT012
        task.update(2)
        raise RuntimeError
    assert capsys.readouterr().err == ""
