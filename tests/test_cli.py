"""The command as a user meets it: exit codes, one sentence for each mistake, nothing half-written left behind."""

import csv
import json
import re
import shutil

import pytest

from vitscale.cli import main, make_parser

COMMANDS = [
    "demo",
    "shop",
    "prep",
    "data",
    "train",
    "eval",
    "embed",
    "index",
    "compare",
    "judge",
    "online",
    "plan",
    "convert",
    "launch",
    "doctor",
    "study",
]


def fails(capsys, *arguments):
    """Runs a command that must be refused; returns its one sentence."""
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return re.sub(r"^vitscale \w+: ", "", error.strip().splitlines()[-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"example:\n  vitscale {command}" in capsys.readouterr().out


def test_every_command_is_covered_here():
    actions = [a for a in make_parser()._actions if a.dest == "command"]
    assert sorted(actions[0].choices) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.optim.lrr=1e-3", r"unknown config key 'lrr' in optim: did you mean 'lr'\?"),
        ("--config.optim.lr=fast", r"optim.lr='fast' must be of type float"),
        ("--config.seed=1.5", r"seed=1.5 must be of type int"),
        (
            "--config.mesh.layout=fsdpp",
            r"must be one of 'dp', 'fsdp', 'fsdp_tp', 'hybrid'; did you mean 'fsdp'",
        ),
        ("--config.tasks.7.weight=1", r"tasks has 3 entries"),
        ("--config.duration", r"has no value"),
        ("--steps=3", r"unknown argument '--steps=3'"),
    ],
)
def test_wrong_overrides(capsys, tmp_path, config_file, override, words):
    workdir = tmp_path / "run"
    message = fails(capsys, "train", "--config", config_file(), "--workdir", workdir, override)
    assert re.search(words, message)
    assert not workdir.exists()


def test_missing_config_file(capsys, tmp_path):
    message = fails(capsys, "train", "--config", "nowhere.py", "--workdir", tmp_path / "run")
    assert "config file nowhere.py does not exist" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__sources": [{"kind": "csv", "path": "no.csv"}]}, r"no\.csv"),
        (
            {"data__sources": [{"kind": "csv", "path": "images.csv", "fields": ["color"]}]},
            r"color.*colour",
        ),
        (
            {
                "data__sources": [
                    {"kind": "csv", "path": "images.csv", "split": "trian", "fields": ["colour"]}
                ]
            },
            r"trian",
        ),
        ({"data__sources": [{"kind": "shards", "path": "shards", "split": "train"}]}, r"shards"),
        ({"tasks": [{"name": "size", "kind": "single_label"}]}, r"no source has labels for it"),
    ],
)
def test_wrong_data(capsys, tmp_path, config_file, changes, words):
    workdir = tmp_path / "run"
    message = fails(capsys, "train", "--config", config_file(**changes), "--workdir", workdir)
    assert re.search(words, message)
    assert not workdir.exists()


def test_empty_dataset(capsys, tmp_path, photos, config_file):
    (tmp_path / "images.csv").write_text("path,split,colour,shade\n")
    config = config_file(data__root=str(tmp_path))
    message = fails(capsys, "train", "--config", config, "--workdir", tmp_path / "run")
    assert re.search("empty|no rows", message)


def test_corrupt_jpegs_are_counted_and_too_many_are_an_error(capsys, tmp_path, photos, config_file):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: len(whole) * 4 // 5])
    strict = config_file(data__root=str(folder))
    message = fails(capsys, "train", "--config", strict, "--workdir", tmp_path / "strict")
    assert re.search("3.jpg|max_reject_fraction", message)
    assert not (tmp_path / "strict" / "checkpoints" / "12").exists()
    lenient = config_file(data__root=str(folder), data__max_reject_fraction=0.1)
    assert main(["train", "--config", lenient, "--workdir", str(tmp_path / "lenient")]) == 0
    (reject,) = map(json.loads, (tmp_path / "lenient" / "rejects.jsonl").read_text().splitlines())
    assert reject == {"id": "3.jpg", "source": "images.csv[train]", "reason": "truncated"}


