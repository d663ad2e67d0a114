"""The `vitscale` command. Each sub-command is a thin call of a function below; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from vitscale import __version__
from vitscale.errors import Preempted, UserError

EXIT_PREEMPTED = 75  # EX_TEMPFAIL
Handler = Callable[[argparse.Namespace, list[str]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command. Returns 0, 2 for the user's mistake, 1 for ours, 75 for a run stopped and saved."""
    parser = make_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse has no notion of "the rest is another command"; only `launch` takes one.
    end = words.index("--") if "--" in words else len(words)
    arguments, rest = parser.parse_known_args(words[:end])
    arguments.inner_command = words[end + 1 :]
    try:
        overrides = _split_overrides(rest, allowed=getattr(arguments, "takes_overrides", False))
        arguments.handler(arguments, overrides)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"vitscale {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vitscale {arguments.command}: interrupted.", file=sys.stderr)
        return 130
    except Preempted as stop:
        told = f"{stop}; the same command goes on from there."
        print(f"vitscale {arguments.command}: {told}", file=sys.stderr)
        return EXIT_PREEMPTED
    except Exception as error:
        if arguments.debug:
            raise
        print(traceback.format_exc(), file=sys.stderr)
        print(
            f"vitscale {arguments.command}: a mistake of ours: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitscale",
        description="From a catalogue of images with messy text to a measured, searchable visual embedding.",
        epilog="Start with: vitscale demo --workdir runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vitscale {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_shop,
        _add_prep,
        _add_train,
        _add_eval,
        _add_embed,
        _add_compare,
        _add_convert,
        _add_launch,
    ):
        add(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    handler: Handler,
    help: str,
    example: str,
    *,
    takes_overrides: bool = False,
) -> argparse.ArgumentParser:
    overrides = "\n\nAny config value can be set on the command line: --config.optim.lr=3e-4 --config.tasks.0.weight=2"
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + "." + (overrides if takes_overrides else ""),
        epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(handler=handler, takes_overrides=takes_overrides)
    return parser


def _split_overrides(rest: Sequence[str], *, allowed: bool) -> list[str]:
    """`--config.a.b=c` and `--config.a.b c` as `a.b=c`; anything else that argparse did not know is an error."""
    overrides: list[str] = []
    words = iter(rest)
    for word in words:
        if not allowed or not word.startswith("--config."):
            raise UserError(f"unknown argument {word!r}; see --help.")
        text = word.removeprefix("--config.")
        if "=" not in text:
            value = next(words, None)
            if value is None:
                raise UserError(f"{word} has no value; write {word}=VALUE.")
            text = f"{text}={value}"
        overrides.append(text)
    return overrides


def _start_jax() -> None:
    """Joins other processes, if there are any, and keeps compiled programs on disk between runs."""
    from vitscale.parallel.host_memory import computes_on_cpu, keep_freed_memory

    if computes_on_cpu():
        keep_freed_memory()  # before jax starts its threads
    import jax

    from vitscale.parallel.distributed import initialise

    logging.getLogger("absl").setLevel(logging.WARNING)
    initialise()
    cache = os.environ.get(
        "VITSCALE_COMPILATION_CACHE", str(Path.home() / ".cache" / "vitscale" / "xla")
    )
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)


