"""Small data sets that the tests of `vitscale.data` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import jpeg
from written_sources import WRITERS, Row

from vitscale.config import SourceConfig
from vitscale.data import records
from vitscale.data.records import Example, Labels


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of shards; `examples` are split evenly over `count` files."""

    def make(
        examples: list[Example],
        classes: dict[str, list[str]],
        *,
        split: str = "train",
        count: int = 2,
        name: str = "shards",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rows: dict[str, list[object]] = {
            "id": [],
            "shard": [],
            "position": [],
            "sampling_weight": [],
        }
        lengths = []
        for shard in range(count):
            part = examples[shard * len(examples) // count : (shard + 1) * len(examples) // count]
            records.write_shard(folder / records.shard_name(split, shard, count), part)
            lengths.append(len(part))
            for position, example in enumerate(part):
                rows["id"].append(example.id)
                rows["shard"].append(shard)
                rows["position"].append(position)
                rows["sampling_weight"].append(example.sampling_weight)
        records.write_index(folder, split, rows)
        records.write_classes(folder, classes)
        records.write_tfds_metadata(folder, list(classes), {split: lengths})
        return folder

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    def make(count: int, prefix: str = "e", classes: int = 5) -> list[Example]:
        return [
            Example(
                f"{prefix}{i}",
                jpeg(i),
                {"concepts": Labels.of([i % classes, (i + 1) % classes], [0.5, 0.75])},
                sampling_weight=1.0 + i % 3,
            )
            for i in range(count)
        ]

    return make


@pytest.fixture
def make_csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes `text` as data.csv, with a JPEG for each name in `images`."""

    def make(text: str, images: int = 0, name: str = "data.csv") -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for i in range(images):
            (tmp_path / "images" / f"{i}.jpg").write_bytes(jpeg(i))
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="module", params=list(WRITERS))
def config(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> SourceConfig:
    """The test file's own `rows`, written as each kind of source."""
    if request.param == "huggingface":
        pytest.importorskip("datasets")
    return WRITERS[request.param](tmp_path_factory.mktemp("written") / request.param, rows)
