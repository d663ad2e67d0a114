"""The text generator: every dirt knob does nothing at 0 and always strikes at 1."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from data_prep.shop import words
from data_prep.shop.products import Product, make_product, stream
from data_prep.shop.shapes import TYPES
from data_prep.shop.text import TextConfig, misspell, write_text

CLEAN = TextConfig(**{field.name: 0.0 for field in dataclasses.fields(TextConfig)})


def product(name: str, index: int = 0) -> Product:
    number = next(i for i, kind in enumerate(TYPES) if kind.name == name)
    return dataclasses.replace(make_product(0, index, number), colour="blue", shade=2)


def texts(config: TextConfig, count: int = 40) -> list[dict[str, Any]]:
    sofa, boot = product("sofa"), product("boot", 1)
    return [write_text(sofa, boot, 0.5, config, stream(9, i)) for i in range(count)]


def every_word(record: dict[str, Any]) -> str:
    return json.dumps(record).lower()


def knob(**values: float) -> TextConfig:
    return dataclasses.replace(CLEAN, **values)


def test_clean_text_names_the_product_and_nothing_else() -> None:
    for record in texts(CLEAN):
        assert "blue" in record["title"].lower()
        assert "sofa" in record["title"]
        assert "boot" not in every_word(record)
        assert not any(form in every_word(record) for form in ("couch", "settee", "sofas", "<p>"))
        assert not any(brand.lower() in every_word(record) for brand in words.BRANDS)
        assert not set(record["boards"]) & set(words.IRRELEVANT_BOARDS)
        assert all(query["clicks"] >= 1 for query in record["queries"])


@pytest.mark.parametrize(
    ("config", "strikes"),
    [
        (knob(synonym=1.0), lambda r: "sofa" not in every_word(r)),
        (knob(plural=1.0), lambda r: "sofas" in r["title"]),
        (knob(missing_field=1.0), lambda r: not any(r.values())),
        (knob(wrong_product_text=1.0), lambda r: "sofa" not in every_word(r)),
        (
            knob(irrelevant_board=1.0),
            lambda r: set(r["boards"]) <= set(words.IRRELEVANT_BOARDS),
        ),
        (knob(irrelevant_query=1.0), lambda r: all("boot" in q["text"] for q in r["queries"])),
        (knob(brand_noise=1.0), lambda r: r["title"].startswith(words.BRANDS)),
        (knob(html=1.0), lambda r: r["description"].startswith("<p>")),
        (knob(shouting=1.0), lambda r: r["title"].isupper()),
        (knob(junk_alt_text=1.0), lambda r: "sofa" not in r["alt_text"]),
        (knob(boilerplate=1.0), lambda r: r["description"].endswith(words.BOILERPLATE)),
        (knob(misspelling=1.0), lambda r: "sofa" not in r["title"].lower().split()),
        (knob(omit_colour=1.0), lambda r: "blue" not in r["title"].lower()),
        (knob(omit_shade=1.0), lambda r: "medium" not in r["title"].lower()),
    ],
)
def test_knob_at_one_always_strikes(config: TextConfig, strikes: Any) -> None:
    assert all(strikes(record) for record in texts(config))


def test_misspelling_always_changes_the_word() -> None:
    rng = np.random.default_rng(0)
    for word in ("sofa", "velvet", "aaaa", "bottle"):
        assert all(misspell(word, rng) != word for _ in range(200))


def test_popular_products_get_more_clicks_and_clicks_fall_with_rank() -> None:
    sofa, boot = product("sofa"), product("boot", 1)

    def clicks(popularity: float) -> int:
        found = [write_text(sofa, boot, popularity, CLEAN, stream(8, i)) for i in range(30)]
        return sum(query["clicks"] for record in found for query in record["queries"])

    assert clicks(1.0) > 10 * clicks(0.01)


def test_synonyms_cover_all_concepts_without_ambiguity() -> None:
    table = words.synonyms()
    assert {kind.name for kind in TYPES} <= set(table)
    assert set(words.COLOUR_FORMS) <= set(table)
    assert set(words.MATERIAL_FORMS) <= set(table)
    assert all(name in forms for name, forms in table.items())
    owners: dict[str, str] = {}
    for concept, forms in table.items():
        for form in forms:
            assert owners.setdefault(form, concept) == concept, form


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("sofa", "sofas"),
        ("bench", "benches"),
        ("dress", "dresses"),
        ("scarf", "scarves"),
        ("trousers", "trousers"),
        ("wall clock", "wall clocks"),
        ("hoody", "hoodies"),
        ("chest of drawers", "chests of drawers"),
    ],
)
def test_plurals(singular: str, plural: str) -> None:
    assert words.plural(singular) == plural
