"""Label fields that hold numbers: what every kind of source makes of them, and what the trainer gets."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import jpeg
from written_sources import WRITERS, Row, write_csv, write_parquet, write_shards

from vitscale.config import DataConfig, SourceConfig
from vitscale.data.contact_sheet import caption
from vitscale.data.inspect import look_at
from vitscale.data.loader import TrainLoader, eval_batches
from vitscale.data.sources import Source, collect_classes, open_source
from vitscale.data.sources.numbers import NotANumber, check_arrays, number_of
from vitscale.errors import UserError

PRICES = [12.5, 0.0, None, -3.0, 1e-3, 7.0]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        {"id": f"e{i}", "image": jpeg(i), "colour": "red", "tags": [], "price": price}
        for i, price in enumerate(PRICES)
    ]


def with_price(config: SourceConfig, **changes: object) -> SourceConfig:
    settings: dict = {"fields": ("colour", "price"), "numbers": ("price",)} | changes
    return dataclasses.replace(config, **settings)


def opened(config: SourceConfig) -> Source:
    return open_source(config, ".", collect_classes([config], "."))


def test_every_kind_reads_them(config: SourceConfig, rows: list[Row]) -> None:
    source = opened(with_price(config))
    assert source.classes["price"] == ["value"]
    assert "red" in source.classes["colour"]
    for index, price in enumerate(PRICES):
        labels = source[index].labels["price"]
        assert labels.ids.tolist() == ([] if price is None else [0])
        assert labels.weights.tolist() == ([] if price is None else [np.float32(price)])
    assert source.unknown_labels["price"] == 0
    renamed = opened(
        with_price(config, fields=("cost",), numbers=("cost",), rename=("price=cost",))
    )
    assert renamed[0].labels["cost"].weights.tolist() == [12.5]


def test_numbers_in_one_source_and_names_in_another(config: SourceConfig, tmp_path: Path) -> None:
    named = write_csv(tmp_path / "named", [{"id": "a", "image": b"", "colour": "red", "tags": []}])
    other = dataclasses.replace(named, fields=("price",), rename=("colour=price",))
    for configs in ([with_price(config), other], [other, with_price(config)]):
        with pytest.raises(UserError, match=r"'price' holds numbers in .* and names of classes in"):
            collect_classes(configs, ".")
    with pytest.raises(UserError, match="as numbers, but elsewhere it has classes such as 'red'"):
        open_source(with_price(config), ".", {"colour": ["red"], "price": ["red"]})
    with pytest.raises(UserError, match="as names of classes, but elsewhere it holds numbers"):
        open_source(other, ".", {"price": ["value"]})


@pytest.mark.parametrize("workers", [0, 1])
def test_zero_is_a_label(tmp_path: Path, rows: list[Row], workers: int) -> None:
    config = with_price(write_shards(tmp_path / "shards", rows))
    data = DataConfig((config,), global_batch_size=6, max_labels=2, num_workers=workers)
    tasks = {"cost": "price", "colour": "colour"}
    source = opened(config)
    with TrainLoader([source], data, image_size=8, tasks=tasks, seed=0) as loader:
        trained = next(loader)
    (evaluated,) = eval_batches(
        source,
        batch_size=6,
        image_size=8,
        fields=["colour", "price"],
        max_labels=2,
        max_image_pixels=10**6,
        max_reject_fraction=0.0,
        tasks=tasks,
    )
    for batch in (trained, evaluated):
        for row, name in enumerate(batch.ids):
            price = PRICES[int(name[1:])]
            assert batch.labels["price"][row].tolist() == [-1 if price is None else 0, -1]
            assert batch.weights["price"][row].tolist() == [np.float32(price or 0), 0]
            assert batch.task_mask["cost"][row] == (price is not None)
        assert batch.task_mask["colour"].all()
    row = trained.ids.index("e0")
    assert "price: 12.5" in caption(trained, {}, row, source.classes)


def test_a_look_shows_their_spread(tmp_path: Path, rows: list[Row]) -> None:
    source = opened(with_price(write_parquet(tmp_path / "table", rows)))
    report = look_at(source, np.arange(6), image_hw=(8, 8), max_pixels=10**6)
    assert list(report.fields) == ["colour"]
    found = report.numbers["price"]
    assert found.labelled == 5
    assert found.values is not None
    expected = [price for price in PRICES if price is not None]
    assert (found.values.min, found.values.max) == (-3, 12.5)
    assert found.values.mean == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("cell", ["blue", "nan", "1e39", "1_000", "3|4", "1,5"])
def test_a_cell_that_is_no_number(tmp_path: Path, rows: list[Row], cell: str) -> None:
    wrong = [dict(row) for row in rows]
    wrong[3]["price"] = f'"{cell}"'
    config = with_price(write_csv(tmp_path / "csv", wrong))
    with pytest.raises(UserError) as caught:
        opened(config)
    for words in (str(config.path), "row 4", "'price'", repr(cell), "finite number"):
        assert words in str(caught.value)
    # Opened with the classes of a checkpoint nothing was looked through: the example says it, also from a worker.
    source = open_source(config, ".", {"colour": ["red"], "price": ["value"]})
    with pytest.raises(UserError, match=r"data\.csv, example 'e3\.jpg'|example 'e3'") as caught:
        source.read([3])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "huggingface"])
def test_infinite_numbers(tmp_path: Path, rows: list[Row], kind: str) -> None:
    if kind == "huggingface":
        pytest.importorskip("datasets")
    wrong = [*rows[:2], rows[2] | {"price": math.inf}, *rows[3:]]
    config = with_price(WRITERS[kind](tmp_path / kind, wrong))
    for _ in range(2):  # a check that fails is not remembered
        with pytest.raises(UserError, match=r"(row 3|'e2').*: the column 'price' .* holds 'inf'"):
            opened(config)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_mistake_names_the_column_of_the_file(tmp_path: Path, rows: list[Row], kind: str) -> None:
    if kind == "huggingface":
        pytest.importorskip("datasets")
    wrong = [*rows[:2], rows[2] | {"price": math.inf}, *rows[3:]]
    config = with_price(
        WRITERS[kind](tmp_path / kind, wrong), numbers=("cost",), rename=("price=cost",)
    )
    config = dataclasses.replace(config, fields=("colour", "cost"))
    if kind not in ("shards", "tfds"):
        with pytest.raises(UserError, match="the column 'price'"):
            opened(config)
    source = open_source(config, ".", {"colour": ["red", "green", "blue"], "cost": ["value"]})
    with pytest.raises(UserError, match="the column 'price'"):
        source.read([2])


def test_a_mistake_names_the_row_of_the_csv(tmp_path: Path, rows: list[Row]) -> None:
    config = with_price(write_csv(tmp_path / "csv", rows))
    path = Path(config.path)
    header, *lines = path.read_text().splitlines()
    splits = ["b", "a", "b", "a", "a", "a"]
    lines[3] = lines[3].replace("-3.0", "blue")
    told = [header + ",split", *map(",".join, zip(lines, splits, strict=True))]
    path.write_text("\n".join(told) + "\n")
    with pytest.raises(UserError, match=r"data\.csv, row 4 after the header: .*'blue'"):
        opened(dataclasses.replace(config, split="a"))
    opened(dataclasses.replace(config, split="b"))


def test_a_mistake_names_the_row_of_its_parquet_file(tmp_path: Path) -> None:
    for file in range(2):
        table = pa.table(
            {
                "id": [f"{file}-{i}" for i in range(6)],
                "image": [b"image"] * 6,
                "price": [math.inf if (file, i) == (1, 4) else 1.0 for i in range(6)],
                "split": ["b", "a", "b", "a", "a", "a"],
            }
        )
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=2)
    config = SourceConfig(
        "parquet", str(tmp_path), split="a", fields=("price",), numbers=("price",)
    )
    with pytest.raises(UserError, match=r"1\.parquet, row 5: .*'inf'"):
        opened(config)


@pytest.mark.parametrize("kind", ["shards", "tfds"])
def test_numbers_in_records_are_checked_when_read(
    tmp_path: Path, rows: list[Row], kind: str
) -> None:
    wrong = [*rows[:2], rows[2] | {"price": math.inf}, *rows[3:]]
    source = opened(with_price(WRITERS[kind](tmp_path / kind, wrong)))
    assert source[0].labels["price"].weights.tolist() == [12.5]
    with pytest.raises(UserError, match="example 'e2': the column 'price' of that row holds"):
        source.read([2])


def test_fields_of_other_types(tmp_path: Path, rows: list[Row]) -> None:
    for kind, words in {
        "shards": "holds classes in 'colour', not numbers",
        "tfds": "'colour' is ClassLabel, not a number",
        "huggingface": "'colour' is a ClassLabel, not of numbers",
    }.items():
        if kind == "huggingface":
            pytest.importorskip("datasets")
        config = with_price(WRITERS[kind](tmp_path / kind, rows), numbers=("colour", "price"))
        with pytest.raises(UserError, match=words):
            opened(config)
    config = with_price(write_parquet(tmp_path / "table", rows), numbers=())
    with pytest.raises(UserError, match="'price' holds double; names, whole numbers"):
        opened(config)


def test_numbers_of_fields_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\.0\.numbers names 'price', which is not among"):
        DataConfig((SourceConfig("csv", "a.csv", fields=("type",), numbers=("price",)),))


CELLS = st.one_of(
    st.none(),
    st.floats(),
    st.integers(),
    st.floats(width=32).map(str),
    st.sampled_from(["", "  ", " 2 ", "+1.5e3", "-0", "0x1", "1 2", "Infinity", "١", "1e400"]),
)


@given(st.lists(CELLS, max_size=5))
@settings(max_examples=60, deadline=None)
def test_arrow_and_python_agree(cells: list[object]) -> None:
    """A column passes exactly if each of its cells does."""
    texts = [None if cell is None else str(cell) for cell in cells]
    try:
        numbers = [number_of(cell, "x") for cell in texts]
    except NotANumber:
        with pytest.raises(NotANumber):
            check_arrays([pa.array(texts, pa.string())], "x", str)
    else:
        check_arrays([pa.array(texts, pa.string())], "x", str)
        for number in numbers:
            assert number is None or math.isfinite(np.float32(number))


def test_lists_of_one_and_numpy_values() -> None:
    found = [number_of(c, "x") for c in ([2.5], [], np.float32(2.5), np.zeros(0), True, b"3")]
    assert found == [2.5, None, 2.5, None, 1.0, 3.0]
    for cell in ([1, 2], {"a": 1}, np.ones(2)):
        with pytest.raises(NotANumber):
            number_of(cell, "x")
