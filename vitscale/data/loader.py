"""Batches for the trainer and for evaluation, on Grain: read, decode and batch a whole batch in one
call of one thread.

A training batch is a pure function of (seed, batch number): the same for any number of threads or
hosts and after a resume. The saved position is one number. One call a batch, because per-element
Python overhead in the pipeline costs more than small images do (FINDINGS 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, UInt8, UInt32
from PIL.Image import Image

from vitscale.config import DataConfig
from vitscale.data import decode
from vitscale.data.mixture import build_mixture
from vitscale.data.records import Labels
from vitscale.data.sources import Source
from vitscale.errors import UserError

ENDLESS = 2**48  # batches; Grain wants a length
POSITIONS = 2**32  # draw numbers wrap here: a key of the augmentation, not an address


@dataclass(frozen=True)
class Batch:
    """B examples, with the arrays of the device and what the host needs to name them."""

    ids: list[str]  # "" where padded
    # False: padding, or an image that cannot be decoded (its row is then zeros without labels).
    valid: Bool[np.ndarray, " B"]
    image: UInt8[np.ndarray, "B H W 3"]
    # Global number of the draw; in evaluation the row of the source.
    position: UInt32[np.ndarray, " B"]
    labels: dict[str, Int[np.ndarray, "B K"]]  # int32, padded with -1
    # float32, 0 where padded; a row of zeros: not labelled for this field.
    weights: dict[str, Float[np.ndarray, "B K"]]
    source: Int[np.ndarray, " B"]  # int32: which source each row came from, -1 where padded
    rejects: dict[str, str] = field(default_factory=dict)  # id -> reason, of the rows that failed

    def arrays(self) -> dict[str, Any]:
        """The pytree for the device: every leaf has the batch as its first axis."""
        return {
            "image": self.image,
            "position": self.position,
            "labels": self.labels,
            "weights": self.weights,
            "valid": self.valid,
        }


class TrainLoader:
    """An endless iterator over this process's rows of the global batches.

    Process p of n has rows p, p + n, p + 2n, ... of every global batch. `rejects` (id -> reason)
    and `drawn` (source name -> draws) count what this process has handed out. Raises `UserError`
    once more than `max_reject_fraction` of the examples cannot be decoded.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: DataConfig,
        *,
        image_size: decode.Size,
        fields: Sequence[str],
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        start: Mapping[str, int] | None = None,
    ) -> None:
        """Args:
        sources: opened sources, in the order of `config.sources` (whose mixture weights are used).
        config: sizes, crops, threads and limits.
        image_size: of the images in pixels: a side, or (height, width).
        fields: label fields of the batches; a source that lacks one gives rows without labels.
        seed: of the order and of the crops, 0 .. 2**32 - 1.
        process_index: this process, of `process_count` that share the global batch.
        process_count: must divide `config.global_batch_size`.
        start: state to continue from (`get_state`); None: the beginning.
        """
        _check(sources, config, seed, process_count)
        self.rejects: dict[str, str] = {}
        self.drawn: Counter[str] = Counter({source.name: 0 for source in sources})
        self._sources = list(sources)
        self._reject_limit = config.max_reject_fraction * sum(len(source) for source in sources)
        self._next_batch = 0
        # Contiguous, so that the assembled global array has one order for any number of hosts.
        share = config.global_batch_size // process_count
        rows = range(process_index * share, (process_index + 1) * share)
        spec = BatchSpec(
            len(rows), image_size, tuple(fields), config.max_labels, config.max_image_pixels
        )
        make_batch = _train_batches(self._sources, config, spec, rows, seed)
        self._iterator = _prefetched(
            make_batch, ENDLESS, config.num_threads, config.prefetch_batches
        )
        if start is not None:
            self.set_state(start)

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._next_batch += 1
        for number, count in zip(*np.unique(batch.source, return_counts=True), strict=True):
            self.drawn[self._sources[number].name] += int(count)
        self.rejects.update(batch.rejects)
        _check_rejects(self.rejects, self._reject_limit, sum(map(len, self._sources)))
        return batch

    def get_state(self) -> dict[str, int]:
        """The number of the next batch to hand out: the same on every process, blind to what is
        prefetched."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues as if `state["next_batch"]` batches had been handed out."""
        self._iterator.set_state({"next_index": state["next_batch"]})
        self._next_batch = state["next_batch"]

    def close(self) -> None:
        """Stops the threads; each ends after the batch it is working on."""
        self._iterator.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: decode.Size,
    fields: Sequence[str],
    max_labels: int,
    max_image_pixels: int,
    max_reject_fraction: float,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The whole source once, in order, images squashed to `image_size`; the last batch is padded,
    never dropped. Of several processes each has its contiguous share of every batch of `batch_size` rows.

    A row that is padding or whose image cannot be decoded has `valid` False. Raises `UserError`
    once more than `max_reject_fraction` of the source cannot be decoded.
    """

    share = batch_size // process_count
    spec = BatchSpec(share, image_size, tuple(fields), max_labels, max_image_pixels)

    def make_batch(number: int) -> Batch:
        first = number * batch_size + process_index * share
        indices = range(first, min(first + share, len(source)))
        rows = [Row(0, index, index) for index in indices]
        return assemble([source], rows, spec, lambda image, _: decode.resize(image, image_size))

    rejects: dict[str, str] = {}
    iterator = _prefetched(make_batch, -(-len(source) // batch_size), num_threads, 2 * num_threads)
    try:
        for batch in iterator:
            rejects.update(batch.rejects)
            _check_rejects(rejects, max_reject_fraction * len(source), len(source))
            yield batch
    finally:
        iterator.close()


@dataclass(frozen=True)
class BatchSpec:
    """The static shape of a batch, and the limit on what is decoded."""

    size: int  # rows
    image_size: decode.Size  # pixels
    fields: tuple[str, ...]
    max_labels: int
    max_pixels: int


@dataclass(frozen=True)
class Row:
    """What one row of a batch is to hold."""

    source: int
    index: int  # of the example in the source
    position: int  # global draw number


def assemble(
    sources: Sequence[Source],
    rows: Sequence[Row],
    spec: BatchSpec,
    to_pixels: Callable[[Image, int], UInt8[np.ndarray, "H W 3"]],
) -> Batch:
    """Reads and decodes `rows` into one batch; `to_pixels(undecoded image, position)` makes the
    pixels.

    Rows beyond `rows`, and rows whose image fails, stay zeros without labels.
    """
    shape = (spec.size, *decode.as_pair(spec.image_size), 3)
    batch = Batch(
        ids=[""] * spec.size,
        valid=np.zeros(spec.size, bool),
        image=np.zeros(shape, np.uint8),
        position=np.zeros(spec.size, np.uint32),
        labels={name: np.full((spec.size, spec.max_labels), -1, np.int32) for name in spec.fields},
        weights={name: np.zeros((spec.size, spec.max_labels), np.float32) for name in spec.fields},
        source=np.full(spec.size, -1, np.int32),
    )
    for i, row in enumerate(rows):
        source = sources[row.source]
        batch.source[i], batch.position[i] = row.source, row.position % POSITIONS
        batch.ids[i] = source.example_id(row.index)
        try:
            example = source[row.index]
            image = decode.open_header(example.image, spec.max_pixels)
            batch.image[i] = to_pixels(image, row.position)
        except decode.ImageError as error:
            batch.rejects[batch.ids[i]] = error.reason
            continue
        batch.valid[i] = True
        for name in spec.fields:
            if name in example.labels:
                _put_labels(batch.labels[name][i], batch.weights[name][i], example.labels[name])
    return batch


def _put_labels(
    ids: Int[np.ndarray, " K"], weights: Float[np.ndarray, " K"], labels: Labels
) -> None:
    """Writes the K best-weighted labels, best first; equal weights keep their order."""
    count = min(len(labels.ids), len(ids))
    if len(labels.ids) > 1:
        best = np.argsort(-labels.weights, kind="stable")[:count]
        ids[:count], weights[:count] = labels.ids[best], labels.weights[best]
    elif count:
        ids[0], weights[0] = labels.ids[0], labels.weights[0]


def _train_batches(
    sources: Sequence[Source], config: DataConfig, spec: BatchSpec, rows: range, seed: int
) -> Callable[[int], Batch]:
    """The pure function from a batch number to the rows `rows` of that global batch."""
    mixture = build_mixture(
        [len(source) for source in sources],
        seed=seed,
        weights=[source.weight for source in config.sources],
        sampling_weights=[source.sampling_weights for source in sources],
    )

    def crop(image: Image, draw: int) -> UInt8[np.ndarray, "H W 3"]:
        if config.crop == "resize":
            return decode.resize(image, spec.image_size)
        rng = decode.draw_generator(seed, draw)
        return decode.random_resized_crop(image, spec.image_size, rng, config.crop_min_area)

    def make_batch(number: int) -> Batch:
        draws = [number * config.global_batch_size + row for row in rows]
        return assemble(sources, [Row(*mixture[draw], draw) for draw in draws], spec, crop)

    return make_batch


def _prefetched(
    make_batch: Callable[[int], Batch], count: int, num_threads: int, buffer_size: int
) -> grain.DatasetIterator[Batch]:
    """Grain's iterator over `make_batch(0 .. count - 1)`, in order, made by `num_threads`
    threads."""
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, also outside of absl apps
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size)
    return iter(grain.MapDataset.range(count).map(make_batch).to_iter_dataset(options))


def _check_rejects(rejects: Mapping[str, str], limit: float, size: int) -> None:
    if len(rejects) <= limit:
        return
    reasons = Counter(rejects.values())
    example, reason = next(iter(rejects.items()))
    raise UserError(
        f"{len(rejects)} of {size} images cannot be used, more than max_reject_fraction allows "
        f"({limit:g}): {', '.join(f'{n} {name}' for name, n in reasons.most_common())}; "
        f"for example {example!r} ({reason})."
    )


def _check(sources: Sequence[Source], config: DataConfig, seed: int, process_count: int) -> None:
    if len(sources) != len(config.sources):
        raise ValueError(f"{len(sources)} sources opened for {len(config.sources)} in the config")
    if config.global_batch_size % process_count:
        raise UserError(
            f"data.global_batch_size={config.global_batch_size} does not divide by "
            f"{process_count} processes."
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must lie between 0 and 2**32 - 1.")
