"""The whole loop at its smallest: every stage runs, the files are there, and a second start goes on."""

import json

import pytest

import vitscale.demo as demo
from vitscale.cli import main
from vitscale.errors import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            demo.SIZES, "tiny", demo.DemoSize(products=80, pretrain_steps=12, multitask_steps=12)
        )
        assert main(["demo", "--workdir", str(folder), "--size", "tiny", "--seed", "1"]) == 0
    return folder


def test_summary_has_the_four_models_with_intervals(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(summary) == {*demo.VARIANTS, "seconds", "stages"}
    for name in demo.VARIANTS:
        metric = summary[name]["retrieval/P@1"]
        assert set(metric) == {"value", "low", "high", "n"}
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["n"] == 32  # 16 held-out products, two photos each
    assert "heads/type/accuracy" in summary["multitask_pretrained"]
    assert "heads/shade/mae" in summary["multitask_scratch"]
    assert "heads/type/accuracy" not in summary["random"]
    assert summary["seconds"] == pytest.approx(sum(summary["stages"].values()))


def test_report_is_one_file_with_every_part(workdir):
    page = (workdir / "report.html").read_text()
    for title in (
        "Does weak pretraining help?",
        "The catalogue",
        "The long tail",
        "Training",
        "Queries",
    ):
        assert title in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("data:image/jpeg;base64") > 50


def test_tensorboard_events_lie_beside_the_metrics(workdir):
    (events,) = (workdir / "pretrain" / "tensorboard").glob("events.out.tfevents.*")
    assert b"train/concepts/loss" in events.read_bytes()


def test_the_two_multitask_runs_differ_in_their_start_only(workdir):
    configs = {
        name: json.loads((workdir / name / "config.json").read_text())
        for name in ("multitask_scratch", "multitask_pretrained")
    }
    assert configs["multitask_pretrained"]["init"].pop("checkpoint")
    assert not configs["multitask_scratch"]["init"].pop("checkpoint")
    assert configs["multitask_scratch"] == configs["multitask_pretrained"]


def test_training_never_reads_the_truth(workdir):
    for run in ("pretrain", "multitask_scratch", "multitask_pretrained"):
        config = json.loads((workdir / run / "config.json").read_text())
        assert not [s["path"] for s in config["data"]["sources"] if "truth" in s["path"]]
    manifest = json.loads((workdir / "prep" / "manifest.json").read_text())
    assert "truth" not in json.dumps(manifest)


def test_a_workdir_of_other_settings_is_refused(workdir):
    with pytest.raises(UserError, match="other settings"):
        demo.run_demo(workdir, "tiny", seed=2)
