"""What every kind of source promises, on the same examples written as each of them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from written_sources import COLOURS, TAGS, WRITERS, Row, colours_of, ids_of_all

from vitscale.config import SourceConfig
from vitscale.data.records import BadExample, Example
from vitscale.data.sources import (
    Source,
    available_fields,
    collect_classes,
    guess_source,
    open_source,
)
from vitscale.errors import UserError

NAMED = ("shards", "huggingface", "tfds")  # whose classes have an order of their own


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    colours = ["red", "green", None, "blue", "red", "green", "blue", "red", None, "green"]
    return [
        {"id": f"e{i}", "image": b"image %d" % i, "colour": colour, "tags": TAGS[: i % 4]}
        for i, colour in enumerate(colours)
    ]


@pytest.fixture
def source(config: SourceConfig) -> Source:
    return open_source(config, ".", collect_classes([config], "."))


def names_of(source: Source, example: Example, field: str) -> list[str]:
    return [source.classes[field][i] for i in example.labels[field].ids.tolist()]


def test_classes(config: SourceConfig) -> None:
    classes = collect_classes([config], ".")
    in_order = config.kind in NAMED
    assert classes["colour"] == (COLOURS if in_order else sorted(COLOURS))
    assert classes["tags"] == (TAGS if in_order else sorted(TAGS[:3]))
    assert {"colour", "tags"} <= available_fields(dataclasses.replace(config, fields=()), ".")


def test_examples(source: Source, rows: list[Row]) -> None:
    assert len(source) == len(rows)
    assert source.sampling_weights is None
    for index, (row, colours) in enumerate(zip(rows, colours_of(rows), strict=True)):
        example = source[index]
        assert (example.id, example.image) == (row["id"], row["image"])
        assert names_of(source, example, "colour") == colours
        assert names_of(source, example, "tags") == row["tags"]
        assert source.example_id(index) == row["id"]
    for field in ("colour", "tags"):
        listed = ids_of_all(source, field)
        assert listed == [source[i].labels[field].ids.tolist() for i in range(len(rows))]
    with pytest.raises(IndexError):
        source[len(rows)]


def test_read_keeps_the_order_it_was_asked_for(source: Source, rows: list[Row]) -> None:
    indices = [7, 0, 9, 3, 3, 1, 8]
    found = source.read(indices)
    assert [example.id for example in found if isinstance(example, Example)] == [
        rows[i]["id"] for i in indices
    ]
    assert source.read([]) == []


def test_many_threads(source: Source, rows: list[Row]) -> None:
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, [[i, (i * 7) % 10] for i in range(10)] * 10))
    for pair, i in zip(read, list(range(10)) * 10, strict=True):
        assert [e.image for e in pair if isinstance(e, Example)] == [
            rows[i]["image"],
            rows[i * 7 % 10]["image"],
        ]


def test_a_pickled_source_opens_again(source: Source, rows: list[Row]) -> None:
    source[0]  # with its readers open
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert (again.name, len(again), again.classes) == (source.name, len(rows), source.classes)
    assert again[5].image == source[5].image == rows[5]["image"]


def test_labels_that_the_run_lacks(config: SourceConfig, rows: list[Row]) -> None:
    narrow = open_source(config, ".", {"colour": ["blue", "red"], "tags": TAGS[:1]})
    before = dict(narrow.unknown_labels)
    assert before == {
        "colour": sum(row["colour"] == "green" for row in rows),
        "tags": sum(max(0, len(row["tags"]) - 1) for row in rows),
    }
    for _ in range(3):  # a property of the data: epochs do not add to it
        narrow.read(range(len(rows)))
    assert dict(narrow.unknown_labels) == before
    assert [len(ids) for ids in ids_of_all(narrow, "colour")] == [
        int(row["colour"] in ("blue", "red")) for row in rows
    ]


def test_a_missing_field_names_the_nearest(config: SourceConfig) -> None:
    with pytest.raises(UserError, match="Did you mean 'colour'"):
        collect_classes([dataclasses.replace(config, fields=("color",))], ".")


def test_guessed(config: SourceConfig, rows: list[Row]) -> None:
    folder = str(Path(config.path).parent if config.kind == "csv" else config.path)
    settings = {"id_column": "id"} if config.kind == "csv" else {}
    guessed = guess_source(folder, fields=config.fields, **settings)
    assert (guessed.kind, guessed.split) == (config.kind, config.split)
    opened = open_source(guessed, ".", collect_classes([guessed], "."))
    assert [opened.example_id(i) for i in range(10)] == [row["id"] for row in rows]
    assert opened.name == guessed.path + (f"[{guessed.split}]" if guessed.split else "")
    named = dataclasses.replace(guessed, name="mine")
    assert open_source(named, ".", collect_classes([named], ".")).name == "mine"


def test_our_shards_open_as_tfds(tmp_path: Path, rows: list[Row]) -> None:
    config = dataclasses.replace(WRITERS["shards"](tmp_path / "shards", rows), kind="tfds")
    source = open_source(config, ".", collect_classes([config], "."))
    assert names_of(source, source[3], "tags") == rows[3]["tags"]
    assert source[3].id == "e3"


def _ids_in_a_worker(source: Source, answers: multiprocessing.Queue) -> None:
    import sys

    answers.put(([e.id for e in source.read(range(len(source)))], "jax" in sys.modules))  # type: ignore[union-attr]


def test_a_spawned_worker_reads_without_jax(
    tmp_path: Path, rows: list[Row], make_all: Callable[[Path], list[SourceConfig]]
) -> None:
    context = multiprocessing.get_context("spawn")
    for config in make_all(tmp_path):
        source = open_source(config, ".", collect_classes([config], "."))
        answers = context.Queue()
        worker = context.Process(target=_ids_in_a_worker, args=(source, answers))
        worker.start()
        assert answers.get(timeout=60) == ([row["id"] for row in rows], False)
        worker.join(60)


@pytest.fixture
def make_all(rows: list[Row]) -> Callable[[Path], list[SourceConfig]]:
    def make(folder: Path) -> list[SourceConfig]:
        return [WRITERS[kind](folder / kind, rows) for kind in ("csv", "shards", "webdataset")]

    return make


def test_guesses_that_fail(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        guess_source(str(tmp_path / "No where"))
    with pytest.raises(UserError, match="holds no CSV"):
        guess_source(str(tmp_path))
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path\n")
    with pytest.raises(UserError, match=r"several CSV files, name one: a\.csv, b\.csv"):
        guess_source(str(tmp_path))
    with pytest.raises(UserError, match="ftp"):
        guess_source("ftp://host/folder")


def test_a_bad_example_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(BadExample("truncated", "e1")))  # noqa: S301
    assert (again.reason, again.example_id) == ("truncated", "e1")
