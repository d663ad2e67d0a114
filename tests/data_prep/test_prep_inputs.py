"""Inputs: tars and TFDS folders give the records of the same JSONL; large files are read in pieces with one result."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from prep_catalogue import config, jpeg, records, write_catalogue
from test_prep_pipeline import manifest, rows_of

from data_prep.images import check_batch
from data_prep.inputs import Piece, column_names, find_inputs, iterate_rows, list_pieces
from data_prep.pipeline import run_prep
from data_prep.schema import PrepConfig
from data_prep.sources import RECORD_SCHEMA, check_fields, read_batches
from vitscale.data.records import Example, Labels, shard_name, write_shard, write_tfds_metadata
from vitscale.errors import UserError


def read(path: Path, schema: PrepConfig, split: str = "") -> list[dict[str, Any]]:
    files = find_inputs(path, split)
    for file in files:
        check_fields(schema, file)
    batches = [batch for piece in list_pieces(files) for batch in read_batches(schema, piece)]
    return [row for batch in batches for row in batch.to_pylist()]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tars(folder: Path, rows: list[dict[str, Any]], each: int = 40) -> Path:
    folder.mkdir()
    for start in range(0, len(rows), each):
        with tarfile.open(folder / f"part-{start:04d}.tar", "w") as tar:
            for i, row in enumerate(rows[start : start + each], start):
                rest = {k: row[k] for k in ("tags", "queries")}
                add(tar, f"{row['id']}.json", json.dumps(rest).encode())
                add(tar, f"{row['id']}.jpg", jpeg(i))
                add(tar, f"{row['id']}.title.txt", row["title"].encode())
                add(tar, f"{row['id']}.mask.npy", b"\xff\x00 no text")
    return folder


def from_tar(**changes: Any) -> PrepConfig:
    plain = config()
    title = plain.sources[0].__class__("title", field="title.txt", prior=0.7)
    return config(id_field="__key__", sources=(title, *plain.sources[1:]), **changes)


def expected(
    rows: list[dict[str, Any]], tmp_path: Path, schema: PrepConfig
) -> list[dict[str, Any]]:
    """Of a JSONL file of the same records, with the images' bytes."""
    path = tmp_path / "expected.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(path, schema)
    return [row | {"image_path": None, "image_bytes": jpeg(i)} for i, row in enumerate(found)]


def test_webdataset_tars_give_the_same_records(tmp_path: Path) -> None:
    rows = records(100)
    folder = write_tars(tmp_path / "in", rows)
    assert read(folder, from_tar()) == expected(rows, tmp_path, config())
    assert read(folder, from_tar(image_field="jpg")) == expected(rows, tmp_path, config())
    _, first = next(iterate_rows(folder / "part-0040.tar", 10))
    assert first["__path__"] == "part-0040.tar/r0040"
    assert first["image"] == first["jpg"] == jpeg(40)


def test_a_tar_that_is_not_whole_is_told(tmp_path: Path) -> None:
    rows = records(10)
    path = write_tars(tmp_path / "in", rows) / "part-0000.tar"
    data = path.read_bytes()
    used = len(data.rstrip(b"\0"))
    for size in (used // 2 - 137, used - 700, used + 100):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"part-0000\.tar .*(cut short|damaged)"):
            read(path, from_tar())
    path.write_bytes(data)
    assert len(read(path, from_tar())) == 10


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x"), ("b.txt", b"x"), ("a.jpg", b"x")], "'a' do not lie side by side"),
        ([("a.txt", b"x"), ("a.txt", b"y")], "holds 'a.txt' twice"),
        ([("a.txt", b"so\xfff"), ("a.jpg", b"x")], "'a.txt' is not valid UTF-8"),
        ([("a.json", b"{")], "'a.json' is not JSON"),
        ([("a.json", b'{"txt": 1}'), ("a.txt", b"x")], "'txt' in its .json and beside it"),
    ],
)
def test_strange_tars_are_told(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members:
            add(tar, name, data)
    with pytest.raises(UserError, match=message):
        list(iterate_rows(tmp_path / "a.tar", 10, ["txt", "jpg"]))


def write_tfds(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """The folder that TFDS writes for a builder with these features."""
    import tensorflow_datasets as tfds

    folder.mkdir()

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "title": tfds.features.Text(),
            "tags": tfds.features.Sequence(tfds.features.Text()),
            "kind": tfds.features.ClassLabel(names=["sofa", "lamp"]),
            "queries": tfds.features.Sequence(
                {"text": tfds.features.Text(), "clicks": tfds.features.Scalar(np.int64)}
            ),
        }
    )

    for name, part in splits.items():
        path = folder / f"made-{name}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i, row in enumerate(part):
            stored = row | {"image": io.BytesIO(jpeg(i)), "kind": "lamp"}
            writer.write(features.serialize_example(features.encode_example(stored)))
        writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name="made",
        filetype_suffix="array_record",
    )
    infos = [
        tfds.core.SplitInfo(
            name=name, shard_lengths=[len(part)], num_bytes=0, filename_template=template
        )
        for name, part in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=infos,
        filename_template=template,
        version="1.0.0",
        check_data=False,
    )
    return folder


