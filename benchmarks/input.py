"""Images a second out of the whole training loader in one process: `python benchmarks/input.py`.

Two inputs: real photos (a CSV beside a folder; skipped where there is none) at 224 pixels, and
64-pixel JPEGs in ArrayRecord shards. Reading, decoding, cropping, resizing, batching and hand-over
are all included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vitscale.config import DataConfig, SourceConfig
from vitscale.data import records
from vitscale.data.loader import TrainLoader
from vitscale.data.records import Example, Labels
from vitscale.data.sources import collect_classes, open_source


def rate(source: SourceConfig, image_size: int, threads: int, seconds: float) -> float:
    """Images a second, after a warm-up of as many batches as are prefetched."""
    classes = collect_classes([source], ".")
    config = DataConfig((source,), global_batch_size=128, num_threads=threads)
    opened = open_source(source, ".", classes)
    with TrainLoader(
        [opened], config, image_size=image_size, fields=list(classes), seed=0
    ) as loader:
        for _ in range(config.prefetch_batches + threads):
            next(loader)
        start, batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(loader)
            batches += 1
        return batches * config.global_batch_size / (time.perf_counter() - start)


def write_small_jpegs(folder: Path, count: int = 2048) -> SourceConfig:
    """Shards of 64-pixel JPEGs that compress like photographs: content at every scale."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(64):
        pixels = np.zeros((64, 64, 3))
        for scale in (2, 4, 8, 16, 32):
            coarse = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            pixels += np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC)) / scale
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255 / pixels.max()).astype(np.uint8)).save(
            buffer, "JPEG", quality=85
        )
        images.append(buffer.getvalue())
    examples = [
        Example(str(i), images[i % 64], {"label": Labels.of([i % 10])}) for i in range(count)
    ]
    records.write_shard(folder / records.shard_name("train", 0, 1), examples)
    rows = {
        "id": [example.id for example in examples],
        "shard": [0] * count,
        "position": list(range(count)),
        "sampling_weight": [1.0] * count,
    }
    records.write_index(folder, "train", rows)
    records.write_classes(folder, {"label": [str(i) for i in range(10)]})
    return SourceConfig("shards", str(folder), split="train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # A working copy keeps the shared folder inside of itself, or has it as a neighbour.
    folders = [Path(name, "data/clothing") for name in ("shared", "../shared")]
    default = next((folder for folder in folders if folder.is_dir()), folders[0])
    parser.add_argument("--photos", type=Path, default=default, help="folder with images.csv")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    args = parser.parse_args()
    report: dict[str, object] = {"benchmark": "input", "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        inputs = {"jpeg_64px": (write_small_jpegs(Path(folder)), 64)}
        if (args.photos / "images.csv").is_file():
            photos = SourceConfig(
                "csv", str(args.photos / "images.csv"), split="train", fields=("label",)
            )
            inputs["photos_224px"] = (photos, 224)
        for name, (source, image_size) in inputs.items():
            for threads in args.threads:
                value = rate(source, image_size, threads, args.seconds)
                report[f"{name}/{threads}_threads"] = round(value, 1)
    report["unit"] = "images/s"
    print(json.dumps(report))


if __name__ == "__main__":
    main()
