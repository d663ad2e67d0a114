"""Probes through `evaluate`: a shop of three colours, which any backbone tells apart."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from colour_shop import CLASSES, source, write_shop
from embed_cases import embed_source

from vitscale.config import (
    AttentiveProbeConfig,
    ClusteringConfig,
    EvalConfig,
    FewShotConfig,
    KnnConfig,
    LinearProbeConfig,
    ModelConfig,
)
from vitscale.errors import UserError
from vitscale.evals.embed import EmbedOptions
from vitscale.evals.evaluate import evaluate
from vitscale.evals.external_vectors import ExternalVectors
from vitscale.evals.tokens import TokenReader
from vitscale.models.weights import random_model

TRAIN, TEST = source("index.csv"), source("queries.csv")


def config(root: Path, **changes) -> EvalConfig:
    parts = {"train": TRAIN, "test": TEST, "field": "colour"}
    values = {
        "root": str(root),
        "knn": (KnnConfig("knn", **parts, k=5, group_field="shade", per_class=True),),
        "linear_probe": (
            LinearProbeConfig(
                "linear",
                **parts,
                l2=(1e-3, 1e-1),
                slices=("shade",),
                group_field="shade",
                validation_fraction=0.3,
            ),
        ),
        "few_shot": (FewShotConfig("few", **parts, shots=(1, 5), draws=2, per_class=True),),
        "attentive_probe": (
            AttentiveProbeConfig(
                "attentive",
                # Sources that no other suite reads: it finds the broken images by itself.
                train=source("index_again.csv"),
                test=source("queries_again.csv"),
                field="colour",
                steps=40,
                lr=(3e-3, 1e-2),
                num_heads=4,
                per_class=True,
                slices=("shade",),
                group_field="product",
            ),
        ),
        "clustering": (ClusteringConfig("clusters", TRAIN, "colour", starts=2),),
        "batch_size": 8,
        "bootstrap_samples": 50,
        "max_reject_fraction": 0.1,
    }
    return EvalConfig(**(values | changes))


@pytest.fixture(scope="module")
def model():
    return random_model(ModelConfig(variant="mu/8", image_size=16), (), CLASSES)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = write_shop(tmp_path_factory.mktemp("shop"))
    (folder / "images/index3.png").write_bytes(b"broken")
    (folder / "images/broken.png").write_bytes(b"broken")
    index, queries = ((folder / f"{name}.csv").read_text() for name in ("index", "queries"))
    (folder / "index_again.csv").write_text(index)
    lines = [*queries.splitlines(), "odd,images/broken.png,red,2"]
    # Pairs of queries show one product, which training images do not name.
    lines = [f"{line},p{i // 2}" if i else f"{line},product" for i, line in enumerate(lines)]
    (folder / "queries_again.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def measured(model, shop, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    return evaluate(config(shop), model, output), output


def test_probes_are_measured_for_each_class(measured):
    metrics, output = measured
    rows = pq.read_table(output / "per_class.parquet").to_pylist()
    assert {row["suite"] for row in rows} == {"knn", "few", "attentive"}
    accuracy = {
        row["class"]: row for row in rows if (row["suite"], row["metric"]) == ("knn", "accuracy")
    }
    assert accuracy["yellow"]["value"] == 0  # of no class that training has
    total = sum(row["value"] * row["n"] for row in accuracy.values())
    assert total / 13 == pytest.approx(metrics["knn/accuracy"]["value"])


def test_every_probe_tells_the_colours_apart(measured):
    metrics, _ = measured
    for name in ("knn/accuracy", "linear/accuracy", "few/accuracy_5shot", "attentive/accuracy"):
        # The yellow one of 13 is of no class that training has.
        assert metrics[name]["value"] == pytest.approx(12 / 13, abs=0.08), name
        assert metrics[name]["n"] == 13
    assert metrics["linear/unknown_class"]["value"] == 1
    assert metrics["clusters/AMI"]["value"] > 0.8
    assert metrics["clusters/AMI"]["n"] == 23  # one image is broken
    assert metrics["few/accuracy_1shot"]["value"] > 0.5
    assert "linear/accuracy[shade=1]" in metrics


def test_what_training_has_too_is_counted_for_every_probe(measured):
    metrics, output = measured
    for name in ("knn", "linear", "few", "attentive"):
        assert metrics[f"{name}/in_training"]["value"] == 0
    # Shades are no groups that keep train and test apart; three queries have none, one a shade of its own.
    assert metrics["knn/group_in_training"] == metrics["linear/group_in_training"]
    assert metrics["knn/group_in_training"]["value"] == 10
    assert "few/group_in_training" not in metrics
    assert "are of a group that has training images" in (output / "report.html").read_text()


def test_values_and_groups_of_every_example_are_kept(measured):
    _, output = measured
    rows = pq.read_table(output / "per_query.parquet").to_pylist()
    linear = {r["query_id"]: r for r in rows if (r["suite"], r["metric"]) == ("linear", "accuracy")}
    assert len(linear) == 13
    assert linear["queries-1"]["group"] == "1"
    attentive = {r["query_id"]: r["group"] for r in rows if r["suite"] == "attentive"}
    assert attentive["queries-1"] == attentive["queries-2"] == "p1"
    assert {r["suite"] for r in rows} == {"knn", "linear", "few", "attentive", "clusters"}


def test_the_report_says_what_was_chosen_and_draws_the_sweeps(measured):
    _, output = measured
    page = (output / "report.html").read_text()
    assert page.count('<figure class="plot"') == 4  # linear, two of few-shot, attentive
    assert "Penalty: l2=0." in page
    assert "the best of 2 on" in page
    assert "Learning rate: 0.0" in page
    assert "k-means of 23 images" in page
    assert "2 images could not be read (first: &#39;index-3&#39;)" in page
    assert "has no product, so that images were held out one by one" in page
    facts = json.loads((output / "facts.json").read_text())["search"]
    assert facts["linear"]["l2"] in (1e-3, 1e-1)
    assert facts["attentive"]["unreadable"] == ["index-3", "odd"]


def test_tokens_are_those_of_the_backbone_in_memory_and_in_a_file(model, shop):
    from vitscale.data.sources import open_source

    images = open_source(replace(TRAIN, fields=("colour",)), str(shop), CLASSES)
    reader = TokenReader(model, EmbedOptions(batch_size=8, max_reject_fraction=0.1))
    rows = np.arange(2, 14)
    tokens = reader.keep(images, rows, memory_gib=1.0)
    assert tokens.values.shape == (11, *reader.shape)
    assert rows[tokens.places].tolist() == [2, *range(4, 14)]
    assert list(reader.rejects) == ["index-3"]
    in_file = reader.keep(images, rows, memory_gib=0.0)
    assert isinstance(in_file.values, np.memmap)
    assert in_file.values.dtype == tokens.values.dtype
    assert (np.asarray(in_file.values) == np.asarray(tokens.values)).all()
    # gap pooling: their mean is what `vitscale embed` writes
    pooled = embed_source(
        model, images, ["pooled"], options=EmbedOptions(batch_size=8, max_reject_fraction=0.1)
    )
    place = [pooled.rows.tolist().index(row) for row in rows[tokens.places]]
    mean = np.asarray(tokens.values, np.float32).mean(axis=1)
    np.testing.assert_allclose(mean, pooled.outputs["pooled"][place], atol=0.02)


def test_external_vectors_have_no_tokens(shop, tmp_path):
    ids = [f"index-{i}" for i in range(24)] + [f"queries-{i}" for i in range(12)] + ["<odd & new>"]
    vectors = np.random.default_rng(0).standard_normal((37, 4)).astype(np.float32)
    external = ExternalVectors(Path("v.parquet"), {n: i for i, n in enumerate(ids)}, vectors)
    whole = config(shop)
    chosen = EvalConfig(
        root=str(shop),
        knn=whole.knn,
        attentive_probe=whole.attentive_probe,
        bootstrap_samples=20,
    )
    metrics = evaluate(chosen, external, tmp_path / "out")
    assert "knn/accuracy" in metrics
    assert not any(name.startswith("attentive/") for name in metrics)
    page = (tmp_path / "out/report.html").read_text()
    assert "Not measured: v.parquet holds vectors, not tokens." in page


def test_mistakes_are_named_before_an_image_is_read(model, shop, tmp_path):
    whole = config(shop)
    for kind in ("knn", "linear_probe", "few_shot", "attentive_probe"):
        suite = replace(
            getattr(whole, kind)[0], train=TRAIN, test=replace(TRAIN, fields=("shade",))
        )
        with pytest.raises(UserError, match=r"train and test are the same examples \(index.csv\)"):
            evaluate(replace(whole, **{kind: (suite,)}), model, tmp_path / "out")
    suite = replace(whole.linear_probe[0], group_field="product")
    with pytest.raises(UserError, match="no column 'product'"):
        evaluate(replace(whole, linear_probe=(suite,)), model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
