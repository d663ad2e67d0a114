"""Weak labels from the text of the generated catalogue (`vitscale shop`).

vitscale prep --config configs/prep/shop.py --input SHOP/catalogue.jsonl --output PREP
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.id_field = "id"
    c.image_field = "image"  # starts from the folder of catalogue.jsonl
    c.sources = [
        # prior: how often a phrase of this source alone is right, as a merchandiser would guess.
        {"name": "title", "prior": 0.7},
        {"name": "description", "prior": 0.5},
        {"name": "alt_text", "prior": 0.6},
        {"name": "boards", "kind": "list", "prior": 0.4},
        {
            "name": "queries",
            "kind": "weighted_list",
            "weight_key": "clicks",
            "role": "query",
            "prior": 0.6,
        },
    ]
    c.labels_per_image = 6
    return c
