"""The example format: what is written is read back, here and by TFDS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from array_record.python import array_record_module
from hypothesis import given
from hypothesis import strategies as st

from vitscale.data import records
from vitscale.data.records import Example, Labels
from vitscale.errors import UserError

weights = st.floats(0, 1e6, width=32)
labels = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), weights), max_size=5).map(
    lambda pairs: Labels.of([i for i, _ in pairs], [w for _, w in pairs])
)
examples = st.builds(
    Example,
    id=st.text(max_size=20),
    image=st.binary(max_size=50),
    labels=st.dictionaries(st.text("abc_/", min_size=1, max_size=6), labels, max_size=3),
    sampling_weight=weights,
)


def assert_equal(one: Example, two: Example) -> None:
    assert (one.id, one.image, one.sampling_weight) == (two.id, two.image, two.sampling_weight)
    assert sorted(one.labels) == sorted(two.labels)
    for name, value in one.labels.items():
        for a, b in ((value.ids, two.labels[name].ids), (value.weights, two.labels[name].weights)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@given(examples)
def test_round_trip(example: Example) -> None:
    serialized = records.serialize_example(example)
    assert_equal(records.parse_example(serialized), example)
    assert records.serialize_example(records.parse_example(serialized)) == serialized


def test_labels() -> None:
    assert Labels.of([3, 1]).weights.tolist() == [1, 1]
    assert Labels.of([]).ids.dtype == np.int64
    with pytest.raises(ValueError, match="2 label ids but 1 weights"):
        Labels.of([1, 2], [0.5])


def make_examples(count: int) -> list[Example]:
    # The first example is not labelled: TFDS must read an empty list too.
    return [
        Example(f"é{i}", b"\x89PNG" + bytes(i), {"f": Labels.of(range(i), [0.5] * i)}, 0.25 * i)
        for i in range(count)
    ]


def write(folder: Path, split: str, counts: list[int]) -> None:
    for shard, count in enumerate(counts):
        records.write_shard(
            folder / records.shard_name(split, shard, len(counts)), make_examples(count)
        )


def test_shards_are_read_back_and_nothing_temporary_stays(tmp_path: Path) -> None:
    write(tmp_path, "train", [3, 2])
    paths = records.find_shards(tmp_path, "train")
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path.name for path in paths]
    reader = array_record_module.ArrayRecordReader(str(paths[0]))
    for one, two in zip(reader.read_all(), make_examples(3), strict=True):
        assert_equal(records.parse_example(one), two)


def test_index_and_classes(tmp_path: Path) -> None:
    rows = {"id": ["a", "b"], "shard": [0, 1], "position": [5, 0], "sampling_weight": [1.0, 0.5]}
    records.write_index(tmp_path, "train", rows)
    assert records.read_index(tmp_path, "train").to_pydict() == rows
    assert records.read_index(tmp_path, "train").schema == records.INDEX_SCHEMA
    classes = {"b": ["ü", "x"], "a": []}
    records.write_classes(tmp_path, classes)
    assert records.read_classes(tmp_path) == classes
    assert list(records.read_classes(tmp_path)) == ["b", "a"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.json", "index-train.parquet"]
    with pytest.raises(UserError, match=r"index-test.parquet"):
        records.read_index(tmp_path, "test")
    with pytest.raises(UserError, match=r"classes\.json"):
        records.read_classes(tmp_path / "none")
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        records.write_index(tmp_path, "bad", rows | {"shard": ["x", "y"]})
    assert not (tmp_path / "index-bad.parquet").exists()


def test_find_shards_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards of split 'train'.*`vitscale prep`"):
        records.find_shards(tmp_path / "none", "train")
    write(tmp_path, "train", [1, 1, 1])
    (tmp_path / "other.array_record").write_bytes(b"")
    with pytest.raises(UserError, match=r"split 'test'.*it has the splits train"):
        records.find_shards(tmp_path, "test")
    middle = tmp_path / records.shard_name("train", 1, 3)
    middle.rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"lacks shard 1 of split 'train' \(1 missing\)"):
        records.find_shards(tmp_path, "train")
    write(tmp_path, "train", [1])
    with pytest.raises(UserError, match="several runs"):
        records.find_shards(tmp_path, "train")


def test_tfds_reads_the_shards(tmp_path: Path) -> None:
    import io

    import tensorflow_datasets as tfds
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (255, 0, 0)).save(buffer, "PNG")
    written = [
        Example(f"id{i}", buffer.getvalue(), {"f": Labels.of(range(i), [0.5] * i)}, 0.25 * i)
        for i in range(3)
    ]
    records.write_shard(tmp_path / records.shard_name("train", 0, 2), written[:2])
    records.write_shard(tmp_path / records.shard_name("train", 1, 2), written[2:])
    records.write_tfds_metadata(tmp_path, ["f"], {"train": [2, 1]})
    builder = tfds.builder_from_directory(tmp_path)
    assert builder.info.splits["train"].num_examples == 3
    for one, two in zip(builder.as_data_source("train"), written, strict=True):
        assert one["id"] == two.id.encode() or one["id"] == two.id
        assert one["sampling_weight"] == two.sampling_weight
        np.testing.assert_array_equal(np.asarray(one["f"]["labels"]), two.labels["f"].ids)
        np.testing.assert_array_equal(np.asarray(one["f"]["weights"]), two.labels["f"].weights)
        np.testing.assert_array_equal(one["image"], np.full((4, 5, 3), [255, 0, 0]))
