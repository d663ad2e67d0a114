"""How many pictures a second one core draws, JPEG included: `python benchmarks/shop.py [--products N]`."""

from __future__ import annotations

import argparse
import json
import os
import time

from data_prep.shop.catalogue import ShopConfig, render_product, shop_plan

GOAL = 300.0  # images a second and core at 64 pixels


def measure(products: int, image_size: int, repeats: int) -> dict[str, float]:
    """Best of `repeats` rates; the first pass over the products warms the caches and is not counted."""
    config = ShopConfig(products=products, image_size=image_size)
    images = products + int(shop_plan(config).views.sum())
    for index in range(products):
        render_product(config, index)
    rates = []
    for _ in range(repeats):
        start = time.process_time()  # CPU time: what one core does, whatever else the machine runs
        for index in range(products):
            render_product(config, index)
        rates.append(images / (time.process_time() - start))
    return {"images": images, "images_per_sec_per_core": round(max(rates), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    result = measure(args.products, args.image_size, args.repeats)
    report = {
        "benchmark": "shop",
        "image_size": args.image_size,
        **result,
        "goal": GOAL,
        "cores": os.cpu_count(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
