import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prep_catalogue import config

from data_prep.pipeline import run_prep
from data_prep.schema import VocabularyConfig
from data_prep.schema_text import TextConfig, TextSourceConfig
from data_prep.sources import check_fields, read_language, read_texts
from data_prep.text_forms import hashtag_texts, path_words, split_camel_case
from vitscale.errors import UserError

TAGS = TextSourceConfig("tags", kind="list", form="hashtags")
OBJECTS = TextSourceConfig(
    "objects", kind="weighted_list", text_key="name", weight_key="confidence", weights="confidences"
)
NAMES = TextSourceConfig("names", kind="list", weight_field="clicks", language_field="lang")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://a.example/p/Sofas/redVelvet-sofa_02.jpg?w=9#top", "p Sofas red Velvet sofa"),
        ("images/IMG_2034 dining%20table.final.JPEG", "images IMG dining table final"),
        ("C:\\photos\\OakTable2.png", "C photos Oak Table"),
        ("www.shop.example/canap%C3%A9s/", "canapés"),
        ("shop.example/sofas", "sofas"),
        ("file:///a/b.webp", "a b"),
        ("//[bad", "bad"),
        ("%ff%fe", "\ufffd\ufffd".replace("\ufffd", "")),
        ("", ""),
    ],
)
def test_paths_become_words(text: str, words: str) -> None:
    assert path_words(text) == words


def test_hashtags_become_words() -> None:
    assert hashtag_texts("#MidCenturyModern love #boho_chic ＃DIYHome") == [
        *("Mid Century Modern", "boho chic", "DIY Home")
    ]
    assert hashtag_texts("OakTable") == ["Oak Table"]
    assert hashtag_texts("ÉtéBleu") == ["Été Bleu"]


@given(st.text(max_size=20))
def test_camel_case_only_adds_spaces(text: str) -> None:
    assert split_camel_case(text).replace(" ", "") == text.replace(" ", "")
    path_words(text)


def test_each_kind_of_source_is_read_with_its_weights() -> None:
    row: dict[str, Any] = {
        "tags": "#OakTable #x|plain",
        "objects": [{"name": "chair", "confidence": 0.9}, {"name": "cat", "confidence": 0}],
        "names": ["a", "b", " "],
        "clicks": [4, 9, 1],
        "lang": " de ",
        "title": "t",
        "trust": 0.25,
    }
    assert read_texts(TAGS, row) == [("Oak Table", 1.0), ("x", 1.0), ("plain", 1.0)]
    assert read_texts(OBJECTS, row) == [("chair", 0.9)]
    assert read_texts(NAMES, row) == [("a", 2.0), ("b", 3.0)]
    assert read_language(NAMES, row) == "de"
    assert read_language(NAMES, row | {"lang": None}) is None
    one = TextSourceConfig("title", weight_field="trust", weights="confidences")
    assert read_texts(one, row) == [("t", 0.25)]
    assert read_texts(NAMES, row | {"names": "a|b", "clicks": "1|4"}) == [("a", 1.0), ("b", 2.0)]


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (
            NAMES,
            {"names": ["a"], "clicks": [1, 2]},
            "should list a weight for each item of 'names'",
        ),
        (NAMES, {"names": ["a"], "clicks": [-1]}, "'clicks' of field 'names' is not a weight"),
        (OBJECTS, {"objects": [{"name": "a", "confidence": 2}]}, "not a confidence from 0 to 1"),
    ],
)
def test_bad_weights_are_told(source: TextSourceConfig, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_texts(source, row)


def test_fields_of_weights_and_languages_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": "a", "names": ["x"], "clicks": [1]}) + "\n")
    with pytest.raises(UserError, match="has no field 'lang'"):
        check_fields(config(sources=(NAMES,), image_field=None), path)
    with pytest.raises(UserError, match="use kind='list'"):
        TextSourceConfig("q", kind="weighted_list", weight_field="clicks")


CHINESE = (
    "这是一个漂亮的{}",
    "我们家用{}推荐",
    "新款{}上市了",
    "北欧风格{}现货",
    "高级{}特价",
    "大号{}包邮",
)


def catalogue(path: Path) -> Path:
    """Records whose every source is of another kind; a third of them is German, a third Chinese."""
    draw = random.Random(0)
    things = (
        ("sofa", "Samtsofa", "沙发"),
        ("dining table", "Esstisch", "餐桌"),
        ("lamp", "Lampe", "台灯"),
    )
    with open(path, "w") as file:
        for i in range(150):
            english, german, chinese = draw.choice(things)
            tag = draw.choice(["MidCenturyModern", "BohoChic"])
            titles = {
                "en": f"A beautiful {english} that you will love for your living room",
                "de": f"Ein wunderschöner {german} für das gemütliche Wohnzimmer zu Hause",
                "zh": draw.choice(CHINESE).format(chinese),
            }
            language = draw.choice(list(titles))
            row = {"id": f"r{i}", "title": titles[language], "tags": [f"#{tag}"]}
            row["url"] = f"https://shop.example/{english.title().replace(' ', '')}s/{i:05d}.jpg"
            row["objects"] = [
                {"name": english, "confidence": 0.9},
                {"name": "cat", "confidence": 0.01},
            ]
            row["boards"], row["lang"] = [f"{german} Ideen"], "de"
            file.write(json.dumps(row) + "\n")
    return path


def test_a_run_carries_kinds_and_languages_through(tmp_path: Path) -> None:
    sources = (
        TextSourceConfig("title"),
        TAGS,
        TextSourceConfig("url", form="path"),
        OBJECTS,
        TextSourceConfig("boards", kind="list", language_field="lang"),
    )
    choices = {"vocabulary": VocabularyConfig(min_document_frequency=5, max_document_fraction=0.9)}
    output = tmp_path / "out"
    prep = config(sources=sources, image_field=None, text=TextConfig(emoji="names"), **choices)
    run_prep(prep, catalogue(tmp_path / "in.jsonl"), output)
    rows = pq.read_table(output / "vocabulary.parquet").to_pylist()
    language = {row["phrase"]: row["language"] for row in rows}
    assert {"mid century modern", "dining table", "esstisch", "餐桌"} <= set(language)
    assert (language["餐桌"], language["esstisch"]) == ("zh", "de")
    annotations = pq.read_table(output / "annotations.parquet").to_pylist()
    scores: dict[str, float] = {}
    for row in annotations:
        scores[row["phrase"]] = max(scores.get(row["phrase"], 0.0), row["score"])
        if row["phrase"] == "餐桌":
            assert row["sources"] == ["title"]
            assert row["language"] in ("zh", "und")  # the shortest titles leave doubt
        assert row["phrase"] != "esstisch" or row["language"] == "de"
        assert row["phrase"] != "mid century modern" or row["sources"] == ["tags"]
    assert scores.get("cat", 0.0) < 0.2  # seen in every image, at a confidence of 0.01
    assert any(set(row["sources"]) >= {"url", "objects"} for row in annotations)
