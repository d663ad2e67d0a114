"""The built-in generated catalogue: pictures of products, the messy text around them, and the truth.

`generate_shop(ShopConfig(products=1000), Path("shop"))` writes the folder that `docs/architecture.md` describes. Every
picture and every word is a pure function of the config and of (product, view): the bytes are the same whatever the
number of worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shop.folder import ShopFolder, check_output, image_path
from data_prep.shop.products import (
    STREAM_LABELS,
    STREAM_SCENE,
    STREAM_TEXT,
    STREAM_VIEW,
    Plan,
    Product,
    make_plan,
    make_product,
    render_sprite,
    stream,
)
from data_prep.shop.scene import (
    SUPERSAMPLE,
    Box,
    PhotoConfig,
    catalogue_shot,
    encode_jpeg,
    scene_photo,
    wild_photo,
)
from data_prep.shop.text import TextConfig, write_text
from vitscale.errors import UserError

CHUNK = 16  # products (or scenes) a worker renders at a time


@dataclass(frozen=True)
class ShopConfig:
    """One generated catalogue."""

    products: int = 2000
    image_size: int = 64  # pixels, square
    seed: int = 0
    # photos of a training product on average; popular ones have many more
    wild_per_product: float = 4.0
    zipf_products: float = 0.7  # popularity falls as rank to this power: photos and clicks
    zipf_types: float = 0.7  # number of products of a type falls as rank to this power
    heldout_fraction: float = 0.2  # of the products: only in truth/queries.csv and truth/index.csv
    heldout_wild: int = 2  # photos of a held-out product
    labelled_fraction: float = 0.5  # of the training products: in labelled.csv and matches.csv
    # share of those products' images in each of the two files, drawn apart
    labelled_images: float = 0.8
    label_missing: float = 0.25  # of the cells of labelled.csv
    scenes: int = 100
    scene_size: int = 192  # pixels, square
    photo: PhotoConfig = field(default_factory=PhotoConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("products", 2),
            ("image_size", 16),
            ("scene_size", 32),
            ("scenes", 0),
            ("heldout_wild", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(
                    f"{name}={getattr(self, name)} of the shop is too small: use at least {least}."
                )
        for name in ("heldout_fraction", "labelled_fraction", "labelled_images", "label_missing"):
            _check_share(name, getattr(self, name))
        for name, value in vars(self.text).items():
            _check_share(f"text.{name}", value)
        for name in ("flip", "clutter", "other_product", "occlusion", "blur"):
            _check_share(f"photo.{name}", getattr(self.photo, name))
        if self.heldout_fraction >= 1.0:
            raise UserError("heldout_fraction=1 leaves no product to train on: use less than 1.")
        if self.wild_per_product < 0 or self.seed < 0:
            raise UserError("wild_per_product and seed of the shop must not be negative.")
        if not 0.0 < self.photo.min_scale <= self.photo.max_scale <= 1.0:
            raise UserError(
                "photo.min_scale and photo.max_scale must satisfy 0 < min_scale <= max_scale <= 1."
            )
        if not 1 <= self.photo.jpeg_quality_min <= self.photo.jpeg_quality_max <= 100:
            raise UserError("photo.jpeg_quality_min and _max must satisfy 1 <= min <= max <= 100.")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name}={value} of the shop is a share: use a number from 0 to 1.")


def shop_plan(config: ShopConfig) -> Plan:
    """Types, popularity, photo counts and splits of the config's products."""
    return make_plan(config.seed, config.products, config.wild_per_product, config.heldout_wild,
                     config.heldout_fraction, config.labelled_fraction, config.zipf_types,
                     config.zipf_products)  # fmt: skip


def shop_product(config: ShopConfig, index: int) -> Product:
    """The identity of product `index` of a catalogue."""
    return make_product(config.seed, index, int(shop_plan(config).type_index[index]))


