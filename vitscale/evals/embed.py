"""From a model and a source to arrays: every example once, on all local devices, joined by id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from vitscale.config import EvalConfig
from vitscale.errors import UserError
from vitscale.evals.metrics import PAD

if TYPE_CHECKING:
    from vitscale.data.loader import Batch
    from vitscale.data.sources import Source
    from vitscale.models.weights import LoadedModel

POOLED = "pooled"  # the output that is the bare backbone
MAX_LABELS = 64  # kept per example and field: an evaluation must not cut label lists short

Progress = Callable[[int, int], None]  # (examples done, examples in all)


@dataclass(frozen=True)
class EmbedOptions:
    """How images are read and batched; none of it changes a result."""

    batch_size: int = 256  # over all local devices; rounded up to a multiple of them
    num_threads: int = 2
    max_reject_fraction: float = 0.0
    max_image_pixels: int = 50_000_000

    @staticmethod
    def of(config: EvalConfig) -> EmbedOptions:
        return EmbedOptions(
            batch_size=config.batch_size,
            num_threads=config.num_threads,
            max_reject_fraction=config.max_reject_fraction,
            max_image_pixels=config.max_image_pixels,
        )


@dataclass(frozen=True)
class Embedded:
    """What a model says about a source. Row i of every array belongs to `ids[i]`."""

    ids: list[str]
    outputs: dict[str, Float[np.ndarray, "N D"]]  # float32
    labels: dict[str, Int[np.ndarray, "N K"]]  # label ids, padded with -1
    rejects: dict[str, str] = field(default_factory=dict)  # id -> reason, of undecodable images

    def __len__(self) -> int:
        return len(self.ids)


def embed_source(
    model: LoadedModel,
    source: Source,
    outputs: Sequence[str],
    *,
    fields: Sequence[str] = (),
    options: EmbedOptions | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Runs `model` over `source`; keeps the named `outputs` ("pooled" or tasks) and label `fields`.

    Batches are split over `devices` (default: all local ones) and padded to one size, so there is
    one compilation, and the padding is dropped: the same result on any number of devices.
    """
    from vitscale.data.loader import eval_batches

    options = options or EmbedOptions()
    check_outputs(model, outputs)
    devices = list(devices or jax.local_devices())
    apply, image_sharding = compile_apply(model, outputs, devices)
    params = jax.device_put(model.params, NamedSharding(image_sharding.mesh, PartitionSpec()))
    collected = _Collected()
    for batch in eval_batches(
        source,
        batch_size=-(-options.batch_size // len(devices)) * len(devices),
        image_size=model.config.model.image_size,
        fields=tuple(fields),
        max_labels=MAX_LABELS,
        max_image_pixels=options.max_image_pixels,
        max_reject_fraction=options.max_reject_fraction,
        num_threads=options.num_threads,
    ):
        result = apply(params, jax.device_put(batch.image, image_sharding))
        # Fetched one batch late, so that the host decodes while the devices compute.
        collected.add(batch, result)
        if progress is not None:
            progress(collected.count, len(source))
    return collected.finish(outputs, fields, source.name)


def compile_apply(
    model: LoadedModel, outputs: Sequence[str], devices: Sequence[jax.Device]
) -> tuple[Callable[[Any, Array], dict[str, Array]], NamedSharding]:
    """The jitted forward pass for some outputs, and how its images lie on the devices."""
    names = tuple(outputs)
    mesh = Mesh(np.asarray(devices), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))

    # Picking inside jit lets XLA drop the heads that nobody asked for.
    def chosen(params: Any, images: Array) -> dict[str, Array]:
        result = model.apply(params, images)
        return {name: result[name] for name in names}

    return jax.jit(chosen, out_shardings=split), split


def check_outputs(model: LoadedModel, outputs: Sequence[str]) -> None:
    """Raises `UserError` when the model has no such output."""
    known = [POOLED, *(task.name for task in model.config.tasks)]
    for name in outputs:
        if name not in known:
            raise UserError(
                f"the model has no output {name!r}; it has {', '.join(known)} ({model.path})."
            )


class _Collected:
    """Valid rows of the batches so far; the newest batch stays on the devices until the next."""

    def __init__(self) -> None:
        self.count = 0
        self._ids: list[str] = []
        self._rejects: dict[str, str] = {}
        self._labels: list[Mapping[str, np.ndarray]] = []
        self._outputs: list[dict[str, np.ndarray]] = []
        self._pending: tuple[np.ndarray, dict[str, Array]] | None = None

    def add(self, batch: Batch, result: dict[str, Array]) -> None:
        self._fetch()
        valid = np.asarray(batch.valid, bool)
        ids = [name for name, keep in zip(batch.ids, valid, strict=True) if keep]
        self._ids.extend(ids)
        self._labels.append({name: np.asarray(v)[valid] for name, v in batch.labels.items()})
        self._pending = (valid, result)
        self._rejects |= batch.rejects
        self.count += len(ids) + len(batch.rejects)

    def _fetch(self) -> None:
        if self._pending is not None:
            valid, result = self._pending
            self._outputs.append({n: np.asarray(v, np.float32)[valid] for n, v in result.items()})
            self._pending = None

    def finish(self, outputs: Sequence[str], fields: Sequence[str], source: str) -> Embedded:
        self._fetch()
        if not self._ids:
            raise UserError(f"none of the images of {source} can be read.")
        return Embedded(
            ids=self._ids,
            outputs={n: np.concatenate([part[n] for part in self._outputs]) for n in outputs},
            labels={n: _trimmed([part[n] for part in self._labels]) for n in fields},
            rejects=self._rejects,
        )


def _trimmed(parts: list[Int[np.ndarray, "n K"]]) -> Int[np.ndarray, "N k"]:
    """Without the columns that pad every row: relevance compares all pairs of columns."""
    labels = np.concatenate(parts)
    used = (labels != PAD).any(axis=0)
    width = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 1
    return labels[:, :width]


def write_embeddings(
    path: Path, ids: Sequence[str], vectors: Float[np.ndarray, "N D"], *, step: int | None = None
) -> None:
    """Writes Parquet of `id` and `vector` (fixed-size list of float32), temporary name first.

    `step`, where given, goes into the file's metadata: which checkpoint the vectors come from.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    flat = pa.array(vectors.reshape(-1), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pa.table({"id": pa.array(list(ids), pa.string()), "vector": column})
    if step is not None:
        table = table.replace_schema_metadata({"vitscale.step": str(step)})
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    temporary.rename(path)


def read_embeddings(path: Path) -> tuple[list[str], Float[np.ndarray, "N D"]]:
    """The inverse of `write_embeddings`."""
    if not path.is_file():
        raise UserError(f"there is no file of embeddings at {path}.")
    table = pq.read_table(path, columns=["id", "vector"])
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return table["id"].to_pylist(), vectors