def from_tfds(**changes: Any) -> PrepConfig:
    plain = config()
    queries = plain.sources[0].__class__(
        "queries", "queries/text", "list", weight_field="queries/clicks", prior=0.6
    )
    return config(sources=(*plain.sources[:2], queries), **changes)


def test_a_tfds_folder_gives_the_same_records(tmp_path: Path) -> None:
    rows = records(30)
    folder = write_tfds(tmp_path / "tfds", train=rows, test=records(4, seed=1))
    found = sorted(read(folder, from_tfds(), "train"), key=lambda row: row["id"])
    want = expected(rows, tmp_path, config())
    assert [row["texts"] for row in found] == [row["texts"] for row in want]
    assert [row["image_bytes"] for row in found] == [row["image_bytes"] for row in want]
    with pytest.raises(UserError, match=r"set input_split to one of train, test"):
        find_inputs(folder)
    with pytest.raises(UserError, match="no split 'dev'"):
        find_inputs(folder, "dev")
    shard = find_inputs(folder, "train")[0]
    assert {"queries/clicks", "kind", "tfds_id"} <= set(column_names(shard))
    _, row = next(iterate_rows(shard, 10))
    assert row["kind"] == "lamp"
    # In pieces, and cut short.
    pieces = list_pieces([shard], piece_bytes=2000)
    assert len(pieces) > 3
    assert [r for p in pieces for r in iterate_rows(p, 10)] == list(iterate_rows(shard, 10))
    shard.write_bytes(shard.read_bytes()[:-5000])
    with pytest.raises(UserError, match="damaged or cut short"):
        find_inputs(folder, "train")


def test_our_own_shards_are_an_input(tmp_path: Path) -> None:
    """The shards of one run can be gone through by another: TFDS opens them."""
    examples = [Example(f"x{i}", jpeg(i), {"concepts": Labels.of([1, 2])}) for i in range(5)]
    write_shard(tmp_path / shard_name("train", 0, 1), examples)
    write_tfds_metadata(tmp_path, ["concepts"], {"train": [5]})
    rows = list(iterate_rows(find_inputs(tmp_path)[0], 10))
    assert [row["id"] for _, row in rows] == [f"x{i}" for i in range(5)]
    assert rows[3][1]["image"] == jpeg(3)
    assert rows[3][1]["concepts/labels"] == [1, 2]


