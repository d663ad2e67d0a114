"""Clusters and label spaces through `run_prep`, on the tiny catalogue."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prep_catalogue import COLOURS, TYPES, config, records, write_catalogue

from data_prep.pipeline import run_prep
from data_prep.schema import BalanceConfig, ClusterConfig, EmbeddingConfig
from data_prep.summary import prep_summary
from vitscale.errors import UserError

TEXT_ONLY: dict[str, Any] = {"image_field": None}


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def clusters_of(folder: Path) -> dict[str, int]:
    phrase = {row["phrase_id"]: row["phrase"] for row in rows_of(folder, "vocabulary")}
    return {phrase[row["phrase_id"]]: row["cluster_id"] for row in rows_of(folder, "clusters")}


def used_labels(folder: Path) -> set[int]:
    return {label for row in rows_of(folder, "labels") for label in row["labels"]}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("in") / "shop", records(240))


@pytest.fixture(scope="module")
def first(catalogue: Path) -> Path:
    folder = catalogue.parent.parent / "first"
    run_prep(config(**TEXT_ONLY), catalogue, folder)
    return folder


def test_the_manifest_tells_the_tail_before_and_after(first: Path) -> None:
    tail = manifest(first)["tail"]
    annotations = manifest(first)["counts"]["annotations"]
    assert sum(part["images"] for part in tail["phrases"].values()) == annotations
    labels = rows_of(first, "labels")
    assert sum(part["images"] for part in tail["labels"].values()) == sum(
        len(row["labels"]) for row in labels
    )
    for name in ("drawn_evenly", "drawn_weighted"):
        assert sum(tail[name].values()) == pytest.approx(1.0, abs=1e-5)
    assert prep_summary(first).tail == tail
    assert "<th>Torso</th>" in (first / "report.html").read_text()


def test_a_reviewed_template_steers_the_next_run(
    catalogue: Path, first: Path, tmp_path: Path
) -> None:
    with (first / "cluster_review.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    before = clusters_of(first)
    by_id = {int(row["cluster_id"]): row for row in table}
    red, blue, sofa = before["red"], before["blue"], before["sofa"]
    by_id[red] |= {"action": "block"}
    by_id[blue] |= {"action": "merge", "argument": str(before["green"]), "new_name": "cold"}
    by_id[sofa] |= {"action": "split", "argument": "sofa|couch; settee"}
    review = tmp_path / "review.csv"
    with review.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    clusters = ClusterConfig(review=str(review), previous=str(first))
    run_prep(config(**TEXT_ONLY, clusters=clusters), catalogue, tmp_path / "out")
    after = clusters_of(tmp_path / "out")
    assert after["red"] == after["crimson"] == red
    assert red not in used_labels(tmp_path / "out")
    assert red in used_labels(first)
    assert len({after[p] for p in (*COLOURS[1], *COLOURS[2])}) == 1
    assert after["sofa"] == after["couch"] == sofa != after["settee"]
    names = {row["cluster_id"]: row for row in rows_of(tmp_path / "out", "cluster_names")}
    assert names[after["blue"]]["name"] == "cold"
    assert names[red]["status"] == "blocked"
    assert manifest(tmp_path / "out")["clusters"]["retired"] == 1
    assert after["settee"] > max(before.values())
    assert str(review) in manifest(tmp_path / "out")["input"]


def test_grown_data_keep_the_ids(first: Path, tmp_path: Path) -> None:
    rows = records(360, seed=5)
    for row in rows[::5]:  # a new thing, which becomes the most frequent
        row["title"], row["tags"] = "Brass lamp", ["lamp", "brass lamp"]
        row["queries"] = [{"text": "lamp", "clicks": 3}]
    path = write_catalogue(tmp_path / "in", rows)
    clusters = ClusterConfig(previous=str(first))
    run_prep(config(**TEXT_ONLY, clusters=clusters), path, tmp_path / "out")
    before, after = clusters_of(first), clusters_of(tmp_path / "out")
    for phrase in (p for forms in (*TYPES, *COLOURS) for p in forms):
        assert after[phrase] == before[phrase]
    assert after["brass lamp"] > max(before.values())
    ids = [row["cluster_id"] for row in rows_of(tmp_path / "out", "cluster_names")]
    assert ids == list(range(len(ids)))


def test_soft_labels_name_the_neighbours(catalogue: Path, tmp_path: Path) -> None:
    balance = BalanceConfig(nearest_clusters=2, temperature=1.0)
    changes = config(**TEXT_ONLY, label_space="multi_cluster", balance=balance, labels_per_image=8)
    run_prep(changes, catalogue, tmp_path / "out")
    shares: dict[int, float] = {}
    soft = rows_of(tmp_path / "out", "soft_labels")
    for row in soft:
        shares[row["phrase_id"]] = shares.get(row["phrase_id"], 0.0) + row["share"]
    np.testing.assert_allclose(list(shares.values()), 1.0, rtol=1e-5)
    assert len(soft) > 1.5 * len(shares)
    labels = rows_of(tmp_path / "out", "labels")
    assert max(len(row["labels"]) for row in labels) > 3
    assert all(row["weights"] == sorted(row["weights"], reverse=True) for row in labels)
    # Every label of the report names the phrases that it came from, a neighbour's as well.
    examples = prep_summary(tmp_path / "out").examples
    assert all(label.phrases for example in examples for label in example.labels)


def test_rare_labels_are_rejected_with_a_reason(
    first: Path, catalogue: Path, tmp_path: Path
) -> None:
    counts: dict[int, int] = {}
    for row in rows_of(first, "labels"):
        for label in row["labels"]:
            counts[label] = counts.get(label, 0) + 1
    least = sorted(counts.values())[2]
    balance = BalanceConfig(min_label_count=least, sampling="capped", cap=20)
    run_prep(config(**TEXT_ONLY, balance=balance), catalogue, tmp_path / "out")
    assert used_labels(tmp_path / "out") == {x for x, count in counts.items() if count >= least}
    labels = {row["id"]: row for row in rows_of(tmp_path / "out", "labels")}
    rejected = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out", "rejects")}
    assert labels.keys() | rejected.keys() == {row["id"] for row in records(240)}
    weights = [row["sampling_weight"] for row in labels.values()]
    assert sum(weights) / len(weights) == pytest.approx(1.0, rel=1e-5)


def test_vectors_from_a_table_make_the_clusters(catalogue: Path, tmp_path: Path) -> None:
    groups = [*TYPES, *COLOURS]
    phrases = [p for forms in groups for p in forms]
    corners = [np.eye(6)[i].tolist() for i, forms in enumerate(groups) for _ in forms]
    table = pa.table({"phrase": phrases, "vector": corners})
    pq.write_table(table, tmp_path / "vectors.parquet")
    embedding = EmbeddingConfig(kind="table", path=str(tmp_path / "vectors.parquet"))
    run_prep(config(**TEXT_ONLY, embedding=embedding), catalogue, tmp_path / "out")
    found = clusters_of(tmp_path / "out")
    assert len({found[p] for p in phrases}) == 6
    told = manifest(tmp_path / "out")
    assert told["clusters"]["phrases_with_vector"] == len(phrases)
    assert told["counts"]["canonical_phrases"] > len(phrases)
    assert str(tmp_path / "vectors.parquet") in told["input"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": EmbeddingConfig(kind="table", path="none.parquet")}, "does not exist"),
        ({"clusters": ClusterConfig(review="none.csv")}, "cannot be read"),
        ({"clusters": ClusterConfig(previous="none")}, "is not an output folder"),
    ],
)
def test_missing_files_are_told_before_anything_is_read(
    catalogue: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_prep(config(**TEXT_ONLY, **changes), catalogue, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_impossible_choices_are_told() -> None:
    with pytest.raises(UserError, match=r"balance.cap=0 must be at least 1"):
        BalanceConfig(cap=0)
    with pytest.raises(UserError, match=r"min_share=0.4 must be between 0 and"):
        BalanceConfig(nearest_clusters=3, min_share=0.4)
    with pytest.raises(UserError, match=r"clusters.count=0 must be at least 1"):
        ClusterConfig(count=0)
    with pytest.raises(UserError, match=r"min_overlap=0.0 must be above 0"):
        ClusterConfig(min_overlap=0.0)
