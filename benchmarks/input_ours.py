"""Our own pipelines for `benchmarks/input.py`: the whole loader, the same without its parts, and where time goes."""

from __future__ import annotations

import collections
import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitscale.config import DataConfig, MeshConfig, SourceConfig
from vitscale.data import batches, decode, jpeg, records
from vitscale.data.batches import BatchSpec, TrainBatches
from vitscale.data.loader import TrainLoader
from vitscale.data.mixture import build_mixture
from vitscale.data.records import Example, Labels
from vitscale.data.sources import Source, collect_classes, open_source
from vitscale.data.sources.array_records import ArrayRecords

CLASSES = 20
SMALL = 64  # pixels
BATCHING = "labels, batch and calls"


def write_photos(folder: Path, paths: Sequence[str]) -> None:
    """The photos as they are, in shards of a data set."""
    _write_shards(folder, [Path(path).read_bytes() for path in paths])


def write_small(folder: Path, paths: Sequence[str]) -> None:
    """Records of the size of 64-pixel PNGs."""
    images = []
    for path in paths:
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize((SMALL, SMALL)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    _write_shards(folder, images)


def _write_shards(folder: Path, images: Sequence[bytes], count: int = 4) -> None:
    folder.mkdir(parents=True)
    index = collections.defaultdict(list)
    for shard in range(count):
        part = range(shard * len(images) // count, (shard + 1) * len(images) // count)
        rows = [Example(str(i), images[i], {"label": Labels.of([i % CLASSES])}) for i in part]
        records.write_shard(folder / records.shard_name("train", shard, count), rows)
        index["id"] += [row.id for row in rows]
        index["shard"] += [shard] * len(rows)
        index["position"] += range(len(rows))
        index["sampling_weight"] += [1.0] * len(rows)
    records.write_index(folder, "train", index)
    records.write_classes(folder, {"label": [str(i) for i in range(CLASSES)]})


def loader(
    source: str,
    *,
    size: int,
    batch: int,
    min_area: float,
    cores: int,
    processes: bool,
    decodes: bool = True,
) -> TrainLoader:
    """`TrainLoader` with a worker process or a thread for each core. source: a folder of shards, or a CSV."""
    opened, config = _open(source, batch, min_area)
    return TrainLoader(
        [opened if decodes else Undecoded(opened)],
        DataConfig(
            (config,),
            global_batch_size=batch,
            crop_min_area=min_area,
            num_workers=cores if processes else 0,
            num_threads=cores,
        ),
        image_size=size,
        tasks={"label": "label"},
        seed=0,
    )


def bare(
    source: str, *, size: int, batch: int, min_area: float, cores: int, decodes: bool = True
) -> Iterator[Any]:
    """The same batches made one after another, by nobody but the caller: no Grain, no hand-over."""
    opened, _ = _open(source, batch, min_area)
    make = _make_batches(opened if decodes else Undecoded(opened), size, batch, min_area)
    image = np.empty(make.spec.image_shape, np.uint8)
    return (make(number * batch, image) for number in itertools.count())


def time_parts(source: str, size: int, batch: int, min_area: float, count: int) -> dict[str, float]:
    """Microseconds of CPU an image of each part of `bare`, in this process; `BATCHING` is what the parts leave over."""
    opened, _ = _open(source, batch, min_area)
    make = _make_batches(opened, size, batch, min_area)
    image = np.empty(make.spec.image_shape, np.uint8)
    make(0, image)
    spent: dict[str, float] = {}
    with _Stopwatches(spent) as watch:
        watch(ArrayRecords, "read", "read")
        watch(records, "parse_example", "parse")
        watch(batches, "sample_crop", "choose the crop")
        watch(batches, "draw_generator", "choose the crop")
        watch(jpeg, "read_header", "JPEG header")
        watch(jpeg, "decode_region", "decode")
        watch(decode, "resize_into", "resize")
        start = time.thread_time()
        for number in range(count):
            make((1 + number) * batch, image)
        whole = time.thread_time() - start
    spent[BATCHING] = whole - sum(spent.values())
    return {name: seconds / (count * batch) * 1e6 for name, seconds in spent.items()}


def stall(
    source: str, size: int, batch: int, min_area: float, cores: int, load: float, seconds: float
) -> dict[str, float]:
    """How long a step that wants `load` of the loader's rate waits for `DeviceFeed`, as a share of its time.

    The step sleeps, as a host does while its accelerator works; batches are put on this machine's CPU device.
    """
    import jax

    from vitscale.parallel.mesh import make_mesh
    from vitscale.train.feed import DeviceFeed, put_batch

    jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shape = {"size": size, "batch": batch, "min_area": min_area}
    with (
        loader(source, **shape, cores=cores, processes=True) as batches,
        DeviceFeed(batches, lambda made: put_batch(made, mesh)) as feed,
    ):
        free, _ = _run(feed, 0.0, seconds)  # also warms up
        free, _ = _run(feed, 0.0, seconds)
        step, waited = _run(feed, free / load, 2 * seconds)
    return {"images_per_second": batch / free, "load": free / step, "stall": waited / step}


def _run(feed: Iterator[Any], step: float, seconds: float) -> tuple[float, float]:
    """Seconds between batches, and those of them spent waiting, with steps of `step` seconds."""
    start, waited = time.perf_counter(), 0.0
    for count in itertools.count(1):
        asked = time.perf_counter()
        arrays = next(feed)
        waited += time.perf_counter() - asked
        time.sleep(step)
        del arrays
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed / count, waited / count
    raise AssertionError("the feed is endless")


class _Stopwatches:
    """Functions replaced by timed ones, for the length of a block."""

    def __init__(self, spent: dict[str, float]) -> None:
        self._spent = spent
        self._replaced: list[tuple[Any, str, Callable]] = []

    def __enter__(self) -> Callable[[Any, str, str], None]:
        return self._watch

    def _watch(self, owner: Any, attribute: str, name: str) -> None:
        function = getattr(owner, attribute)
        self._replaced.append((owner, attribute, function))
        self._spent.setdefault(name, 0.0)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._spent[name] += time.thread_time() - start

        setattr(owner, attribute, timed)

    def __exit__(self, *_: object) -> None:
        for owner, attribute, function in self._replaced:
            setattr(owner, attribute, function)


class Undecoded:
    """A source whose process does not decode: what is left is everything around decoding.

    A worker process unpickles its sources, and stops decoding there, too.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        decode.decode_into = lambda *_: None  # type: ignore[assignment]

    def __reduce__(self) -> tuple:
        return Undecoded, (self._source,)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _open(source: str, batch: int, min_area: float) -> tuple[Source, SourceConfig]:
    path = Path(source)
    config = (
        SourceConfig("csv", str(path), split="train", fields=("label",))
        if path.suffix == ".csv"
        else SourceConfig("shards", str(path), split="train")
    )
    return open_source(config, ".", collect_classes([config], ".")), config


def _make_batches(source: Source, size: int, batch: int, min_area: float) -> TrainBatches:
    config = DataConfig((SourceConfig("shards", ""),), crop_min_area=min_area)
    mixture = build_mixture([len(source)], config, seed=0, sampling_weights=[None])
    spec = BatchSpec(
        batch,
        size,
        size,
        config.max_labels,
        config.max_image_pixels,
        ("label",),
        tasks={"label": "label"},
        source_tasks=((),),
    )
    return TrainBatches((source,), mixture, spec, 0, 0, min_area)
