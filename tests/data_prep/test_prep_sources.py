import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prep_catalogue import config, jpeg, records

from data_prep.images import check_batch, inspect_image, resolve_image
from data_prep.inputs import find_inputs, iterate_rows
from data_prep.schema import PrepConfig
from data_prep.sources import RECORD_SCHEMA, check_fields, read_batches
from vitscale.errors import UserError


def read(path: Path, schema: PrepConfig | None = None) -> list[dict[str, Any]]:
    check_fields(schema or config(), path)
    return [row for batch in read_batches(schema or config(), path) for row in batch.to_pylist()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                cells = row | {"tags": "|".join(row["tags"]), "queries": json.dumps(row["queries"])}
                writer.writerow(cells)
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"])
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    rows = records(150)
    found = read(write(tmp_path / name, rows))
    assert found == read(write(tmp_path / "reference.jsonl", rows))
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [text["source"] for text in found[0]["texts"]] == [0, 1, 1, 1, 2]
    clicks = rows[0]["queries"][0]["clicks"]
    assert found[0]["texts"][-1]["weight"] == pytest.approx(clicks**0.5)


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", records(2))
    write(tmp_path / "a.jsonl", records(1))
    (tmp_path / "notes.txt").write_text("x")
    assert [path.name for path in find_inputs(tmp_path)] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"id,image,title,tags,queries\n", "is empty"),
        ("a.jsonl", b'{"id": 1}\n{"id": \n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: a record must be a JSON object"),
        ("a.jsonl", b'{"id": "a", "title": "x", "tags": [], "queries": []}\n', "no field 'image'"),
        ("a.jsonl", b'\xff\xfe{"id": 1}\n', "not valid UTF-8"),
        ("a.csv", b"id,image\n1\n", "line 2: the row does not have the 2 cells"),
        ("a.jsonl.gz", b"nothing", "not a whole gzip file"),
        ("a.parquet", b"nothing", "not a Parquet file"),
        ("a.txt", b"", "unknown format"),
    ],
)
def test_bad_files_are_told_in_a_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(find_inputs(tmp_path / name)[0])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_inputs(tmp_path / "no.jsonl")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": None}, "record has no id"),
        ({"title": ["a"]}, "field 'title' should be text"),
        ({"tags": 3}, "field 'tags' should be a list"),
        ({"tags": [{"a": 1}]}, "field 'tags' should be a list of texts"),
        (
            {"queries": [{"text": "a", "clicks": "many"}]},
            "'clicks' of field 'queries' is not a weight",
        ),
        ({"queries": [{"text": "a", "clicks": -1}]}, "'clicks' of field 'queries' is not a weight"),
        ({"image": 3}, "image should be a path or bytes"),
    ],
)
def test_a_bad_record_is_kept_with_its_problem(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    rows = records(3)
    rows[1] |= change
    found = read(write(tmp_path / "a.jsonl", rows))
    assert [row["problem"] for row in found] == [None, problem, None]
    assert found[1]["id"] == (rows[1]["id"] or "a.jsonl:2")


def test_missing_fields_and_half_characters_are_only_dirt(tmp_path: Path) -> None:
    rows = records(2)
    rows[0] = {"id": "a", "title": "half \ud800 pair"}
    found = read(write(tmp_path / "a.jsonl", rows))[0]
    assert found["problem"] is None
    assert found["texts"] == [{"source": 0, "weight": 1.0, "text": "half ? pair", "language": None}]


def test_images_stay_in_their_folder(tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "a.jpg").write_bytes(jpeg())
    assert resolve_image(root, "a.jpg") == root / "a.jpg"
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg"):
        assert resolve_image(root, name) == "image path leaves the image folder"
    assert resolve_image(root, "b.jpg") == "image file does not exist"
    assert isinstance(resolve_image(root, "a" * 5000), str)
    assert isinstance(resolve_image(root, "a\x00.jpg"), str)


def test_broken_images_are_found() -> None:
    good = jpeg()

    def problem(data: bytes, max_pixels: int = 10_000) -> str | None:
        return inspect_image(data, config(max_image_pixels=max_pixels)).problem

    assert problem(good) is None
    assert problem(good, 16 * 12 - 1) == "image has more pixels than max_image_pixels"
    assert problem(good[: len(good) // 2]) == "image cannot be decoded"
    assert problem(b"GIF89a") == "image is not JPEG, PNG or WebP"


def test_a_batch_is_split_into_usable_and_rejected(tmp_path: Path) -> None:
    rows = [{"id": "a", "texts": []}, {"id": "b", "texts": [], "image_bytes": b"x"}]
    rows.append({"id": "c", "texts": [], "image_bytes": jpeg()})
    batch = pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMA)
    checked = check_batch(batch, tmp_path.resolve(), config())
    assert checked.usable.column("id").to_pylist() == ["a", "c"]
    assert checked.candidates().column("pixels").to_pylist() == [0, 16 * 12]
    assert checked.rejects.to_pylist() == [
        {"id": "b", "stage": "images", "reason": "image is not JPEG, PNG or WebP"}
    ]


def test_a_csv_that_names_a_column_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,title,title\n1,red,blue\n")
    with pytest.raises(UserError, match=r"a\.csv: the header names 'title' twice"):
        list(iterate_rows(path, 10))