def _log_stages() -> None:
    """Stages of the data preparation report themselves by plain lines."""
    logging.basicConfig(format="%(message)s", force=True)
    logging.getLogger("vitscale").setLevel(logging.INFO)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _command(
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
    _start_jax()
    _log_stages()
    from vitscale.demo import run_demo

    run_demo(arguments.workdir, arguments.size, arguments.seed)


def _add_shop(commands: argparse._SubParsersAction) -> None:
    parser = _command(
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


def _add_prep(commands: argparse._SubParsersAction) -> None:
    parser = _command(
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

    _log_stages()
    config = load_config(PrepConfig, arguments.config, overrides)
    run_prep(
        config,
        arguments.input,
        arguments.output,
        runner=arguments.runner,
        runner_options=arguments.runner_option,
    )
    print(f"wrote {arguments.output}/report.html")


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train a config, going on where the workdir's newest checkpoint ends",
        "vitscale train --config configs/clothing.py --workdir runs/clothing --config.data.root=/data/clothing",
        takes_overrides=True,
    )
    parser.add_argument(
        "--config", required=True, help="a file with get_config(), such as configs/clothing.py"
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="checkpoints, metrics and config go here"
    )


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from vitscale.config import TrainConfig
    from vitscale.config_loading import load_config

    config = load_config(TrainConfig, arguments.config, overrides)  # before a device is touched
    _start_jax()
    from vitscale.train.loop import train

    train(config, arguments.workdir)
    print(
        f"trained {config.total_steps} steps; checkpoint, metrics and config are in {arguments.workdir}"
    )


def _add_eval(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "measure a checkpoint: retrieval with ScaNN, head accuracies, kNN probes",
        "vitscale eval --config configs/eval/clothing.py --checkpoint runs/clothing --output runs/clothing/eval",
        takes_overrides=True,
    )
    parser.add_argument(
        "--config", required=True, help="a file with get_config(), such as configs/eval/shop.py"
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a workdir, or one step's folder"
    )
    parser.add_argument("--output", type=Path, required=True)


def _eval(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from vitscale.config import EvalConfig
    from vitscale.config_loading import load_config

    config = load_config(EvalConfig, arguments.config, overrides)
    _start_jax()
    from vitscale.evals.evaluate import evaluate
    from vitscale.models.weights import load_model
    from vitscale.terminal import print_metrics

    metrics = evaluate(config, load_model(arguments.checkpoint), arguments.output)
    print_metrics(metrics)
    print(f"wrote {arguments.output}/report.html")


def _add_embed(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "embed",
        _embed,
        "embed the images of a CSV into a Parquet file of ids and vectors",
        "vitscale embed --checkpoint runs/clothing --input images.csv --output runs/embeddings",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a workdir, or one step's folder"
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="CSV with a column of image paths"
    )
    parser.add_argument("--image-column", default="path")
    parser.add_argument("--id-column", default=None, help="default: the image path is the id")
    parser.add_argument(
        "--embedding",
        default="auto",
        help="an embedding task, or 'pooled'; default: the first task",
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True, help="folder for embeddings.parquet")


def _embed(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _start_jax()
    from vitscale.config import SourceConfig
    from vitscale.data.sources import open_source
    from vitscale.evals.embed import (
        EmbedOptions,
        embed_source,
        rejects_table,
        write_embeddings,
        write_parquet,
    )
    from vitscale.evals.evaluate import choose_embedding
    from vitscale.models.weights import load_model
    from vitscale.progress import Task

    model = load_model(arguments.checkpoint)
    output = choose_embedding(arguments.embedding, model)
    source = open_source(
        SourceConfig(
            kind="csv",
            path=str(arguments.input.absolute()),
            image_column=arguments.image_column,
            id_column=arguments.id_column,
        ),
        ".",
        {},
    )
    options = EmbedOptions(batch_size=arguments.batch_size, max_reject_fraction=0.01)
    with Task("embed", len(source)) as progress:
        embedded = embed_source(
            model,
            source,
            [output],
            options=options,
            progress=lambda done, _: progress.update(done),
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "embeddings.parquet"
    write_embeddings(path, embedded.ids, embedded.outputs[output], step=model.step)
    write_parquet(arguments.output / "rejects.parquet", rejects_table({source.name: embedded}))
    print(f"wrote {len(embedded)} vectors to {path}")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "compare",
        _compare,
        "compare two evaluations query by query: paired differences with intervals",
        "vitscale compare runs/a/eval runs/b/eval --output runs/compare",
    )
    parser.add_argument("run_a", type=Path, help="output folder of `vitscale eval`")
    parser.add_argument("run_b", type=Path, help="output folder of `vitscale eval`")
    parser.add_argument("--output", type=Path, help="folder for compare.md and compare.html")


def _compare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from vitscale.evals.compare import COLUMNS, compare, row_texts, write_comparison
    from vitscale.terminal import print_table

    a, b = arguments.run_a, arguments.run_b
    rows = compare(a, b)
    print_table(f"A: {a}   B: {b}", COLUMNS, [row_texts(row) for row in rows])
    if arguments.output:
        write_comparison(arguments.output, rows, str(a), str(b))
        print(f"wrote {arguments.output}/compare.html")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    from vitscale.cli_convert import add_actions

    parser = _command(
        commands,
        "convert",
        _convert,
        "import public weights (big_vision, timm, Hugging Face), or export a checkpoint",
        """
        vitscale convert import --format timm --input model.safetensors --model vit_base_patch16_224 --output runs/b16
        vitscale convert export --format stablehlo --checkpoint runs/b16 --output runs/served
        """,
        takes_overrides=True,
    )
    add_actions(parser)


def _convert(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _start_jax()
    _log_stages()
    from vitscale.cli_convert import convert

    convert(arguments, overrides)


def _add_launch(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "launch",
        _launch,
        "run the command after `--` as several processes",
        "vitscale launch local --processes 2 --devices 4 -- train --config configs/clothing.py --workdir runs/c",
    )
    parser.add_argument("place", choices=("local",))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--devices", type=int, default=None, help="fake CPU devices per process; default: real ones"
    )


def _launch(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from launch.local import launch_local

    launch_local(arguments.inner_command, processes=arguments.processes, devices=arguments.devices)


if __name__ == "__main__":
    sys.exit(main())
