"""Damaged input: the result is right or the run stops with a clear sentence; a dataset is never silently shorter."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prep_catalogue import config, records

from data_prep.inputs import find_inputs, iterate_rows
from data_prep.pipeline import run_prep
from data_prep.sources import check_fields, read_batches
from vitscale.errors import UserError

TEXT_ONLY = config(image_field=None)


def read_all(path: Path) -> list[dict[str, Any]]:
    rows = []
    for file in find_inputs(path):
        check_fields(TEXT_ONLY, file)
        rows += [row for batch in read_batches(TEXT_ONLY, file) for row in batch.to_pylist()]
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_a_truncated_parquet_file_is_told(tmp_path: Path, share: float) -> None:
    path = write_parquet(tmp_path / "a.parquet", records(500), row_group_size=100)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file"):
        read_all(path)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_flipped_byte_in_a_parquet_page_is_told(tmp_path: Path, share: float) -> None:
    rows = records(2000)
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=500, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 0xFF
    path.write_bytes(data)
    try:
        found = read_all(path)
    except UserError as error:
        assert "a.parquet" in str(error)  # noqa: PT017
    else:  # it was in a column that nobody reads
        assert [row["id"] for row in found] == [row["id"] for row in rows]
        path_of_truth = write_parquet(tmp_path / "b.parquet", rows)
        assert found == read_all(path_of_truth)


def test_a_row_group_of_another_schema_is_told(tmp_path: Path) -> None:
    """The second row group's pages are replaced by those of a file whose title is a number."""
    plain = {"compression": "none", "use_dictionary": False, "row_group_size": 50}
    rows = [
        {"id": f"r{i}", "title": f"a red sofa {i}", "tags": [], "queries": []} for i in range(100)
    ]
    path = write_parquet(tmp_path / "a.parquet", rows, **plain)
    numbers = [row | {"title": i} for i, row in enumerate(rows)]
    other = write_parquet(tmp_path / "b.parquet", numbers, **plain)

    def pages(file: Path) -> tuple[int, int]:
        column = pq.ParquetFile(file).metadata.row_group(1).column(1)
        return column.data_page_offset, column.total_compressed_size

    start, size = pages(path)
    begin, length = pages(other)
    data = bytearray(path.read_bytes())
    strange = other.read_bytes()[begin : begin + length][:size]
    data[start : start + len(strange)] = strange
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"input .*a\.parquet"):
        read_all(path)


def test_a_file_of_another_schema_in_the_folder_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", records(20))
    rows = [{k: v for k, v in row.items() if k != "title"} for row in records(20)]
    write_parquet(tmp_path / "b.parquet", rows)
    with pytest.raises(UserError, match=r"b\.parquet has no field 'title'"):
        read_all(tmp_path)
    rows = [row | {"id": f"b{i}", "title": ["a"]} for i, row in enumerate(records(20))]
    write_parquet(tmp_path / "b.parquet", rows)
    with pytest.raises(UserError, match=r"20 of 40 records are broken.*'title' should be text"):
        run_prep(TEXT_ONLY, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_that_is_not_utf8_in_parquet_is_told(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"so\xfff")]
    title = pa.Array.from_buffers(pa.string(), 1, buffers)
    columns = {"id": ["a"], "title": title, "tags": [["x"]], "queries": [["x"]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet is not valid UTF-8"):
        read_all(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_text_that_is_not_utf8_deep_in_a_file_is_told(tmp_path: Path, name: str) -> None:
    header = b"id,title\n" if name == "a.csv" else b""
    good = b"%d,red sofa\n" if name == "a.csv" else b'{"id": "%d", "title": "red sofa"}\n'
    lines = [good % i for i in range(5000)]
    lines[4000] = lines[4000].replace(b"sofa", b"so\xfffa")
    (tmp_path / name).write_bytes(header + b"".join(lines))
    with pytest.raises(UserError, match="is not valid UTF-8"):
        list(iterate_rows(tmp_path / name, 100))


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_gzip_file_is_told(tmp_path: Path, damage: str) -> None:
    text = "".join(json.dumps(row) + "\n" for row in records(500))
    data = bytearray(gzip.compress(text.encode()))
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz"):
        list(iterate_rows(tmp_path / "a.jsonl.gz", 100))


def test_an_open_quote_in_a_csv_does_not_swallow_the_rest(tmp_path: Path) -> None:
    lines = ["id,title", *(f'{i},"a sofa"' for i in range(50))]
    lines[20] = '19,"a sofa'
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a\.csv"):
        list(iterate_rows(tmp_path / "a.csv", 100))
    (tmp_path / "b.csv").write_text("\n".join([*lines[:20], '19,"a sofa']))
    with pytest.raises(UserError, match="unexpected end of data"):
        list(iterate_rows(tmp_path / "b.csv", 100))


def test_one_id_in_two_files_is_told(tmp_path: Path) -> None:
    for name, rows in (
        ("a", records(30)),
        ("b", [row | {"id": row["id"] + "b"} for row in records(30)]),
    ):
        rows[17]["id"] = "same"
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="not unique, such as 'same'"):
        run_prep(TEXT_ONLY, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("size", [500_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_a_title_of_megabytes_is_only_long(tmp_path: Path, size: int) -> None:
    rows = records(60)
    for row, text in zip(
        rows, ("red sofa <b> & more http://a.b/c ", "x", "<&", "https://"), strict=False
    ):
        row["title"] = text * (size // len(text))
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_prep(TEXT_ONLY, path, tmp_path / "out")
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts["records"] == counts["accepted"] == 60
