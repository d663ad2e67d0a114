"""Counting what is in a source, and laying out pictures of it."""

from __future__ import annotations

import numpy as np
import pytest

from vitscale.config import SourceConfig
from vitscale.data.contact_sheet import GAP, MIN_TILE, _fit, _font, caption, lay_out
from vitscale.data.inspect import choose_sample, look_at
from vitscale.data.loader import TrainLoader
from vitscale.data.sources import collect_classes, open_source


@pytest.mark.parametrize(("count", "size"), [(10, None), (10, 20), (10, 4), (10**9, 50)])
def test_a_sample_holds_no_example_twice(count, size):
    sample = choose_sample(count, size, seed=3)
    assert len(sample) == min(count, size or count)
    assert (np.diff(sample) > 0).all()
    assert 0 <= sample[0] <= sample[-1] < count
    np.testing.assert_array_equal(sample, choose_sample(count, size, seed=3))


@pytest.fixture
def source(make_shards, make_examples):
    classes = {"concepts": ["a", "b", "c", "d", "e"]}
    folder = make_shards(make_examples(30), classes, split="train")
    config = SourceConfig("shards", str(folder), split="train", sampling="sampling_weight")
    return config, open_source(config, ".", collect_classes([config], "."))


def test_labels_and_weights_of_shards(source):
    _, opened = source
    report = look_at(opened, np.arange(30), image_hw=(16, 16), max_pixels=10**6)
    field = report.fields["concepts"]
    assert (field.classes, field.seen, field.labelled) == (5, 5, 30)
    assert field.labels_per_example == {2: 30}
    assert field.top == [(name, 12) for name in "abcde"]  # equal counts: in the order of classes
    assert field.tail == []
    assert field.effective_classes == pytest.approx(5)
    weights = report.sampling_weight
    assert weights is not None
    assert (weights.min, weights.median, weights.max) == (1, 2, 3)
    assert report.sizes == [("48x40", 30)]
    assert report.read_per_second > 0 < report.decoded_per_second


def test_top_and_tail_do_not_overlap(make_csv):
    rows = [f"images/{i}.jpg,{min(i // 2, 12)}" for i in range(27)]
    path = make_csv("path,label\n" + "\n".join(rows) + "\n", images=27)
    config = SourceConfig("csv", str(path), fields=("label",))
    opened = open_source(config, ".", collect_classes([config], "."))
    field = look_at(opened, np.arange(27), image_hw=(8, 8), max_pixels=10**6).fields["label"]
    assert field.top[0] == ("12", 3)
    assert [name for name, _ in field.top[1:] + field.tail] == [str(i) for i in range(12)]
    assert len(field.top) == 10


def test_a_mixed_image_names_its_partner(source):
    from vitscale.config import DataConfig

    config, opened = source
    data = DataConfig((config,), global_batch_size=4)
    with TrainLoader([opened], data, image_size=8, tasks={"t": "concepts"}, seed=0) as loader:
        batch = next(loader)
    shares = np.array([[0.75, 0.25], [0.75, 0.25], [1, 0], [0.999, 0.001]])
    mixed, _, whole, nearly = (
        caption(batch, {"shares": shares}, row, opened.classes) for row in range(4)
    )
    assert mixed[:2] == [batch.ids[0], f"+ 25% {batch.ids[1]}"]
    assert " + " in mixed[2]
    assert [len(whole), len(nearly)] == [2, 2]
    assert whole[1].startswith("concepts: ")


def test_the_sheet_holds_every_tile_once():
    tiles = [np.full((10, 20, 3), (40 * i, 0, 90), np.uint8) for i in range(1, 6)]
    sheet = np.asarray(lay_out(tiles, [["an id"]] * 5))
    for tile in tiles:
        assert (sheet == tile[0, 0]).all(axis=2).sum() == 10 * 20
    assert sheet.shape[1] % (MIN_TILE + GAP) == GAP


@pytest.mark.parametrize("keep_end", [True, False])
def test_a_caption_is_cut_to_its_tile(keep_end):
    font, text = _font(), "train/dress/06a00c0f-5f9a-410d-a7da-3881a9df3a71\n.jpg"
    cut = _fit(text, font, 100, keep_end=keep_end)
    assert font.getlength(cut) <= 100
    assert cut.startswith("…") if keep_end else cut.endswith("…")
    assert _fit("short", font, 100, keep_end=keep_end) == "short"
