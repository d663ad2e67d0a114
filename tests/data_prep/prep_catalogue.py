"""A tiny catalogue for the tests of the prep pipeline: three things, three colours, synonyms, noise."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.schema import PrepConfig, TextSourceConfig, VocabularyConfig

TYPES = (("sofa", "couch", "settee"), ("dining table", "kitchen table"), ("t shirt", "tee"))
COLOURS = (("red", "crimson"), ("blue", "navy"), ("green", "emerald"))


def config(**changes: Any) -> PrepConfig:
    values: dict[str, Any] = {
        "sources": (
            TextSourceConfig("title", prior=0.7),
            TextSourceConfig("tags", kind="list", prior=0.6),
            TextSourceConfig("queries", kind="weighted_list", weight_key="clicks", prior=0.6),
        ),
        "vocabulary": VocabularyConfig(min_document_frequency=4),
        "batch_rows": 64,
        "examples_per_shard": 50,
        "report_examples": 4,
    }
    return PrepConfig(**(values | changes))


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (seed * 37 % 256, seed * 11 % 256, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        thing, colour = draw.choice(TYPES), draw.choice(COLOURS)
        rows.append(
            {
                "id": f"r{i:04d}",
                "image": f"images/{i:04d}.jpg",
                "title": f"<b>{draw.choice(colour).title()}</b> {draw.choice(thing)} &amp; more",
                "tags": [
                    draw.choice(thing) + draw.choice(["", "s"]),
                    draw.choice(colour),
                    "my wishlist",
                ],
                "queries": [
                    {
                        "text": f"{draw.choice(colour)} {draw.choice(thing)}",
                        "clicks": draw.randint(1, 9),
                    }
                ],
            }
        )
    return rows


def write_catalogue(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "images").mkdir(parents=True)
    for i, row in enumerate(rows):
        if row.get("image"):
            (folder / row["image"]).write_bytes(jpeg(i))
    path = folder / "catalogue.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
