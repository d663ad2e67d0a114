"""Parquet, WebDataset tars, saved Hugging Face data sets and TFDS: what is particular to each."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_sources import (
    COLOURS,
    TAGS,
    Row,
    parquet_table,
    tar_members,
    write_parquet,
    write_tar,
    write_tfds,
    write_webdataset,
)

from vitscale.config import SourceConfig
from vitscale.data.records import BadExample, Example
from vitscale.data.sources import Source, collect_classes, huggingface, open_source, parquet
from vitscale.errors import UserError

ROWS: list[Row] = [
    {"id": f"e{i}", "image": b"image %d" % i, "colour": COLOURS[i % 3], "tags": TAGS[: i % 3]}
    for i in range(8)
]


def opened(config: SourceConfig) -> Source:
    return open_source(config, ".", collect_classes([config], "."))


def ids(source: Source) -> list[str]:
    return [source.example_id(i) for i in range(len(source))]


# Parquet


def test_parquet_label_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "jpg": [b"a", b"b", None],
            "name": pa.array(["red|blue", None, "red"]).dictionary_encode(),
            "number": pa.array([10, 2, None], pa.int16()),
            "numbers": pa.array([[10, 2], [], None], pa.list_(pa.int64())),
            "flag": [True, False, None],
            "sampling_weight": [1.0, 2.5, 0.0],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    fields = ("name", "number", "numbers", "flag")
    source = opened(
        SourceConfig(
            "parquet", str(tmp_path / "a.parquet"), fields=fields, sampling="sampling_weight"
        )
    )
    assert source.classes == {
        "name": ["blue", "red"],
        "number": ["2", "10"],
        "numbers": ["2", "10"],
        "flag": ["False", "True"],
    }
    first = source[0].labels
    assert {field: first[field].ids.tolist() for field in fields} == {
        "name": [1, 0],
        "number": [1],
        "numbers": [1, 0],
        "flag": [1],
    }
    assert [len(labels.ids) for labels in source[1].labels.values()] == [0, 1, 0, 1]
    assert ids(source) == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
    with pytest.raises(BadExample, match="no image") as caught:
        source[2]
    assert caught.value.example_id == "a.parquet#2"
    assert source.sampling_weights is not None
    np.testing.assert_array_equal(source.sampling_weights, [1, 2.5, 0])
    assert source[1].sampling_weight == 2.5


def test_parquet_splits(tmp_path: Path) -> None:
    config = write_parquet(tmp_path / "by-file", ROWS)
    for number, split in enumerate(("train", "test")):
        folder = tmp_path / "by-file"
        (folder / f"part-{number}.parquet").rename(folder / f"{split}-00000-of-00001.parquet")
    assert ids(opened(dataclasses.replace(config, split="test"))) == ["e4", "e5", "e6", "e7"]
    with pytest.raises(UserError, match="no file is named for the split 'val'"):
        opened(dataclasses.replace(config, split="val"))
    (tmp_path / "by-column").mkdir()
    splits = pa.array(["train", "test", None, "train"] * 2)
    table = parquet_table(ROWS).append_column("split", splits)
    table = table.append_column("sampling_weight", pa.array(np.arange(8.0)))
    pq.write_table(table, tmp_path / "by-column" / "a.parquet", row_group_size=3)
    config = SourceConfig(
        "parquet",
        str(tmp_path / "by-column"),
        split="train",
        fields=("colour",),
        sampling="sampling_weight",
    )
    source = opened(config)
    assert ids(source) == ["e0", "e3", "e4", "e7"]
    assert source.sampling_weights is not None
    assert source.sampling_weights.tolist() == [0, 3, 4, 7]
    assert [e.image for e in source.read([3, 1])] == [b"image 7", b"image 3"]  # type: ignore[union-attr]
    with pytest.raises(UserError, match="'val' is empty; the column 'split' has 'test', 'train'"):
        opened(dataclasses.replace(config, split="val"))


def test_parquet_mistakes(tmp_path: Path) -> None:
    config = write_parquet(tmp_path / "p", ROWS)
    bad = {
        "no Parquet|not a Parquet file": dataclasses.replace(config, path=str(tmp_path / "none")),
        "Did you mean 'image'": dataclasses.replace(config, image_column="imag"),
        "holds struct": dataclasses.replace(config, fields=("image",)),
        "'red' occurs": dataclasses.replace(config, id_column="colour"),
        "no column 'sampling_weight'": dataclasses.replace(config, sampling="sampling_weight"),
    }
    for words, wrong in bad.items():
        with pytest.raises(UserError, match=words):
            opened(wrong)
    path = tmp_path / "p" / "part-1.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=rf"part-1\.parquet is damaged.*{len(whole) - 20:,} bytes"):
        opened(config)
    path.write_bytes(whole)
    source = opened(config)
    path.write_bytes(b"?" * len(whole))
    with pytest.raises(UserError, match=r"part-1\.parquet is damaged"):
        source[7]
    path.write_bytes(whole)
    source = opened(config)
    path.write_bytes(whole[:4] + b"?" * 60 + whole[64:])
    with pytest.raises(
        UserError, match=r"part-1\.parquet cannot be read at row group 0 \(from byte"
    ):
        source[4]
    with pytest.raises(UserError, match=r"part-1\.parquet cannot be read in column 'id'"):
        opened(config)
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(UserError, match="has other columns"):
        opened(config)
    two = pa.table({"one": [b"a"], "two": [b"b"]})
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(UserError, match=r"one, two.*image_column"):
        opened(SourceConfig("parquet", str(tmp_path / "two.parquet")))


def test_parquet_keeps_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row | {"image": bytes(1000)} for row in ROWS]
    config = write_parquet(tmp_path / "p", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(config)
    monkeypatch.setattr(parquet, "CACHE_BYTES", 5000)
    monkeypatch.setattr(parquet, "LARGE_GROUP", 100)
    with pytest.warns(UserWarning, match="row groups hold"):
        source = opened(config)
    reads = []
    read_group = source._groups._make  # type: ignore[attr-defined]
    source._groups._make = lambda group: reads.append(group) or read_group(group)  # type: ignore[attr-defined]
    assert len(source.read([*range(8), 0, 2])) == 10
    assert sorted(reads) == [0, 1, 2, 3]  # each once a call
    assert len(source._groups) == 2  # type: ignore[attr-defined]


# WebDataset


def test_webdataset_names_and_fields(tmp_path: Path) -> None:
    members = [
        ("dir/a.b.jpg", b"not this"),
        ("dir/a.png", b"image a"),
        ("dir/a.txt", b" cat | dog \n"),
        ("dir/a.json", b'{"n": 3, "list": ["x", "y"], "none": null, "uid": "first"}'),
        ("dir/b.png", b"image b"),
        ("dir/._b.png", b"of a Mac"),
        ("dir/b.txt", b""),
        ("dir/b.json", b'{"n": 10, "uid": "second"}'),
        ("dir/c.json", b'{"uid": "third"}'),
    ]
    write_tar(tmp_path / "x.tar", members)
    config = SourceConfig(
        "webdataset",
        str(tmp_path / "x.tar"),
        image_column="png",
        id_column="uid",
        fields=("txt", "n", "list"),
    )
    source = opened(config)
    assert source.classes == {"txt": ["cat", "dog"], "n": ["3", "10"], "list": ["x", "y"]}
    assert ids(source) == ["first", "second", "third"]
    found = source.read([0, 1, 2])
    assert isinstance(found[0], Example)
    assert found[0].image == b"image a"
    assert [labels.ids.tolist() for labels in found[0].labels.values()] == [[0, 1], [0], [0, 1]]
    assert isinstance(found[2], BadExample)
    assert (found[2].reason, found[2].example_id) == ("no image", "third")
    assert ids(opened(dataclasses.replace(config, id_column=None))) == ["dir/a", "dir/b", "dir/c"]


def test_webdataset_patterns_splits_and_repeated_keys(tmp_path: Path) -> None:
    config = write_webdataset(tmp_path / "w", ROWS)
    write_tar(tmp_path / "w" / "val-0000.tar", tar_members(ROWS[0]))
    assert len(opened(dataclasses.replace(config, split="train"))) == 8
    assert len(opened(dataclasses.replace(config, path=f"{config.path}/train-*.tar"))) == 8
    with pytest.raises(UserError, match=r"'e0' occurs 2 times.*id_column='path'"):
        opened(config)
    by_path = opened(dataclasses.replace(config, id_column="path"))
    assert by_path.example_id(0) == "train-0000.tar/e0"
    assert by_path.example_id(8) == "val-0000.tar/e0"


def test_webdataset_is_indexed_once_and_in_place(tmp_path: Path) -> None:
    config = write_webdataset(tmp_path / "w", ROWS)
    opened(config)
    built = sorted((tmp_path / "w" / ".vitscale").iterdir())
    source = opened(config)
    assert sorted((tmp_path / "w" / ".vitscale").iterdir()) == built
    tars = sorted(path.name for path in (tmp_path / "w").iterdir())
    assert tars == [".vitscale", "train-0000.tar", "train-0001.tar"]  # nothing extracted
    path = tmp_path / "w" / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"train-0001\.tar has become shorter"):
        source[7]


def test_damaged_tars(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, [m for row in ROWS for m in tar_members(row)])
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    config = SourceConfig("webdataset", str(path))
    header = bytearray(whole)
    header[2048:2060] = b"?" * 12
    for content in (
        whole[:5000],
        whole[: end - 100],
        whole[:5120],
        bytes(header),
        b"no tar at all",
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.tar is damaged"):
            opened(config)
    write_tar(path, [("a.jpg", b"1"), ("a.jpg", b"2")])
    with pytest.raises(UserError, match=r"'a.jpg' twice, the second at byte 1,536"):
        opened(config)
    write_tar(path, [])
    with pytest.raises(UserError, match="no examples"):
        opened(config)
    path.rename(tmp_path / "x.tar.gz")
    with pytest.raises(UserError, match=r"x\.tar\.gz is compressed"):
        opened(SourceConfig("webdataset", str(tmp_path)))


# TFDS


def test_tfds_slices_ids_and_nested_names(tmp_path: Path) -> None:
    config = write_tfds(tmp_path / "mine" / "1.0.0", ROWS)
    assert ids(opened(dataclasses.replace(config, split="train[:25%]"))) == ["e0", "e1"]
    assert ids(opened(dataclasses.replace(config, split="train[3:6]"))) == ["e3", "e4", "e5"]
    everything = dataclasses.replace(config, fields=())
    assert list(collect_classes([everything], ".")) == ["colour", "tags"]
    assert open_source(everything, ".", {"tags": TAGS}).classes == {"tags": TAGS}
    by_number = dataclasses.replace(config, id_column="colour")
    assert opened(by_number).example_id(1) == "1"


def test_tfds_mistakes(tmp_path: Path) -> None:
    config = write_tfds(tmp_path / "mine", ROWS)
    bad = {
        "needs a split: it has train": dataclasses.replace(config, split=None),
        "no split 'tran'.*'train'": dataclasses.replace(config, split="tran"),
        "Did you mean 'file_name'": dataclasses.replace(config, id_column="filename"),
        "Did you mean 'image'": dataclasses.replace(config, image_column="imag"),
        "cannot open 'no_such_set'": dataclasses.replace(
            config, path="no_such_set", data_dir=str(tmp_path)
        ),
    }
    for words, wrong in bad.items():
        with pytest.raises(UserError, match=words):
            opened(wrong)
    shard = sorted(tmp_path.rglob("*array_record*"))[0]
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        opened(config)[0]


# Hugging Face


def test_huggingface_strings_lists_and_single_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "name": datasets.Value("string"),
            "names": datasets.List(datasets.Value("string")),
            "class": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    pictures = [{"bytes": b"1", "path": None}, None, None]
    columns = {
        "picture": pictures,
        "name": ["x|y", None, "y"],
        "names": [["p", "q"], [], None],
        "class": [0, None, 1],
    }
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.select([2, 1, 0]).save_to_disk(str(tmp_path / "hf"))
    fields = ("name", "names", "class")
    config = SourceConfig("huggingface", str(tmp_path / "hf"), fields=fields)
    source = opened(config)
    assert source.classes == {"name": ["x", "y"], "names": ["p", "q"], "class": ["a", "b"]}
    found = source.read([2, 0, 1])
    assert isinstance(found[0], Example)
    assert [labels.ids.tolist() for labels in found[0].labels.values()] == [[0, 1], [0, 1], [0]]
    assert [read.reason for read in found[1:]] == ["no image", "no image"]  # type: ignore[union-attr]
    with pytest.raises(BadExample, match="no image"):  # a path could name any file
        huggingface._image_bytes({"bytes": None, "path": "/etc/passwd"})
    assert ids(source) == ["0", "1", "2"]
    with pytest.raises(UserError, match="Did you mean 'picture'"):
        opened(dataclasses.replace(config, image_column="pictures"))
    with pytest.raises(UserError, match="cannot be read as a saved"):
        opened(dataclasses.replace(config, path=str(tmp_path)))
    with pytest.raises(UserError, match="reads local folders only"):
        opened(dataclasses.replace(config, path="s3://bucket/folder"))
