"""`vitscale convert import|export`: its arguments, and the calls behind them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from vitscale.cli_common import add_checkpoint, add_weights, command, log_stages, start_jax
from vitscale.errors import UserError
from vitscale.models.convert.formats import EXPORT_FORMATS, IMPORT_FORMATS


def add_convert(commands: argparse._SubParsersAction) -> None:
    parser = command(
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
    actions = parser.add_subparsers(dest="action", required=True, metavar="import|export")
    _add_import(_action(actions, "import", "read a local file of public weights into a checkpoint"))
    _add_export(_action(actions, "export", "write a checkpoint for other libraries or for serving"))


def _action(actions: argparse._SubParsersAction, name: str, help: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=IMPORT_FORMATS, required=True)
    parser.add_argument(
        "--input", type=Path, required=True, help="a local file or folder; nothing is downloaded"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--model", default="", help="timm's name of a bare file's model")
    parser.add_argument(
        "--variant", default="", help="ours, such as B/16, where the file must be this"
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="H[xW]",
        help="of the checkpoint; positions are resampled. Default: the file's",
    )
    parser.add_argument("--num-classes", type=int, help="that the head must have; 0 drops the head")
    parser.add_argument("--class-names", type=Path, help="text file, one class a line")
    parser.add_argument("--task", default="label", help="name of the head; default: label")
    parser.epilog = "What a file does not say can be set as a model config value, such as --config.num_heads=12."


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--format", choices=EXPORT_FORMATS, required=True)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="a file for big_vision, else a folder; must be new",
    )
    parser.add_argument("--task", help="the linear head to export, or none; default: the only one")
    add_weights(parser)


def _image_size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not H or HxW, such as 384 or 256x192")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


def _convert(arguments: argparse.Namespace, overrides: list[str]) -> None:
    start_jax()
    log_stages()
    if arguments.action == "import":
        _import(arguments, overrides)
    elif overrides:
        raise UserError("export takes no --config values: the checkpoint says what the model is.")
    else:
        _export(arguments)


def _import(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from vitscale.models.convert.describe import ImportOptions, parse_given
    from vitscale.models.convert.importing import import_weights, summary
    from vitscale.models.weights import has_step, write_model

    if has_step(arguments.output):
        raise UserError(f"{arguments.output} holds checkpoints already; take another --output.")
    if arguments.format == "safetensors" and (overrides or arguments.variant or arguments.model):
        raise UserError(
            "--format safetensors reads the model from its config.json: drop the model options."
        )
    options = ImportOptions(
        arguments.input,
        arguments.model,
        arguments.variant,
        arguments.task,
        parse_given(overrides),
    )
    imported = import_weights(
        arguments.format,
        options,
        image_size=arguments.image_size,
        class_names=_class_names(arguments.class_names),
        num_classes=arguments.num_classes,
    )
    write_model(arguments.output, imported.model, imported.tasks, imported.classes, imported.params)
    print(f"{arguments.input}: {summary(imported)}")
    print(f"wrote the checkpoint {arguments.output}")


def _class_names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names {path} cannot be read: {error}.") from error


def _export(arguments: argparse.Namespace) -> None:
    from vitscale.models.convert.exporting import export_weights
    from vitscale.models.weights import load_model

    model = load_model(arguments.checkpoint, arguments.weights)
    export_weights(arguments.format, model, arguments.output, arguments.task)
    print(f"wrote {arguments.output}")
