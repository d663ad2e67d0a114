"""`vitscale prep` as a user meets it: the run itself, and the actions on its output folder."""

from pathlib import Path

import pytest

from vitscale.cli import main
from vitscale.errors import UserError

SHOP = str(Path(__file__).parent.parent / "configs" / "prep" / "shop.py")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a command that ends with exit code 2."""
    assert main(["prep", *words]) == 2
    return capsys.readouterr().err


def test_a_run_needs_its_three_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config, --input, --output must be given" in told(capsys)
    assert "--input must be given" in told(capsys, "--config", SHOP, "--output", "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.scoring.min_score", "2"], "scoring.min_score=2.0 must be between 0 and 1"),
        (["--config.scoring.min_score=2"], "scoring.min_score=2.0 must be between 0 and 1"),
        (["--config.scoring.min_scores.de=-1"], "scoring.min_scores.de=-1.0 must be between"),
        (
            ["--config.scoring.min_scores.de", "x"],
            "scoring.min_scores.de='x' must be of type float",
        ),
        (["--config.scoring.keep_features", "-2"], "keep_features=-2 must be 0 or more records"),
        (["--config.scoring.min_score"], "--config.scoring.min_score has no value"),
        (["--config.scoring.scorer=/nowhere"], "/nowhere/scorer.json does not exist"),
    ],
)
def test_overrides_of_the_scoring(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"id": "a", "image": "a.jpg", "title": "x", "description": "x", "alt_text": "x", '
        '"boards": [], "queries": []}\n'
    )
    paths = ["--input", str(tmp_path / "c.jsonl"), "--output", str(tmp_path / "out")]
    assert message in told(capsys, "--config", SHOP, *words, *paths)


@pytest.mark.parametrize("action", ["judge-sample", "fit-scorer", "report"])
def test_actions_want_a_finished_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, action: str
) -> None:
    words = [action, "--prep", str(tmp_path)]
    words += ["--output", str(tmp_path / "new")] if action != "report" else []
    words += ["--judged", "j.csv"] if action == "fit-scorer" else []
    assert f"--prep {tmp_path} is no finished output folder" in told(capsys, *words)
    assert "unknown argument" in told(capsys, *words, "--config.scoring.min_score=0.1")
    with pytest.raises(UserError):
        main(["prep", "--debug", *words])
