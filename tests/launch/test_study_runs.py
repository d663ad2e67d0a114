"""Runs are read as they lie: what they cost, what they start from, and which of them do not count."""

import json

import pytest
from written_runs import BATCH, Written, write_run

from launch.study_runs import collect_runs
from launch.study_training import FACTS
from vitscale.errors import UserError
from vitscale.models.flops import backbone_flops, train_flops
from vitscale.models.multitask import define_model


def test_facts_of_a_run(tmp_path):
    workdir = write_run(
        tmp_path, Written("a", {"retrieval/P@1": (0.5, 0.4, 0.6)}, images=37, classes=5)
    )
    (run,) = collect_runs([tmp_path])
    config = run.training.config
    classes = json.loads((workdir / "classes.json").read_text())
    definition = define_model(config.model, config.tasks, classes)
    facts = run.training.facts
    assert set(facts) == set(FACTS)
    assert run.counts
    assert facts["images"] == facts["pretraining_images"] == 37
    assert facts["labels"] == 5
    assert facts["images_seen"] == 10 * BATCH
    assert facts["passes"] == pytest.approx(80 / 37)
    assert facts["train_flops"] == facts["total_train_flops"] == 80 * train_flops(definition)
    assert facts["serve_flops"] == backbone_flops(config.model)  # a classifier is not served
    assert run.metrics["retrieval/P@1"].high == 0.6
    assert run.metrics["val/label/accuracy"].value == 0.25


def test_a_start_is_paid_for_and_its_data_remembered(tmp_path):
    first = write_run(tmp_path, Written("first", {"m/x": 0.1}, images=400, classes=9, steps=50))
    write_run(tmp_path, Written("second", {"m/x": 0.2}, start=str(first / "checkpoints" / "50")))
    runs = {run.name: run.training for run in collect_runs([tmp_path])}
    one, two = runs["first"].facts, runs["second"].facts
    assert two["images"] == 100
    assert two["pretraining_images"] == 400
    assert two["pretraining_labels"] == 9
    assert two["pretraining_steps"] == 50
    assert two["total_train_flops"] == two["train_flops"] + one["train_flops"]
    assert runs["second"].unknown_start == ""


def test_public_weights_are_of_unknown_cost(tmp_path):
    write_run(tmp_path, Written("a", {"m/x": 0.2}, start="weights/vit.npz"))
    (run,) = collect_runs([tmp_path])
    assert run.training.unknown_start == "weights/vit.npz"
    assert run.training.facts["total_train_flops"] == run.training.facts["train_flops"]


def test_seeds_have_one_identity_also_through_their_starts(tmp_path):
    for seed in (0, 1):
        start = write_run(tmp_path, Written(f"first-{seed}", {"m/x": 0.1}, seed=seed))
        write_run(tmp_path, Written(f"second-{seed}", {"m/x": 0.1}, seed=seed, start=str(start)))
    other = write_run(tmp_path, Written("longer", {"m/x": 0.1}, steps=11))
    write_run(tmp_path, Written("from-longer", {"m/x": 0.1}, start=str(other)))
    runs = {run.name: run.training.identity for run in collect_runs([tmp_path])}
    assert runs["first-0"] == runs["first-1"]
    assert runs["second-0"] == runs["second-1"]
    assert len(set(runs.values())) == 4


def test_what_does_not_count_is_said(tmp_path):
    value = {"m/x": 0.1}
    write_run(tmp_path, Written("good", value, evaluated_step=10))
    write_run(tmp_path, Written("half", value, reached=4))
    write_run(tmp_path, Written("stale", value, evaluated_step=5))
    write_run(tmp_path, Written("torn", value))
    (tmp_path / "torn" / "config.json").write_text('{"data": ')
    (write_run(tmp_path, Written("torn-eval", value)) / "eval/metrics.json").write_text("[")
    broken = write_run(tmp_path, Written("no-classes", value))
    (broken / "classes.json").unlink()
    states = {run.name: run.state for run in collect_runs([tmp_path])}
    assert states["good"] == "finished"
    assert states["half"] == "at step 4 of 10"
    assert states["stale"] == "eval is of step 5 of 10: evaluate it again"
    assert states["torn"].startswith("unreadable: ")
    assert "config.json cannot be read" in states["torn"]
    assert "metrics.json cannot be read" in states["torn-eval"]
    assert "classes.json is not there" in states["no-classes"]


def test_runs_of_a_sweep_that_are_not_there_yet(tmp_path):
    write_run(tmp_path, Written("a", {"m/x": 0.1}))
    write_run(tmp_path, Written("b", {"m/x": 0.1}, reached=3))
    runs = {
        "a": {"overrides": {"seed": 1}, "state": "finished"},
        "b": {"overrides": {}, "state": "failed"},
        "c": {"overrides": {}, "state": "waiting"},
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"command": [], "runs": runs}))
    found = {run.name: run for run in collect_runs([tmp_path])}
    assert found["a"].overrides == {"seed": 1}
    assert found["b"].state == "at step 3 of 10 (failed in sweep.json)"
    assert found["c"].state == "not started (waiting in sweep.json)"


def test_what_was_done_again_is_no_run(tmp_path):
    for name in ("a", "a.old-1", "older"):
        write_run(tmp_path, Written(name, {"m/x": 0.1}))
    assert [run.name for run in collect_runs([tmp_path])] == ["a", "older"]


def test_order_of_a_reader(tmp_path):
    for name in ("n1600", "n200", "m3"):
        write_run(tmp_path, Written(name, {"m/x": 0.1}))
    assert [run.name for run in collect_runs([tmp_path])] == ["m3", "n200", "n1600"]


def test_folders_of_the_claims(tmp_path):
    run = Written("scratch-s1", {"retrieval/P@1": 0.3}, seed=1)
    write_run(tmp_path / "runs", run, evaluation="eval-test", train="train")
    (found,) = collect_runs([tmp_path])
    assert found.name == "scratch-s1"
    assert found.counts
    assert "retrieval/P@1" in found.metrics  # one kind of evaluation: nothing to tell apart
    other = Written("other", {"retrieval/P@1": 0.2})
    write_run(tmp_path / "runs", other, evaluation="eval-dev", train="train")
    names = {run.name: set(run.metrics) for run in collect_runs([tmp_path])}
    assert "eval-test: retrieval/P@1" in names["scratch-s1"]
    assert "eval-dev: retrieval/P@1" in names["other"]


def test_several_roots(tmp_path):
    for root in ("one", "two"):
        write_run(tmp_path / root, Written("a", {"m/x": 0.1}))
    names = [run.name for run in collect_runs([tmp_path / "one", tmp_path / "two"])]
    assert names == ["one/a", "two/a"]


def test_nothing_to_collect(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        collect_runs([tmp_path / "missing"])
    with pytest.raises(UserError, match="has no runs"):
        collect_runs([tmp_path])
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="is no sweep's state"):
        collect_runs([tmp_path])


def test_a_circle_of_starts_ends(tmp_path):
    write_run(tmp_path, Written("a", {"m/x": 0.1}, start=str(tmp_path / "b")))
    write_run(tmp_path, Written("b", {"m/x": 0.1}, start=str(tmp_path / "a")))
    assert all("starts from itself" in run.state for run in collect_runs([tmp_path]))


def test_what_was_done_again_in_a_folder_of_its_own_counts_once(tmp_path):
    for name in ("a", "a.redo-1", "a.redo-2", "b"):
        write_run(tmp_path, Written(name))
    assert [run.name for run in collect_runs([tmp_path])] == ["a.redo-2", "b"]
