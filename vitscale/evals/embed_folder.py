"""`vitscale embed`: a source of any size as a folder of parts, each written whole or not at all.

Rows are cut into parts of one size; part i of n is process i mod p's. A part that is there is not done again, so that
a killed run goes on where it was, with any number of processes. The manifest, written first, says of what: another
checkpoint, source or form is an error, since the parts would not belong together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscale.config import SourceConfig
from vitscale.config_loading import to_json
from vitscale.data.batches import Reject
from vitscale.data.rejects import RejectLimit
from vitscale.errors import UserError
from vitscale.evals.embed import (
    REJECTS_SCHEMA,
    Embedder,
    EmbedOptions,
    Progress,
    check_width,
    choose_embedding,
    first_entries,
    output_dim,
)
from vitscale.evals.embedding_files import (
    MANIFEST_FILE,
    REJECTS_FILE,
    EmbeddingWriter,
    Stored,
    part_name,
    read_manifest,
    read_part_rejects,
    write_parquet,
)
from vitscale.evals.gather import gather_json, wait_for_others

if TYPE_CHECKING:
    from vitscale.data.sources import Source
    from vitscale.models.weights import LoadedModel

log = logging.getLogger(__name__)

# What must be the same for parts to belong together -> how the error calls it.
IDENTITY = {
    "parameters": "checkpoint",
    "compute_dtype": "compute dtype",
    "embedding": "embedding",
    "dim": "width",
    "dtype": "dtype",
    "source": "source",
    "content": "content of the source",
    "examples": "number of examples",
    "rows_per_part": "rows per part",
}


@dataclass(frozen=True)
class FolderOptions:
    """What is written. None of it depends on how many devices or processes there are."""

    embedding: str = "auto"
    width: int | None = None  # the first entries only, normalised again
    stored: Stored = "float32"
    rows_per_part: int = 100_000
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.rows_per_part < 1:
            raise UserError(f"--rows-per-part={self.rows_per_part} must be at least 1.")


def embed_folder(
    model: LoadedModel,
    source: Source,
    config: SourceConfig,
    folder: Path,
    options: FolderOptions,
    reading: EmbedOptions,
    progress: Progress = lambda done, total: None,
) -> tuple[dict[str, Any], int]:
    """Writes what is missing of the folder (see `embedding_files`).

    Returns its manifest, and how many images were read for it now, by all processes: 0 of a folder that was complete.
    `config`: what `source` was opened with. `progress` hears of this process's rows. With several
    processes all of them call this, with one folder that all of them see. Raises `UserError` for a folder of
    something else, and when more images than allowed cannot be read.
    """
    manifest = describe(model, source, config, options)
    before = _prepared(folder, manifest, options.overwrite) if jax.process_index() == 0 else {}
    wait_for_others("prepared")
    embedder = Embedder(model, [manifest["embedding"]], options=reading)
    limit = RejectLimit(reading.max_reject_fraction, len(source))
    todo, done = _own_parts(folder, manifest, source, limit)
    if manifest["parts"] < jax.process_count() and jax.process_index() == 0:
        log.warning(
            "%d parts for %d processes: lower --rows-per-part, so that each of them has work",
            manifest["parts"],
            jax.process_count(),
        )
    total = done + sum(map(len, todo.values()))
    progress(done, total)
    if todo:
        embedder.compile()
    began, before_now = time.perf_counter(), done
    for path, rows in todo.items():
        for images in _write_part(embedder, source, path, rows, manifest, limit):
            progress(done + images, total)
        done += len(rows)
    own: dict[str, Any] = {
        "images": done - before_now,
        "seconds": time.perf_counter() - began,
    }
    wait_for_others("embedded")
    runs = gather_json(own) if jax.process_count() > 1 else [own]
    if jax.process_index() > 0:
        return manifest, own["images"]
    images = sum(run["images"] for run in runs)
    seconds = max(run["seconds"] for run in runs)
    rate = embedder.facts(images, seconds, len(runs)) if images else before.get("rate")
    return _finished(folder, manifest, source, reading, rate), images


def _own_parts(
    folder: Path, manifest: Mapping[str, Any], source: Source, limit: RejectLimit
) -> tuple[dict[Path, range], int]:
    """The parts that this process has yet to write, with their rows, and how many rows its written ones have."""
    todo: dict[Path, range] = {}
    done = 0
    for number in range(jax.process_index(), manifest["parts"], jax.process_count()):
        rows = _rows_of(number, manifest)
        path = folder / part_name(number, manifest["parts"])
        rejects = read_part_rejects(path)
        if rejects is None:
            todo[path] = rows
        else:
            _count(limit, rejects, source)
            done += len(rows)
    return todo, done


def describe(
    model: LoadedModel, source: Source, config: SourceConfig, options: FolderOptions
) -> dict[str, Any]:
    """The manifest of an unfinished folder."""
    embedding = choose_embedding(options.embedding, model)
    if options.width is not None:
        check_width(model, embedding, options.width)
    return {
        "checkpoint": str(model.path.absolute()),
        "step": model.step,
        "parameters": digest_parameters(model),
        "compute_dtype": model.model.compute_dtype,
        "embedding": embedding,
        "dim": options.width or output_dim(model, embedding),
        "dtype": options.stored,
        "source": json.loads(to_json(config)),
        "content": hashlib.sha256(repr(source.content[1]).encode()).hexdigest(),
        "examples": len(source),
        "rows_per_part": options.rows_per_part,
        "parts": max(1, -(-len(source) // options.rows_per_part)),
        "complete": False,
    }


def digest_parameters(model: LoadedModel) -> str:
    """Of the names and values of all parameters: two checkpoints with one digest give the same vectors."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(model.params):
        value = np.ascontiguousarray(model.params[name])
        digest.update(f"{name} {value.shape} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _prepared(folder: Path, manifest: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """Leaves the folder with this manifest and no part of anything else; returns the manifest that was there.

    Raises `UserError`, and touches nothing, where the folder is of something else.
    """
    found = _own_manifest(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(folder.glob("embeddings-*-of-*.parquet"))
    if overwrite:
        # The manifest first: without one, what is left is of nothing.
        temporary = [folder / f"{name}.tmp" for name in (MANIFEST_FILE, REJECTS_FILE)]
        temporary += folder.glob("embeddings-*-of-*.parquet.tmp")  # of a run that was killed
        for path in (folder / MANIFEST_FILE, folder / REJECTS_FILE, *parts, *temporary):
            path.unlink(missing_ok=True)
        found = {}
    elif found:
        different = [word for key, word in IDENTITY.items() if found[key] != manifest[key]]
        if different:
            raise UserError(
                f"{folder} holds embeddings with another {', '.join(different)} (of {found.get('checkpoint')} at step "
                f"{found.get('step')}); take another --output, or --overwrite."
            )
    elif parts:
        raise UserError(
            f"{folder} holds parts of embeddings without a manifest.json; take another --output, or --overwrite."
        )
    if not found.get("complete"):
        _write_json(folder / MANIFEST_FILE, manifest)
    return found


def _own_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of embeddings; {} of one that is new, empty, or has lost its manifest."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder.")
    if (folder / MANIFEST_FILE).is_file():
        found = read_manifest(folder)
        if not IDENTITY.keys() <= found.keys():
            raise UserError(
                f"{folder / MANIFEST_FILE} is not a manifest of embeddings; take another --output."
            )
        return found
    ours = ("embeddings-*-of-*.parquet", "embeddings-*-of-*.parquet.tmp", f"{MANIFEST_FILE}.tmp")
    others = {path.name for path in folder.iterdir() if not any(map(path.match, ours))}
    if any(folder.glob(ours[0])):
        others.discard(REJECTS_FILE)  # which an evaluation has too
    if others:
        raise UserError(
            f"{folder} holds other things ({min(others)}) and no {MANIFEST_FILE} of embeddings; take another --output."
        )
    return {}


def _write_part(
    embedder: Embedder,
    source: Source,
    path: Path,
    rows: range,
    manifest: Mapping[str, Any],
    limit: RejectLimit,
) -> Iterator[int]:
    """Writes one part; yields how many of its rows are done."""
    name, dim = manifest["embedding"], manifest["dim"]
    rejects: dict[str, str] = {}
    images = 0
    metadata = {"vitscale.step": str(manifest["step"])}
    with EmbeddingWriter(path, dim, manifest["dtype"], metadata) as writer:
        for batch in embedder.batches(source, [name], rows=rows, limit=limit):
            vectors = batch.outputs[name]
            if vectors.shape[1] != dim:
                vectors = first_entries(vectors, dim, name)
            writer.add(batch.ids, vectors)
            rejects |= batch.rejects
            images += len(batch) + len(batch.rejects)
            yield images
        writer.close(rejects)


def _finished(
    folder: Path,
    manifest: Mapping[str, Any],
    source: Source,
    reading: EmbedOptions,
    rate: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Checks that all is there, writes rejects.parquet and, last, the complete manifest."""
    limit = RejectLimit(reading.max_reject_fraction, len(source))
    rejects: dict[str, str] = {}
    count = 0
    for number in range(manifest["parts"]):
        path = folder / part_name(number, manifest["parts"])
        found = read_part_rejects(path)
        if found is None:
            raise UserError(
                f"{path} of another process is not there: all processes must see one --output folder."
            )
        _count(limit, found, source)
        rejects |= found
        count += pq.read_metadata(path).num_rows
    if not count:
        raise UserError(f"none of the images of {source.name} can be read.")
    stage = f"embed {source.name}"
    rows = [{"id": name, "stage": stage, "reason": reason} for name, reason in rejects.items()]
    write_parquet(folder / REJECTS_FILE, pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA))
    complete = {
        **manifest,
        "complete": True,
        "count": count,
        "rejects": dict(Counter(rejects.values())),
        "rate": dict(rate) if rate else None,
    }
    _write_json(folder / MANIFEST_FILE, complete)
    return complete


def _rows_of(number: int, manifest: Mapping[str, Any]) -> range:
    first = number * manifest["rows_per_part"]
    return range(first, min(first + manifest["rows_per_part"], manifest["examples"]))


def _count(limit: RejectLimit, rejects: Mapping[str, str], source: Source) -> None:
    limit.add([Reject(name, source.name, reason) for name, reason in rejects.items()], 0)


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(tree, indent=2) + "\n")
    temporary.rename(path)
