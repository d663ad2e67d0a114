"""All product types of the generated catalogue, in the fixed order that product identities are drawn from."""

from __future__ import annotations

from data_prep import (  # noqa: F401  (importing registers the types)
    shop_shapes_accessories,
    shop_shapes_clothes,
    shop_shapes_decor,
    shop_shapes_furniture,
    shop_shapes_lights,
    shop_shapes_seating,
    shop_shapes_shoes,
)
from data_prep.shop_pen import REGISTRY, ProductType

# Sorted by name: the order must not depend on which module was imported first.
TYPES: tuple[ProductType, ...] = tuple(REGISTRY[name] for name in sorted(REGISTRY))