def test_train_eval_embed_and_compare(capsys, tmp_path, photos, config_file):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, steps, decay in zip(runs, (4, 30), (0.0, 0.5), strict=True):
        config = config_file(duration=steps, optim__ema_decay=decay)
        assert main(["train", "--config", config, "--workdir", str(run)]) == 0
    evaluation = tmp_path / "eval.py"
    evaluation.write_text(
        f"""
def get_config():
    def rows(split):
        return dict(kind="csv", path="images.csv", split=split, fields=["colour", "shade"])
    return dict(
        root={str(photos)!r}, bootstrap_samples=50,
        retrieval=[dict(name="r", queries=rows("test"), index=rows("train"), relevant_field="colour")],
        classification=[dict(name="heads", source=rows("test"), tasks=["colour", "shade"])],
        knn=[dict(name="knn", train=rows("train"), test=rows("test"), field="colour", k=3)],
    )
"""
    )
    for run in runs:
        command = ["eval", "--config", str(evaluation), "--checkpoint", str(run)]
        assert main([*command, "--output", str(run / "eval")]) == 0
    metrics = json.loads((runs[1] / "eval" / "metrics.json").read_text())
    assert metrics["heads/colour/accuracy"]["value"] >= 0.75
    assert metrics["r/P@1"]["n"] == 8
    assert set(metrics["r/P@1"]) == {"value", "low", "high", "n"}
    assert (runs[1] / "eval" / "report.html").is_file()
    # A run with a moving average is measured with it as well.
    averaged = json.loads((runs[1] / "eval" / "ema" / "metrics.json").read_text())
    assert averaged.keys() == metrics.keys()
    hits = [runs[1] / "eval" / sub / "neighbours.parquet" for sub in ("", "ema")]
    assert hits[0].read_bytes() != hits[1].read_bytes()
    assert not (runs[0] / "eval" / "ema").exists()
    raw_only = [*command[:-1], str(runs[0]), "--output", str(tmp_path / "no"), "--weights", "ema"]
    assert "holds no moving average" in fails(capsys, *raw_only)

    compared = main(
        ["compare", *(str(r / "eval") for r in runs), "--output", str(tmp_path / "cmp")]
    )
    assert compared == 0
    assert "heads/colour/accuracy" in (tmp_path / "cmp" / "compare.md").read_text()

    embed = ["embed", "--checkpoint", str(runs[1]), "--input", str(photos / "images.csv")]
    assert main([*embed, "--output", str(tmp_path / "vectors")]) == 0
    from vitscale.evals.embedding_files import read_embeddings

    ids, vectors = read_embeddings(tmp_path / "vectors")
    with (photos / "images.csv").open() as file:
        assert ids == [row["path"] for row in csv.DictReader(file)]
    assert vectors.shape == (48, 8)

    no_head = evaluation.read_text().replace('tasks=["colour", "shade"]', 'tasks=["size"]')
    evaluation.write_text(no_head)
    message = fails(
        capsys, "eval", "--config", evaluation, "--checkpoint", runs[1], "--output", tmp_path / "no"
    )
    assert "size" in message
    assert not (tmp_path / "no" / "metrics.json").exists()


def test_eval_without_a_checkpoint(capsys, tmp_path):
    message = fails(
        capsys,
        "eval",
        "--config",
        "configs/eval/clothing.py",
        "--checkpoint",
        tmp_path,
        "--output",
        tmp_path / "out",
    )
    assert "no finished checkpoint" in message


def test_shop_refuses_an_existing_folder(capsys, tmp_path):
    (tmp_path / "something").touch()
    message = fails(capsys, "shop", "--output", tmp_path, "--products", "3")
    assert str(tmp_path) in message
