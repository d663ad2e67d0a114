"""Who is in the generated catalogue: the identity of every product, its popularity and its split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from data_prep.shop.pen import Pen, ProductType
from data_prep.shop.shapes import TYPES
from data_prep.shop.surface import (
    COLOURS,
    PATTERNS,
    SHADES,
    TRIMS,
    colour_sprite,
    look_up_table,
    shade_rgb,
)

# First words of the seed sequences, so that no two decisions share random numbers.
STREAM_PLAN, STREAM_PRODUCT, STREAM_VIEW, STREAM_TEXT, STREAM_SCENE, STREAM_LABELS = range(6)


def stream(*key: int) -> np.random.Generator:
    """Random numbers that depend on nothing but the key: the same in any process and any order."""
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass(frozen=True)
class Product:
    """One product: everything that its pictures and its words are made from."""

    index: int
    type: ProductType
    colour: str
    shade: int  # 0 very dark ... 5 very light
    second_colour: str
    second_shade: int
    material: str
    pattern: str
    pattern_scale: int  # 0..2, size of the motif
    style: Mapping[str, str]
    trim: int  # which of TRIMS
    hue_shift: float  # degrees, of the main colour
    wide: float  # proportions
    tall: float

    @property
    def name(self) -> str:
        return f"p{self.index:06d}"


@dataclass(frozen=True)
class Plan:
    """What the whole catalogue holds, one entry a product: arrays `[products]`."""

    type_index: np.ndarray  # int, into TYPES
    popularity: np.ndarray  # float, 1 for the most popular, falling as a power of its rank
    views: np.ndarray  # int, number of photos in the wild
    heldout: np.ndarray  # bool
    labelled: np.ndarray  # bool, only training products


def zipf(n: int, exponent: float) -> np.ndarray:
    """`[n] float64` weights rank^-exponent that sum to 1."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def assign_types(rng: np.random.Generator, products: int, exponent: float) -> np.ndarray:
    """`[products] int`: a long tail of types; with enough products, at least three of each."""
    share = zipf(len(TYPES), exponent)
    counts = np.floor(share * products).astype(int)
    if products >= len(TYPES):
        counts = np.maximum(counts, min(3, products // len(TYPES)))
    while counts.sum() > products:
        counts[np.argmax(counts)] -= 1
    rest = products - int(counts.sum())
    counts += rest // len(TYPES)
    counts[: rest % len(TYPES)] += 1
    ranked = rng.permutation(len(TYPES))
    return rng.permutation(np.repeat(ranked, counts))


def systematic(keys: np.ndarray, fraction: float) -> np.ndarray:
    """`[n] bool`: a share of the entries, spread evenly over the sorted `keys`."""
    order = np.lexsort(keys[::-1])
    steps = np.floor(np.arange(1, len(order) + 1) * fraction + 1e-9)
    taken = np.diff(steps, prepend=0.0) > 0
    mask = np.zeros(len(order), bool)
    mask[order] = taken
    return mask


@lru_cache(maxsize=2)
def make_plan(
    seed: int,
    products: int,
    wild_per_product: float,
    heldout_wild: int,
    heldout_fraction: float,
    labelled_fraction: float,
    zipf_types: float,
    zipf_products: float,
) -> Plan:
    """Types, popularity, photo counts and splits of all products: a pure function of its arguments."""
    rng = stream(STREAM_PLAN, seed)
    types = assign_types(rng, products, zipf_types)
    rank = rng.permutation(products)
    heldout = systematic(np.stack([types, rng.permutation(products)]), heldout_fraction)
    training = np.flatnonzero(~heldout)
    labelled = np.zeros(products, bool)
    keys = np.stack([types[training], rng.permutation(len(training))])
    labelled[training] = systematic(keys, labelled_fraction)

    popularity = (1.0 + rank) ** -zipf_products
    views = np.full(products, heldout_wild, int)
    if len(training):
        weight = popularity[training] / popularity[training].mean()
        # At least one photo each: what is left of the mean is shared out by popularity.
        extra = max(wild_per_product - 1.0, 0.0) * weight
        views[training] = min(1.0, wild_per_product) + np.floor(extra + rng.random(len(training)))
    return Plan(types, popularity, views, heldout, labelled)


def make_product(seed: int, index: int, type_index: int) -> Product:
    """The identity of product `index`."""
    rng = stream(STREAM_PRODUCT, seed, index)
    kind = TYPES[type_index]
    names = list(COLOURS)
    weights = zipf(len(names), 0.5)
    colour = names[rng.choice(len(names), p=weights)]
    shade = int(rng.integers(len(SHADES)))
    second_colour = names[rng.choice(len(names), p=weights)]
    # The second colour must stand out: another lightness, at least two steps away.
    second_shade = int(rng.choice([s for s in range(len(SHADES)) if abs(s - shade) >= 2]))
    patterned = rng.random() < kind.patterned
    return Product(
        index=index,
        type=kind,
        colour=colour,
        shade=shade,
        second_colour=second_colour,
        second_shade=second_shade,
        material=str(rng.choice(kind.materials)),
        pattern=PATTERNS[rng.integers(1, len(PATTERNS))] if patterned else "plain",
        pattern_scale=int(rng.integers(3)),
        style={name: str(rng.choice(values)) for name, values in kind.attributes.items()},
        trim=int(rng.integers(len(TRIMS))),
        hue_shift=float(rng.uniform(-5.0, 5.0)),
        wide=float(rng.uniform(0.86, 1.06)),
        tall=float(rng.uniform(0.86, 1.06)),
    )


def render_sprite(product: Product, size: int) -> Image.Image:
    """The product alone on a transparent ground, upright, as an RGBA image `size` x `size`."""
    pen = Pen(size, product.wide, product.tall)
    product.type.draw(pen, product.style)
    table = look_up_table(
        shade_rgb(product.colour, product.shade, product.hue_shift),
        shade_rgb(product.second_colour, product.second_shade),
        product.trim,
        product.material,
    )
    return colour_sprite(pen.image, table, product.material, product.pattern, product.pattern_scale)
