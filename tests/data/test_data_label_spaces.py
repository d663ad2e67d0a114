"""Sources that name their labels differently: columns read as other fields, and classes told apart by a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from written_sources import COLOURS, TAGS, Row, colours_of, ids_of_all, write_csv

from vitscale.config import DataConfig, SourceConfig
from vitscale.data.records import Example, Labels
from vitscale.data.sources import Source, available_fields, collect_classes, open_source
from vitscale.errors import UserError


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    colours = ["red", None, "blue", "green", "red"]
    return [
        {"id": f"e{i}", "image": b"image %d" % i, "colour": colour, "tags": TAGS[: i % 4]}
        for i, colour in enumerate(colours)
    ]


def names_of_all(source: Source, field: str) -> list[list[str]]:
    return [[source.classes[field][i] for i in ids] for ids in ids_of_all(source, field)]


def test_every_kind_renames_and_prefixes(config: SourceConfig, rows: list[Row]) -> None:
    changed = dataclasses.replace(
        config,
        fields=("product", "tags"),
        rename=("colour=product",),
        label_prefix="shop/",
    )
    classes = collect_classes([changed], ".")
    assert sorted(classes["product"]) == [f"shop/{name}" for name in sorted(COLOURS)]
    assert list(classes) == ["product", "tags"]
    source = open_source(changed, ".", classes)
    expected = [[f"shop/{name}" for name in names] for names in colours_of(rows)]
    assert names_of_all(source, "product") == expected
    for index, row in enumerate(rows):
        labels = source[index].labels
        assert list(labels) == ["product", "tags"]
        named = [classes["tags"][i] for i in labels["tags"].ids]
        assert named == [f"shop/{tag}" for tag in row["tags"]]
    # In the classes of a run that knows none of them without the prefix.
    other = open_source(changed, ".", {"product": COLOURS, "tags": ["shop/soft"]})
    assert other.unknown_labels["product"] == 4
    assert not any(ids_of_all(other, "product"))
    assert ids_of_all(other, "tags") == [[0] if row["tags"] else [] for row in rows]


def test_one_column_as_two_fields(config: SourceConfig) -> None:
    twice = dataclasses.replace(
        config, fields=("own", "colour"), rename=("colour=own", "colour=colour")
    )
    source = open_source(twice, ".", collect_classes([twice], "."))
    assert names_of_all(source, "own") == names_of_all(source, "colour")
    assert {*source[0].labels} == {"own", "colour"}


def test_a_joint_label_space_of_two_kinds(config: SourceConfig, tmp_path: Path) -> None:
    """Both hold "red": two classes, in one field, that no one mixes up."""
    other = write_csv(
        tmp_path / "other", [{"id": "x", "image": b"x", "colour": "red", "tags": ["soft"]}]
    )
    both = [
        dataclasses.replace(config, label_prefix="cars/"),
        dataclasses.replace(other, label_prefix="birds/"),
    ]
    classes = collect_classes(both, ".")
    assert len(classes["colour"]) == len(set(classes["colour"])) == 4
    found = [names_of_all(open_source(c, ".", classes), "colour")[0] for c in both]
    assert found == [["cars/red"], ["birds/red"]]


def test_shards_of_two_vocabularies_share_a_field(make_shards: Callable) -> None:
    """Without a prefix they cannot; with one, the numbering of each is kept, one after the other."""
    vocabularies = {"a": ["x", "y"], "b": ["y", "x", "z"]}
    configs = []
    for name, names in vocabularies.items():
        examples = [
            Example(f"{name}{i}", b"image", {"f": Labels.of([i])}) for i in range(len(names))
        ]
        folder = make_shards(examples, {"f": names, "other": ["o"]}, count=1, name=name)
        configs.append(SourceConfig("shards", str(folder), split="train"))
    with pytest.raises(UserError, match=r"differently; .* by label_prefix"):
        collect_classes(configs, ".")
    joint = [
        dataclasses.replace(c, label_prefix=f"{n}/") for c, n in zip(configs, "ab", strict=True)
    ]
    classes = collect_classes(joint, ".")
    assert classes == {"f": ["a/x", "a/y", "b/y", "b/x", "b/z"], "other": ["a/o", "b/o"]}
    second = open_source(joint[1], ".", classes)
    assert ids_of_all(second, "f") == [[2], [3], [4]]
    assert names_of_all(second, "f") == [["b/y"], ["b/x"], ["b/z"]]
    # Apart: a field each, the other columns as they are.
    apart = [configs[0], dataclasses.replace(configs[1], rename=("f=g", "other=o"))]
    assert collect_classes(apart, ".") == {
        "f": ["x", "y"],
        "other": ["o"],
        "g": ["y", "x", "z"],
        "o": ["o"],
    }
    assert available_fields(apart[1], ".") == {"g", "o"}
    # A name that is written with its prefix is that class.
    written = make_shards([], {"f": ["a/y", "q"]}, count=1, name="c")
    mixed = [joint[0], SourceConfig("shards", str(written), split="train", fields=("f",))]
    assert collect_classes(mixed, ".")["f"] == ["a/x", "a/y", "q"]


def test_a_prefix_keeps_the_order_of_numbers(tmp_path: Path) -> None:
    """An ordinal task would learn another order without a word."""
    own = [
        {"id": f"e{i}", "image": b"x", "colour": str(i), "tags": []} for i in (11, 2, 10, 1, 100)
    ]
    config = write_csv(tmp_path / "own", own)
    configs = [dataclasses.replace(config, label_prefix=prefix) for prefix in ("y/", "x/", "")]
    classes = collect_classes(configs, ".")["colour"]
    numbers = ["1", "2", "10", "11", "100"]
    assert classes == [f"{prefix}{number}" for prefix in ("", "x/", "y/") for number in numbers]


def test_prefixes_that_make_the_same_name(make_shards: Callable, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "table", [{"id": "a", "image": b"x", "colour": "bc", "tags": []}])
    other = write_csv(tmp_path / "other", [{"id": "a", "image": b"x", "colour": "c", "tags": []}])
    folder = make_shards([], {"colour": ["c"]}, count=1)
    shards = SourceConfig("shards", str(folder), split="train", fields=("colour",))
    first = dataclasses.replace(table, fields=("colour",), label_prefix="a")
    for second in (dataclasses.replace(other, fields=("colour",)), shards):
        with pytest.raises(UserError, match=r"'abc' of the label field 'colour'; end each"):
            collect_classes([first, dataclasses.replace(second, label_prefix="ab")], ".")
        names = collect_classes([first, dataclasses.replace(second, label_prefix="ab/")], ".")
        assert sorted(names["colour"]) == ["ab/c", "abc"]


def test_clashes(make_shards: Callable) -> None:
    folder = make_shards([], {"f": ["x"], "g": ["y"]}, count=1)
    config = SourceConfig("shards", str(folder), split="train")
    for rename, words in {
        ("f=g",): "reads 'f' as 'g', which is another column's name",
        ("ff=h",): "has no label column 'ff'.* Did you mean 'f'",
    }.items():
        with pytest.raises(UserError, match=words):
            collect_classes([dataclasses.replace(config, rename=rename)], ".")
    swapped = dataclasses.replace(config, rename=("f=g", "g=f"))
    assert collect_classes([swapped], ".") == {"g": ["x"], "f": ["y"]}
    with pytest.raises(UserError, match="no label field 'h'"):
        collect_classes([dataclasses.replace(config, numbers=("h",))], ".")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rename": ("colour",)}, "rename has 'colour'; write"),
        ({"rename": ("a=b=c",)}, "rename has 'a=b=c'; write"),
        ({"rename": ("=b",)}, "rename has '=b'; write"),
        ({"rename": ("a=c", "b=c")}, "reads two columns as 'c'"),
        ({"rename": ("a=c",), "fields": ("a",)}, "rename names 'c', which is not among its fields"),
        ({"label_prefix": "x/"}, "none of its fields holds names"),
        ({"label_prefix": "x/", "fields": ("a",), "numbers": ("a",)}, "none of its fields holds"),
    ],
)
def test_settings_that_nothing_would_read(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DataConfig((SourceConfig("csv", "a.csv", **changes),))
