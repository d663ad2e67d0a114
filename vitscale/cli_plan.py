"""`vitscale plan`: memory, layout and collectives of a config on chips that are not here."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitscale.cli_common import add_config, command
from vitscale.errors import DoesNotFit


def add_plan(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands,
        "plan",
        _plan,
        "compile a config for chips that are not here: layout, memory, collectives",
        "vitscale plan --config configs/pretrain_vit_b16.py --topology v5e:4x4",
        takes_overrides=True,
    )
    add_config(parser, "configs/pretrain_vit_b16.py")
    parser.add_argument(
        "--topology",
        required=True,
        help="chips and their shape: v5e:4x4, v5p:8x8x8, 4*v5e:16x16 (four slices), h100:32",
    )
    parser.add_argument("--output", type=Path, help="also write the text to this file")


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from launch.plan import make_plan, plan_text, prepare_environment, write_plan
    from vitscale.config import TrainConfig
    from vitscale.config_loading import load_config

    config = load_config(TrainConfig, arguments.config, overrides)
    prepare_environment(arguments.topology)
    plan = make_plan(config, arguments.topology)
    print(plan_text(plan), end="")
    if arguments.output:
        write_plan(plan, arguments.output)
    if not plan.fits:
        raise DoesNotFit(
            "the step does not fit; split more (mesh.fsdp), recompute (model.remat=full), or take parts "
            "(optim.accumulate_steps)."
        )
