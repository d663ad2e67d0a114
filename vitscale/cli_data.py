"""`vitscale demo`, `shop` and `prep`: from nothing, or a catalogue, to weak labels."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from vitscale.cli_common import command, log_stages, start_jax


def add_demo(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands,
        "demo",
        _demo,
        "run the whole loop on the generated catalogue and write one report",
        "vitscale demo --workdir runs/demo --size tiny",
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/demo"), help="default: runs/demo"
    )
    parser.add_argument(
        "--size", choices=("tiny", "small"), default="tiny", help="tiny: minutes on 2 cores"
    )
    parser.add_argument("--seed", type=int, default=0)


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> None:
    start_jax()
    log_stages()
    from vitscale.demo import run_demo

    run_demo(arguments.workdir, arguments.size, arguments.seed)


def add_shop(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands,
        "shop",
        _shop,
        "write the generated catalogue: images, messy text, and the truth apart",
        "vitscale shop --output runs/shop --products 1000 --config.text.misspelling=0.1",
        takes_overrides=True,
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=64, help="pixels, square; default 64")
    parser.add_argument("--seed", type=int, default=0)


def _shop(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from data_prep.shop import ShopConfig, generate_shop
    from vitscale.config_loading import apply_override, from_mapping
    from vitscale.progress import Task

    tree = dataclasses.asdict(
        ShopConfig(
            products=arguments.products, image_size=arguments.image_size, seed=arguments.seed
        )
    )
    for override in overrides:
        apply_override(tree, override, ShopConfig)
    config = from_mapping(ShopConfig, tree)
    with Task("render images", config.products) as progress:
        generate_shop(
            config,
            arguments.output,
            progress=lambda done, total: progress.update(done, total=total),
        )
    print(f"wrote the catalogue to {arguments.output}")


def add_prep(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands,
        "prep",
        _prep,
        "derive weak labels from the text around images and write shards",
        "vitscale prep --config configs/prep/shop.py --input runs/shop/catalogue.jsonl --output runs/prep",
        takes_overrides=True,
    )
    parser.add_argument(
        "--config", required=True, help="a file with get_config(), such as configs/prep/shop.py"
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="JSONL(.gz), CSV or Parquet of records"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runner", default="direct", help="Apache Beam runner; default: direct")
    parser.add_argument(
        "--runner-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed on to Beam; repeatable",
    )


def _prep(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from data_prep.pipeline import run_prep
    from data_prep.schema import PrepConfig
    from vitscale.config_loading import load_config

    log_stages()
    config = load_config(PrepConfig, arguments.config, overrides)
    run_prep(
        config,
        arguments.input,
        arguments.output,
        runner=arguments.runner,
        runner_options=arguments.runner_option,
    )
    print(f"wrote {arguments.output}/report.html")