def generate_shop(
    config: ShopConfig,
    output: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a catalogue folder. `progress(done, total)` counts images.

    The folder appears under its name only when it is complete. `workers` processes render (default: one a core); they
    are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`.
    """
    check_output(output)
    plan = shop_plan(config)
    total = config.products + int(plan.views.sum()) + config.scenes
    with ShopFolder(output) as folder:
        done = 0
        for images in _render_all(config, workers or os.cpu_count() or 1):
            for image in images:
                folder.add(image)
            done += len(images)
            if progress is not None:
                progress(done, total)
        folder.finish(config)


def _render_all(config: ShopConfig, workers: int) -> Iterator[list[dict[str, Any]]]:
    jobs = [
        (config, "products", i, min(i + CHUNK, config.products))
        for i in range(0, config.products, CHUNK)
    ]
    jobs += [
        (config, "scenes", i, min(i + CHUNK, config.scenes)) for i in range(0, config.scenes, CHUNK)
    ]
    if workers == 1 or len(jobs) == 1:
        yield from map(_render_job, jobs)
        return
    # spawn: the caller may hold a JAX runtime, whose threads do not survive a fork.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        # A window of jobs in flight bounds the memory that finished chunks take up.
        window = 4 * workers
        pending = [pool.submit(_render_job, job) for job in jobs[:window]]
        for position in range(len(jobs)):
            images = pending[position].result()
            pending[position] = None  # type: ignore[call-overload]
            if len(pending) < len(jobs):
                pending.append(pool.submit(_render_job, jobs[len(pending)]))
            yield images


def _render_job(job: tuple[ShopConfig, str, int, int]) -> list[dict[str, Any]]:
    config, kind, start, stop = job
    if kind == "scenes":
        return [render_scene(config, i) for i in range(start, stop)]
    return [image for i in range(start, stop) for image in render_product(config, i)]


def render_product(config: ShopConfig, index: int) -> list[dict[str, Any]]:
    """All images of one product, the catalogue shot first; each a dict as `ShopFolder.add` takes it."""
    plan = shop_plan(config)
    product = shop_product(config, index)
    sprite = render_sprite(product, SUPERSAMPLE * config.image_size)
    images = []
    for view in range(1 + int(plan.views[index])):
        id_ = f"{product.name}-c" if view == 0 else f"{product.name}-w{view}"
        images.append(
            {
                "kind": "image",
                "id": id_,
                "path": image_path(id_, index // _products_per_folder(config)),
                "jpeg": _render_view(config, product, sprite, view),
                "view": "catalogue" if view == 0 else "wild",
                "heldout": bool(plan.heldout[index]),
                "truth": {
                    "product": product.name,
                    "type": product.type.name,
                    "colour": product.colour,
                    "material": product.material,
                    "shade": product.shade,
                },
                "text": None if plan.heldout[index] else _text_of(config, plan, product, view),
                "labels": _labels_of(config, product, view) if plan.labelled[index] else {},
            }
        )
    return images


def _products_per_folder(config: ShopConfig) -> int:
    """So many that a folder of images holds well below a thousand files on average."""
    return max(1, int(600 / (1.0 + max(config.wild_per_product, config.heldout_wild))))


def _render_view(config: ShopConfig, product: Product, sprite: Any, view: int) -> bytes:
    rng = stream(STREAM_VIEW, config.seed, product.index, view)
    if view == 0:
        return encode_jpeg(
            catalogue_shot(sprite, rng, config.image_size), config.photo.jpeg_quality_max
        )
    other = None
    if rng.random() < config.photo.other_product:
        stranger = _stranger(config, product.index, rng)
        if stranger is not None:
            other = render_sprite(stranger, SUPERSAMPLE * config.image_size)
    image = wild_photo(sprite, other, rng, config.image_size, config.photo)
    quality = int(rng.integers(config.photo.jpeg_quality_min, config.photo.jpeg_quality_max + 1))
    return encode_jpeg(image, quality)


def _stranger(config: ShopConfig, index: int, rng: np.random.Generator) -> Product | None:
    """Another product of the same split, so that no held-out product shows up in a training picture."""
    heldout = shop_plan(config).heldout
    for _ in range(50):
        other = int(rng.integers(config.products))
        if other != index and heldout[other] == heldout[index]:
            return shop_product(config, other)
    return None


def _text_of(config: ShopConfig, plan: Plan, product: Product, view: int) -> dict[str, Any]:
    rng = stream(STREAM_TEXT, config.seed, product.index, view)
    other = _stranger(config, product.index, rng) or product
    return write_text(product, other, float(plan.popularity[product.index]), config.text, rng)


def _labels_of(config: ShopConfig, product: Product, view: int) -> dict[str, Any]:
    """What merchandisers wrote about one image: a row of labelled.csv, and whether it is in matches.csv."""
    rng = stream(STREAM_LABELS, config.seed, product.index, view)
    kept = rng.random(3) >= config.label_missing
    cells = (product.type.name, product.colour, product.shade)
    row = [cell if keep else "" for cell, keep in zip(cells, kept, strict=True)]
    return {
        "row": row if rng.random() < config.labelled_images else None,
        # The catalogue shot is always there: a match needs something to match.
        "matched": bool(rng.random() < config.labelled_images) or view == 0,
    }


def render_scene(config: ShopConfig, number: int) -> dict[str, Any]:
    """One photograph of 2 to 5 products of one family and one split, with their boxes in pixels."""
    rng = stream(STREAM_SCENE, config.seed, number)
    products = _scene_products(config, rng)
    size = config.scene_size
    sprites = [render_sprite(product, size) for product in products]
    image, boxes = scene_photo(sprites, rng, size, config.photo)
    id_ = f"s{number:06d}"
    return {
        "kind": "scene",
        "id": id_,
        "path": image_path(id_, number // 1000),
        "jpeg": encode_jpeg(image, config.photo.jpeg_quality_max),
        "boxes": [_box_row(id_, p, box) for p, box in zip(products, boxes, strict=True)],
    }


def _scene_products(config: ShopConfig, rng: np.random.Generator) -> list[Product]:
    heldout = shop_plan(config).heldout
    first = int(rng.integers(config.products))
    chosen = {first: shop_product(config, first)}
    wanted = int(rng.integers(2, 6))
    for _ in range(200):  # a tiny catalogue may not hold as many
        index = int(rng.integers(config.products))
        if len(chosen) == wanted:
            break
        product = shop_product(config, index)
        same_family = product.type.family == chosen[first].type.family
        if heldout[index] == heldout[first] and same_family:
            chosen.setdefault(index, product)
    return list(chosen.values())


def _box_row(scene: str, product: Product, box: Box) -> dict[str, Any]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
    return {"scene_id": scene, "product": product.name, "type": product.type.name, **corners}