def test_an_image_folder_with_a_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = records(60)
    write_catalogue(tmp_path / "in", rows).unlink()
    with open(tmp_path / "in" / "texts.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            cells = row | {"tags": "|".join(row["tags"]), "queries": json.dumps(row["queries"])}
            writer.writerow(cells)
    found = read(tmp_path / "in", config())
    batch = pa.RecordBatch.from_pylist(found, schema=RECORD_SCHEMA)
    checked = check_batch(batch, tmp_path / "in", config())
    assert checked.usable.column("id").to_pylist() == [row["id"] for row in rows]
    monkeypatch.setattr("data_prep.images.MAX_IMAGE_BYTES", 100)
    checked = check_batch(batch, tmp_path / "in", config())
    assert set(checked.rejects.column("reason").to_pylist()) == {"image file has more than 256 MiB"}
    (tmp_path / "in" / "texts.csv").unlink()
    with pytest.raises(UserError, match=r"a folder of images needs a CSV"):
        find_inputs(tmp_path / "in")


@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=12),
    blank=st.lists(st.integers(0, 11), max_size=3),
    piece_bytes=st.integers(1, 200),
    last_newline=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_pieces_of_jsonl_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    blank: list[int],
    piece_bytes: int,
    last_newline: bool,
) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    for place in blank:
        lines.insert(place, "")
    path = tmp_path_factory.mktemp("pieces") / "a.jsonl"
    data = "\n".join(lines) + ("\n" if last_newline else "")
    path.write_bytes(data.encode("utf-8", "surrogatepass"))
    whole = [(str(place), row) for place, row in iterate_rows(path, 10)]
    cut = list_pieces([path], piece_bytes)
    assert len(cut) == max(1, -(-len(path.read_bytes()) // piece_bytes))
    assert [(str(place), row) for p in cut for place, row in iterate_rows(p, 10)] == whole
    assert [row["text"] for _, row in whole] == texts


def test_pieces_of_parquet_are_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(records(500)), path, row_group_size=60)
    pieces = list_pieces([path], piece_bytes=1)
    assert [(p.start, p.stop) for p in pieces] == [(i, i + 1) for i in range(9)]
    whole = list(iterate_rows(path, 50))
    assert [row for p in pieces for row in iterate_rows(p, 50)] == whole
    assert list_pieces([path]) == [Piece(path)]
    pq.write_table(pa.Table.from_pylist(records(500)).slice(0, 0), path)
    assert list(iterate_rows(list_pieces([path])[0], 10)) == []


def test_what_is_too_long_for_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.inputs.MAX_LINE_BYTES", 100)
    monkeypatch.setattr("data_prep.inputs_tar.MAX_MEMBER_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"id": "' + "x" * 200 + '"}\n{"id": 3}\n')
    with pytest.raises(UserError, match=r"line 2: longer than"):
        list(iterate_rows(path, 10))
    # The piece that begins within the long line has the rows after it.
    assert [row["id"] for _, row in iterate_rows(Piece(path, 50, 300), 10)] == [3]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.jpg", b"x" * 101)
    with pytest.raises(UserError, match=r"'a\.jpg' has 101 bytes, more than"):
        list(iterate_rows(tmp_path / "a.tar", 10))


def test_a_place_in_a_piece_is_told_by_its_line(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i}) for i in range(100)]
    lines[70] = '{"id": '
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 71: not JSON"):
        [list(iterate_rows(piece, 10)) for piece in list_pieces([path], 100)]


def test_the_result_does_not_depend_on_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = records(150)
    rows[40]["id"] = None
    rows[41]["title"] = ["no text"]
    path = write_catalogue(tmp_path / "in", rows)
    schema = config(max_reject_fraction=0.05)
    run_prep(schema, path, tmp_path / "whole")
    monkeypatch.setattr("data_prep.inputs.list_pieces.__defaults__", (3000,))
    assert len(list_pieces([path])) > 5
    run_prep(schema, path, tmp_path / "cut")
    whole, cut = manifest(tmp_path / "whole"), manifest(tmp_path / "cut")
    assert whole["files"] == cut["files"]
    assert whole["rejects"] == cut["rejects"]
    assert "catalogue.jsonl:41" in {row["id"] for row in rows_of(tmp_path / "cut", "rejects")}


@pytest.mark.slow
def test_every_kind_of_input_ends_in_the_same_shards(tmp_path: Path) -> None:
    rows = records(100)
    run_prep(config(), write_catalogue(tmp_path / "in", rows), tmp_path / "jsonl")
    run_prep(from_tar(), write_tars(tmp_path / "tars", rows), tmp_path / "tar")
    shards = write_tfds(tmp_path / "made", train=rows)
    run_prep(from_tfds(), shards, tmp_path / "tfds")
    wanted = manifest(tmp_path / "jsonl")["files"]
    assert any(name.startswith("shards/") for name in wanted)
    for kind in ("tar", "tfds"):
        found = manifest(tmp_path / kind)["files"]
        different = {name for name in wanted if wanted[name] != found.get(name)}
        assert different <= {"sampled_records.parquet"}  # which has paths of images where it can
    assert str(shards / "features.json") in manifest(tmp_path / "tfds")["input"]
