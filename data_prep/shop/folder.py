"""Writes the folder of a generated catalogue, row by row, so that its size does not matter."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.shop.words import synonyms
from vitscale.errors import UserError

TRUTH_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("product", pa.string()), ("type", pa.string()),
     ("colour", pa.string()), ("material", pa.string()), ("shade", pa.int32()), ("view", pa.string()),
     ("split", pa.string())]
)  # fmt: skip
SCENE_SCHEMA = pa.schema(
    [("scene_id", pa.string()), ("product", pa.string()), ("type", pa.string())]
    + [(corner, pa.float32()) for corner in ("x0", "y0", "x1", "y1")]
)
EVAL_COLUMNS = ("id", "path", "product", "type", "colour", "material", "shade")
ROW_GROUP = 10_000


def image_path(id_: str, folder: int) -> str:
    """Where an image lies, from the catalogue folder: a numbered subfolder keeps folders small."""
    kind = "scenes" if id_.startswith("s") else "products"
    return f"images/{kind}/{folder:05d}/{id_}.jpg"


def check_output(output: Path) -> None:
    """Raises `UserError` unless `output` is free to be written."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(
            f"{output} already exists and is not empty: choose another folder or delete it first."
        )


class ShopFolder:
    """The open files of a catalogue being written, in `<output>.tmp-<pid>` until `finish` renames it.

    A context manager: when the block ends without `finish`, the temporary folder is removed.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._root = output.with_name(f"{output.name}.tmp-{os.getpid()}")
        self._stack = ExitStack()
        self._counts = dict.fromkeys(
            ("images", "train", "heldout", "labelled", "matches", "scenes", "boxes"), 0
        )

    def __enter__(self) -> ShopFolder:
        shutil.rmtree(self._root, ignore_errors=True)  # left by a killed process with the same id
        (self._root / "truth").mkdir(parents=True)
        self._catalogue = self._text_file("catalogue.jsonl")
        self._scenes = self._text_file("scenes.jsonl")
        self._labelled = self._csv_file("labelled.csv", ("id", "path", "type", "colour", "shade"))
        self._matches = self._csv_file("matches.csv", ("id", "path", "product"))
        self._queries = self._csv_file("truth/queries.csv", EVAL_COLUMNS)
        self._index = self._csv_file("truth/index.csv", EVAL_COLUMNS)
        self._truth = self._stack.enter_context(
            _ParquetRows(self._root / "truth/truth.parquet", TRUTH_SCHEMA)
        )
        self._boxes = self._stack.enter_context(
            _ParquetRows(self._root / "truth/scenes.parquet", SCENE_SCHEMA)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def add(self, image: dict[str, Any]) -> None:
        """Writes one image or scene of `shop.render_product` / `shop.render_scene` and all its rows."""
        path = self._root / image["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image["jpeg"])
        if image["kind"] == "scene":
            self._scenes.write(_json_line({"id": image["id"], "image": image["path"]}))
            for row in image["boxes"]:
                self._boxes.add(row)
            self._counts["scenes"] += 1
            self._counts["boxes"] += len(image["boxes"])
            return
        self._add_product_image(image)

    def _add_product_image(self, image: dict[str, Any]) -> None:
        split = "heldout" if image["heldout"] else "train"
        where = {"id": image["id"], "path": image["path"]}
        truth = {**where, **image["truth"]}
        self._truth.add({**truth, "view": image["view"], "split": split})
        self._counts["images"] += 1
        self._counts[split] += 1
        if image["heldout"]:
            table = self._index if image["view"] == "catalogue" else self._queries
            table.writerow([truth[column] for column in EVAL_COLUMNS])
            return
        self._catalogue.write(
            _json_line({"id": image["id"], "image": image["path"], **image["text"]})
        )
        if image["labels"].get("row") is not None:
            self._labelled.writerow([*where.values(), *image["labels"]["row"]])
            self._counts["labelled"] += 1
        if image["labels"].get("matched"):
            self._matches.writerow([*where.values(), truth["product"]])
            self._counts["matches"] += 1

    def finish(self, config: Any) -> None:
        """Closes the files, writes `shop.json` and gives the folder its name."""
        self._stack.close()
        (self._root / "truth/synonyms.json").write_text(_pretty(synonyms()), encoding="utf-8")
        summary = {
            "seed": config.seed,
            "counts": self._counts,
            "config": dataclasses.asdict(config),
        }
        (self._root / "shop.json").write_text(_pretty(summary), encoding="utf-8")
        check_output(self._output)  # somebody may have written there meanwhile
        self._root.rename(self._output)

    def _text_file(self, name: str) -> Any:
        return self._stack.enter_context(
            (self._root / name).open("w", encoding="utf-8", newline="")
        )

    def _csv_file(self, name: str, columns: tuple[str, ...]) -> Any:
        writer = csv.writer(self._text_file(name), lineterminator="\n")
        writer.writerow(columns)
        return writer


class _ParquetRows:
    """A Parquet file that takes one row at a time; a context manager that writes the last ones."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema)
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> _ParquetRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
