"""The generated catalogue: same bytes every time, the promised folder, dirt by the knob, truth kept apart."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.shop import catalogue as shop
from data_prep.shop.catalogue import ShopConfig, generate_shop, render_product, shop_plan
from vitscale.errors import UserError

CONFIG = ShopConfig(products=60, image_size=32, scenes=8, scene_size=64, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shop") / "one"
    generate_shop(CONFIG, output, workers=1)
    return output


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    generate_shop(CONFIG, tmp_path / "two", workers=2)
    assert digests(tmp_path / "two") == digests(folder)


def test_another_seed_is_another_catalogue(folder: Path) -> None:
    other = dataclasses.replace(CONFIG, seed=4)
    mine = (folder / "images/products/00000/p000000-c.jpg").read_bytes()
    assert render_product(other, 0)[0]["jpeg"] != mine


def test_a_product_does_not_depend_on_the_order_of_rendering() -> None:
    alone = render_product(CONFIG, 7)
    render_product(CONFIG, 3)
    assert render_product(CONFIG, 7) == alone


def test_columns_of_the_folder(folder: Path) -> None:
    evaluation = ["id", "path", "product", "type", "colour", "material", "shade"]
    headers = {
        "labelled.csv": ["id", "path", "type", "colour", "shade"],
        "matches.csv": ["id", "path", "product"],
        "truth/queries.csv": evaluation,
        "truth/index.csv": evaluation,
    }
    for name, columns in headers.items():
        found = rows(folder / name)
        assert found
        assert list(found[0]) == columns
    truth = pq.read_table(folder / "truth/truth.parquet")
    assert truth.column_names == [*evaluation, "view", "split"]
    boxes = pq.read_table(folder / "truth/scenes.parquet")
    assert boxes.column_names == ["scene_id", "product", "type", "x0", "y0", "x1", "y1"]
    text_fields = ["id", "image", "title", "description", "alt_text", "boards", "queries"]
    assert all(list(r) == text_fields for r in records(folder / "catalogue.jsonl"))
    assert all(list(r) == ["id", "image"] for r in records(folder / "scenes.jsonl"))


def test_every_named_image_opens_at_its_size(folder: Path) -> None:
    paths = {r["image"] for r in records(folder / "catalogue.jsonl")}
    paths |= set(pq.read_table(folder / "truth/truth.parquet")["path"].to_pylist())
    for path in paths:
        with Image.open(folder / path) as image:
            image.load()
            assert image.format == "JPEG"
            assert image.size == (32, 32)
    scenes = {r["image"] for r in records(folder / "scenes.jsonl")}
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*.jpg")}
    assert paths | scenes == on_disk


def test_counts_match_the_plan_and_the_files(folder: Path) -> None:
    counts = json.loads((folder / "shop.json").read_text())["counts"]
    plan = shop_plan(CONFIG)
    assert counts["images"] == CONFIG.products + plan.views.sum()
    assert counts["train"] == len(records(folder / "catalogue.jsonl"))
    assert counts["labelled"] == len(rows(folder / "labelled.csv"))
    assert counts["matches"] == len(rows(folder / "matches.csv"))


def test_heldout_products_are_only_in_the_truth(folder: Path) -> None:
    heldout = {r["product"] for r in rows(folder / "truth/index.csv")}
    assert len(heldout) == round(CONFIG.heldout_fraction * CONFIG.products)
    assert {r["product"] for r in rows(folder / "truth/queries.csv")} == heldout
    shown = [r["id"] for r in records(folder / "catalogue.jsonl")]
    for name in ("labelled.csv", "matches.csv"):
        shown += [r["id"] for r in rows(folder / name)]
    assert not {id_.split("-")[0] for id_ in shown} & heldout


def test_labelled_cells_are_true_or_empty(folder: Path) -> None:
    truth = {r["id"]: r for r in pq.read_table(folder / "truth/truth.parquet").to_pylist()}
    cells = [
        (r, name) for r in rows(folder / "labelled.csv") for name in ("type", "colour", "shade")
    ]
    empty = [r[name] == "" for r, name in cells]
    assert 0.05 < np.mean(empty) < 0.5
    assert all(r[name] in ("", str(truth[r["id"]][name])) for r, name in cells)


@pytest.mark.parametrize(("missing", "empty"), [(0.0, False), (1.0, True)])
def test_label_missing_knob(missing: float, empty: bool) -> None:
    config = dataclasses.replace(CONFIG, label_missing=missing, labelled_images=1.0)
    index = int(np.flatnonzero(shop_plan(config).labelled)[0])
    for image in render_product(config, index):
        assert all((cell == "") == empty for cell in image["labels"]["row"])


def test_scene_boxes_lie_in_the_image_and_splits_do_not_mix(folder: Path) -> None:
    split = {
        r["product"]: r["split"] for r in pq.read_table(folder / "truth/truth.parquet").to_pylist()
    }
    boxes = pq.read_table(folder / "truth/scenes.parquet").to_pylist()
    scenes: dict[str, set[str]] = {}
    for box in boxes:
        assert 0 <= box["x0"] < box["x1"] <= CONFIG.scene_size
        assert 0 <= box["y0"] < box["y1"] <= CONFIG.scene_size
        assert box["x1"] - box["x0"] > 3
        scenes.setdefault(box["scene_id"], set()).add(split[box["product"]])
    assert len(scenes) == CONFIG.scenes
    assert all(len(splits) == 1 for splits in scenes.values())


def test_popularity_has_a_long_tail() -> None:
    plan = shop_plan(ShopConfig(products=2000))
    views = np.sort(plan.views[~plan.heldout])
    assert views[-len(views) // 10 :].mean() > 3 * np.median(views)
    assert views.min() >= 1
    assert views.mean() == pytest.approx(4.0, rel=0.05)


def test_types_have_a_long_tail_and_none_is_empty() -> None:
    counts = np.bincount(shop_plan(ShopConfig(products=400)).type_index)
    assert counts.min() >= 3
    assert counts.max() > 4 * np.median(counts)


def test_an_unfinished_folder_does_not_look_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: ShopConfig, number: int) -> dict:
        raise RuntimeError("disk gone")

    monkeypatch.setattr(shop, "render_scene", fail)
    with pytest.raises(RuntimeError, match="disk gone"):
        generate_shop(CONFIG, tmp_path / "out", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(folder: Path) -> None:
    before = digests(folder)
    with pytest.raises(UserError, match="choose another folder or delete it"):
        generate_shop(CONFIG, folder, workers=1)
    assert digests(folder) == before


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = dataclasses.replace(CONFIG, products=5, scenes=2)
    generate_shop(config, tmp_path / "out", workers=1, progress=lambda *c: seen.append(c))
    assert seen[-1][0] == seen[-1][1] == len(list((tmp_path / "out").rglob("*.jpg")))


@pytest.mark.parametrize(
    ("field", "value"),
    [("products", 0), ("heldout_fraction", 1.0), ("labelled_fraction", 1.5), ("image_size", 4)],
)
def test_impossible_configs_are_refused_in_words(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{field}=.*(use|at least)"):
        ShopConfig(**{field: value})


def test_product_is_the_dominant_thing_and_shade_is_visible() -> None:
    from data_prep.shop.products import make_product, render_sprite
    from data_prep.shop.shapes import TYPES

    sofa = [kind.name for kind in TYPES].index("sofa")
    base = dataclasses.replace(
        make_product(0, 1, sofa), pattern="plain", material="cotton", colour="blue"
    )
    lightness = []
    for shade in range(6):
        sprite = np.asarray(render_sprite(dataclasses.replace(base, shade=shade), 64), float)
        lightness.append(sprite[..., :3][sprite[..., 3] > 0].mean())
    assert (np.diff(lightness) > 5).all()


def test_wild_photos_differ_from_each_other_but_show_the_same_sprite() -> None:
    images = render_product(CONFIG, int(np.argmax(shop_plan(CONFIG).views)))
    pixels = [np.asarray(Image.open(io.BytesIO(i["jpeg"])), float) for i in images[:4]]
    for i in range(len(pixels)):
        for j in range(i):
            assert np.abs(pixels[i] - pixels[j]).mean() > 5
