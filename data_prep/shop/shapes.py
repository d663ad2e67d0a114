"""All product types of the generated catalogue, in the fixed order that product identities are drawn from."""

from __future__ import annotations

from data_prep.shop import (  # noqa: F401  (importing registers the types)
    shapes_accessories,
    shapes_clothes,
    shapes_decor,
    shapes_furniture,
    shapes_lights,
    shapes_seating,
    shapes_shoes,
)
from data_prep.shop.pen import REGISTRY, ProductType

# Sorted by name: the order must not depend on which module was imported first.
TYPES: tuple[ProductType, ...] = tuple(REGISTRY[name] for name in sorted(REGISTRY))
