"""What `benchmarks/input.py` compares the loader with: endless iterators of batches, each as its own users write it.

All of them read the same JPEG files, draw the Inception crop with the same smallest area, resize with an antialiasing
filter and hand over uint8 batches, so that only the way differs. `limit` is no rival but the floor below all of them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitscale.data.crops import sample_crop

Batches = Iterator[Any]


def pil(paths: Sequence[str], *, size: int, batch: int, min_area: float, cores: int) -> Batches:
    """torchvision's way in a loop: `RandomResizedCrop` decodes the whole image, crops it and resizes the crop."""
    rng = np.random.default_rng(0)
    stream = itertools.cycle(paths)
    while True:
        yield np.stack([_pil_crop(next(stream), size, min_area, rng) for _ in range(batch)])


def _pil_crop(path: str, size: int, min_area: float, rng: np.random.Generator) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    box = sample_crop(image.width, image.height, rng, min_area)
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


def torch_loader(
    paths: Sequence[str], *, size: int, batch: int, min_area: float, cores: int
) -> Batches:
    """The same in `torch.utils.data.DataLoader`, with a worker process for each core."""
    import torch

    rng = np.random.default_rng(0)

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            # PIL's array is read-only, which torch warns of.
            return torch.from_numpy(_pil_crop(paths[index], size, min_area, rng).copy())

    loader: Any = torch.utils.data.DataLoader(
        Photos(),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
    )
    while True:
        yield from loader


def tf_data(
    paths: Sequence[str],
    *,
    size: int,
    batch: int,
    min_area: float,
    cores: int,
    antialias: bool = True,
) -> Batches:
    """big_vision's way: the crop is chosen from the header, fused into decoding, then resized.

    Threads as big_vision sets them: many of them, each operation on one.
    """
    import tensorflow as tf

    def crop(path: tf.Tensor) -> tf.Tensor:
        data = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(min_area, 1.0),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (size, size), antialias=antialias), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 48
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = False
    names = tf.data.Dataset.from_tensor_slices(list(paths)).repeat()
    decoded = names.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
    batches = decoded.batch(batch, drop_remainder=True).prefetch(2).with_options(options)
    return batches.as_numpy_iterator()


def tf_data_aliased(paths: Sequence[str], **settings: Any) -> Batches:
    """The same without the antialiasing filter: faster, and not the same pixels."""
    return tf_data(paths, **settings, antialias=False)


# Constants of turbojpeg.h, version 3.
DECOMPRESS, RGB = 1, 0
SUBSAMPLING, WIDTH, HEIGHT = 4, 5, 6
FAST_UPSAMPLE, FAST_DCT = 9, 10
MCU_WIDTH = {
    0: 8,
    1: 16,
    2: 16,
    3: 8,
    4: 8,
    5: 32,
    6: 8,
}  # of TJSAMP_*: pixels of one block of all channels


class Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class Scale(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("num", "denom")]


def limit(
    paths: Sequence[str],
    *,
    size: int,
    batch: int,
    min_area: float,
    cores: int,
    fast: bool = False,
) -> Batches:
    """libjpeg-turbo's crop-decode of files held in memory, with nothing before or after it: yields one number a batch.

    Boxes are drawn beforehand; rows and columns outside the box's blocks are skipped, and the DCT scale is 1/2 where
    the box stays as large as the result. fast: the less exact upsampling and inverse DCT.
    """
    turbo = _turbo()
    handle = turbo.tj3Init(DECOMPRESS)
    for parameter in (FAST_UPSAMPLE, FAST_DCT):
        turbo.tj3Set(handle, parameter, int(fast))
    rng = np.random.default_rng(0)
    plans = [_plan(turbo, handle, Path(path).read_bytes(), rng, size, min_area) for path in paths]
    room = max(region.w * region.h * 3 for _, _, region in plans)
    out = np.empty(room, np.uint8)
    for count in itertools.count(1):
        data, scale, region = plans[count % len(plans)]
        turbo.tj3DecompressHeader(handle, data, len(data))
        turbo.tj3SetScalingFactor(handle, scale)
        turbo.tj3SetCroppingRegion(handle, region)
        if turbo.tj3Decompress8(handle, data, len(data), out.ctypes.data, region.w * 3, RGB):
            raise RuntimeError(turbo.tj3GetErrorStr(handle).decode())
        if count % batch == 0:
            yield batch


def limit_fast(paths: Sequence[str], **settings: Any) -> Batches:
    return limit(paths, **settings, fast=True)


def _plan(
    turbo: ctypes.CDLL,
    handle: int,
    data: bytes,
    rng: np.random.Generator,
    size: int,
    min_area: float,
) -> tuple[bytes, Scale, Region]:
    turbo.tj3DecompressHeader(handle, data, len(data))
    width, height = turbo.tj3Get(handle, WIDTH), turbo.tj3Get(handle, HEIGHT)
    left, upper, right, lower = sample_crop(width, height, rng, min_area)
    shrink = 2 if min(right - left, lower - upper) >= 2 * size else 1
    block = max(MCU_WIDTH[turbo.tj3Get(handle, SUBSAMPLING)] // shrink, 1)
    x = int(left) // shrink // block * block  # decoding starts at a whole block
    y = int(upper) // shrink
    columns = min(-(-int(right) // shrink), -(-width // shrink)) - x
    rows = min(-(-int(lower) // shrink), -(-height // shrink)) - y
    return data, Scale(1, shrink), Region(x, y, columns, rows)


def _turbo() -> ctypes.CDLL:
    """The library that the `turbojpeg` wheel ships, bound apart from ours: the limit must not share its mistakes."""
    files = importlib.metadata.files("turbojpeg") or ()
    library = next(file for file in files if "turbojpeg.libs" in file.parts)
    turbo = ctypes.CDLL(str(library.locate()))
    handle, size = ctypes.c_void_p, ctypes.c_size_t
    turbo.tj3Init.restype = handle
    turbo.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
    turbo.tj3Get.argtypes = [handle, ctypes.c_int]
    turbo.tj3Set.argtypes = [handle, ctypes.c_int, ctypes.c_int]
    turbo.tj3SetScalingFactor.argtypes = [handle, Scale]
    turbo.tj3SetCroppingRegion.argtypes = [handle, Region]
    turbo.tj3Decompress8.argtypes = [
        handle,
        ctypes.c_char_p,
        size,
        handle,
        ctypes.c_int,
        ctypes.c_int,
    ]
    turbo.tj3GetErrorStr.argtypes = [handle]
    turbo.tj3GetErrorStr.restype = ctypes.c_char_p
    return turbo
