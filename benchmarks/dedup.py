"""Near-duplicate search on real photos beside imagehash's pHash: recall of each transformation, false pairs, cost.

    python benchmarks/dedup.py --images ../shared/data/clothing [--copies 200] [--threshold 10] [--scale 25000 50000]

Every photo of the folder is in the corpus; of `--copies` of them, spread evenly, one copy is made by each
transformation and looked up as an evaluation set would be. Ours goes through the same keys, buckets and comparison as
`vitscale prep`; imagehash compares all pairs, so it has no misses of its own.
    recall         copies that are matched to their own original
    false_matches  copies that are matched to some other photo (which may be a true near copy)
    false_pairs    pairs of different photos of the corpus that count as copies, each listed with --show
Scale: random hashes through the keys and buckets, processor time and comparisons an image at several sizes.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image, ImageEnhance

from data_prep import lsh
from data_prep.fingerprint import CODE_BYTES, num_views, similar, thumbnail
from data_prep.images import sign
from data_prep.schema_images import DedupConfig

Change = Callable[[Image.Image], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resize(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)))


def crop(image: Image.Image, side: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    width, height = image.width * side, image.height * side
    left, top = (image.width - width) * x, (image.height - height) * y
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


CHANGES: dict[str, Change] = {
    "none": lambda i: i,
    "jpeg quality 30": lambda i: jpeg(i, 30),
    "half size": lambda i: resize(i, 0.5),
    "third size": lambda i: resize(i, 1 / 3),
    "brightness 0.7": lambda i: ImageEnhance.Brightness(i).enhance(0.7),
    "brightness 1.3": lambda i: ImageEnhance.Brightness(i).enhance(1.3),
    "contrast 0.7": lambda i: ImageEnhance.Contrast(i).enhance(0.7),
    "centre crop 0.98": lambda i: crop(i, 0.98),
    "centre crop 0.95": lambda i: crop(i, 0.95),
    "centre crop 0.92": lambda i: crop(i, 0.92),
    "centre crop 0.90": lambda i: crop(i, 0.9),
    "corner crop 0.95": lambda i: crop(i, 0.95, 0.0, 1.0),
    "corner crop 0.90": lambda i: crop(i, 0.9, 1.0, 0.0),
    "off-centre crop 0.93": lambda i: crop(i, 0.93, 0.3, 0.6),
    "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "grey": lambda i: i.convert("L").convert("RGB"),
}


def signatures(
    images: Iterable[tuple[str, Image.Image]], config: DedupConfig, place: int
) -> pa.Table:
    rows = [sign(name, b"", thumbnail(image), config.crops, place) for name, image in images]
    return pa.Table.from_pylist(rows, schema=lsh.SIGNATURES_SCHEMA)


def keys_per_image(config: DedupConfig) -> int:
    return 2**config.weak_bits + num_views(config.crops) - 1


def our_pairs(table: pa.Table, config: DedupConfig) -> list[tuple[str, int, str]]:
    batch = table.combine_chunks().to_batches()[0]
    width = lsh.key_bits(config, keys_per_image(config) * len(batch))
    filed = [lsh.file_near(batch, band, width, config) for band in range(config.bands)]
    alike = partial(similar, max_distance=config.max_distance)
    pairs, _ = lsh.find_pairs(pa.Table.from_batches(filed), alike, config.window)
    return [tuple(row.values()) for row in pairs.to_pylist()]


def unpack(hashes: list[imagehash.ImageHash]) -> np.ndarray:
    return np.packbits(np.stack([h.hash.ravel() for h in hashes]), axis=1)


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.bitwise_count(left[:, None] ^ right[None]).sum(-1, dtype=np.int64)


def scale_rows(size: int, config: DedupConfig) -> dict[str, float]:
    """Seconds and comparisons an image for random hashes, with a copy of each tenth."""
    generator = np.random.default_rng(size)
    codes = np.zeros((size, num_views(config.crops), CODE_BYTES), np.uint8)
    codes[..., :32] = generator.integers(0, 256, codes[..., :32].shape, np.uint8)
    codes[: size // 10] = codes[size // 10 : 2 * (size // 10)]
    margins = generator.permuted(np.tile(np.arange(256, dtype=np.uint8), (size, 1)), axis=1)
    columns = [[lsh.CORPUS] * size, [f"i{i}" for i in range(size)], [None] * size]
    columns += [
        [codes.shape[1]] * size,
        [c.tobytes() for c in codes],
        [m.tobytes() for m in margins],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, lsh.SIGNATURES_SCHEMA, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=lsh.SIGNATURES_SCHEMA)
    width = lsh.key_bits(config, keys_per_image(config) * size)
    compared = 0

    def alike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(left)
        return similar(left, right, config.max_distance)

    start = time.process_time()
    found = set()
    for band in range(config.bands):
        filed = pa.Table.from_batches([lsh.file_near(batch, band, width, config)])
        pairs, _ = lsh.find_pairs(filed, alike, config.window)
        found.update(zip(pairs["id"].to_pylist(), pairs["other"].to_pylist(), strict=True))
    seconds = time.process_time() - start
    return {
        "images": size,
        "key_bits": width,
        "microseconds_per_image": round(seconds / size * 1e6, 1),
        "comparisons_per_image": round(compared / size, 2),
        "copies_found": round(len(found) / (size // 10), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--threshold", type=int, default=10, help="bits of imagehash's 64")
    parser.add_argument("--scale", type=int, nargs="*", default=[25_000, 50_000])
    parser.add_argument("--show", action="store_true", help="list the false pairs")
    arguments = parser.parse_args()
    config = DedupConfig(find="near")
    paths = sorted(arguments.images.rglob("*.jpg"))
    names = {str(path): i for i, path in enumerate(paths)}
    chosen = paths[:: max(1, len(paths) // arguments.copies)]

    rows, hashes, ours_seconds, rival_seconds = [], [], 0.0, 0.0
    for path in paths:
        with Image.open(path) as image:
            image.load()
            start = time.process_time()
            rows.append(sign(str(path), b"", thumbnail(image), config.crops))
            middle = time.process_time()
            hashes.append(imagehash.phash(image))
            ours_seconds += middle - start
            rival_seconds += time.process_time() - middle
    corpus = pa.Table.from_pylist(rows, schema=lsh.SIGNATURES_SCHEMA)
    theirs = unpack(hashes)
    pairs = {frozenset((a, b)) for a, _, b in our_pairs(corpus, config)}
    close = distances(theirs, theirs)[np.triu_indices(len(paths), 1)]
    print(
        json.dumps(
            {
                "benchmark": "dedup",
                "photos": len(paths),
                "false_pairs": len(pairs),
                "imagehash_false_pairs": int((close <= arguments.threshold).sum()),
                "hash_ms": round(ours_seconds / len(paths) * 1e3, 3),
                "imagehash_ms": round(rival_seconds / len(paths) * 1e3, 3),
            }
        )
    )
    for pair in sorted(map(sorted, pairs)) if arguments.show else []:
        print(*pair)
    for name, change in CHANGES.items():
        copies = [(str(path), change(Image.open(path).convert("RGB"))) for path in chosen]
        table = pa.concat_tables([corpus, signatures(copies, config, 0)])
        found = {(b, a) for a, place, b in our_pairs(table, config) if place == 0}
        near = distances(unpack([imagehash.phash(image) for _, image in copies]), theirs)
        own = np.array([names[str(path)] for path in chosen])
        hit = near <= arguments.threshold
        right = hit[np.arange(len(own)), own]
        print(
            json.dumps(
                {
                    "change": name,
                    "recall": round(
                        sum((str(p), str(p)) in found for p in chosen) / len(chosen), 4
                    ),
                    "false_matches": sum(a != b for a, b in found),
                    "imagehash_recall": round(float(right.mean()), 4),
                    "imagehash_false_matches": int(hit.sum() - right.sum()),
                }
            )
        )
    for size in arguments.scale:
        print(json.dumps(scale_rows(size, config)))


if __name__ == "__main__":
    main()
