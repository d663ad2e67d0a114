"""The input pipeline against its rivals, on real photos at 224 pixels: `make .venv-bench`, then

    .venv-bench/bin/python benchmarks/input.py [--rounds 9]

Every pipeline is measured in one run, in turns, on one core and on two (`input_race`): our whole loader and what it is
without its parts, PIL in torchvision's way, tf.data as big_vision uses it, torch's DataLoader, and libjpeg-turbo's
crop-decode with nothing after it, which nobody can beat. Prints the rates, the ratios beside their goals, where our
time goes, what records cost that need no decoding, how long a step waits, and what 16 cores would feed; one JSON line
at the end. A rival that is not installed is left out, with the reason.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import input_ours
from input_race import Racer, cpu_ratio, race, ratio

from vitscale.config import DataConfig
from vitscale.terminal import print_table

SIZE = 224  # pixels
BATCH = 128
SMALL_BATCH = 256
CORES = (1, 2)
BIG_HOST = 16  # cores
# Images a second that a training step takes at its roofline on one H200 (docs/performance.md): 512 in 84.8 ms for
# B/16, 256 in 142.0 ms for L/16.
CONSUMED = {"B/16": 512 / 0.0848, "L/16": 256 / 0.1420}


@dataclass(frozen=True)
class Entry:
    """A pipeline of the race. alone: it uses one core, so that it runs in as many copies as there are cores."""

    name: str
    function: str
    alone: bool
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A ratio of two racers, and what it must reach."""

    what: str
    over: str
    under: str
    least: float


GOALS = (
    Goal("ours / tf.data, antialiased; 1 core", "ours, threads/1", "tf.data/1", 1.6),
    Goal("ours / tf.data, antialiased; 2 cores", "ours, processes/2", "tf.data/2", 1.6),
    Goal("ours / PIL; 1 core", "ours, threads/1", "PIL/1", 2.5),
    Goal("ours / PIL; 2 cores", "ours, processes/2", "PIL/2", 2.5),
    Goal("ours / torch DataLoader; 2 cores", "ours, processes/2", "torch DataLoader/2", 2.5),
    Goal("ours / libjpeg-turbo's limit; 1 core", "ours, threads/1", "limit/1", 0.53),
    Goal("ours / libjpeg-turbo's limit; 2 cores", "ours, processes/2", "limit/2", 0.53),
    Goal("two cores / one, worker processes", "ours, processes/2", "ours, threads/1", 1.85),
    Goal("two cores / one, threads", "ours, threads/2", "ours, threads/1", 1.85),
)
# The rest of the 10 % that Grain, hand-over and batching may cost is in the table of parts.
HANDS = (
    ("1 core, threads", "ours, threads/1", "ours, bare/1"),
    ("2 cores, threads", "ours, threads/2", "ours, bare/2"),
    ("2 cores, worker processes", "ours, processes/2", "ours, bare/2"),
)


def main() -> None:
    arguments = _arguments()
    paths = _photo_paths(arguments.photos)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        input_ours.write_photos(folder / "photos", paths)
        input_ours.write_small(folder / "small", paths)
        entries = _entries(folder, paths, arguments.photos, arguments.min_area)
        racers = _racers([entry for entry in entries if _wanted(entry, arguments.only)])
        missing = race(list(racers.values()), seconds=arguments.seconds, rounds=arguments.rounds)
        shape = (str(folder / "photos"), SIZE, BATCH, arguments.min_area)
        parts = _apart(1, input_ours.time_parts, *shape, 30)
        waiting = _apart(None, input_ours.stall, *shape, max(CORES), 0.8, 4.0)
    measured = {name: racer for name, racer in racers.items() if racer.laps}
    report = {
        "benchmark": "input",
        "photos": len(paths),
        "size": SIZE,
        "batch": BATCH,
        "min_area": arguments.min_area,
        "cores_of_machine": os.cpu_count(),
        "rates": print_rates(measured),
        "goals": print_goals(measured),
        "hands": print_parts(measured, parts),
        "microseconds_per_image": parts,
        "stall": print_stall(waiting),
        "hosts": print_hosts(measured),
        "missing": missing,
    }
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")
    print(json.dumps(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # A working copy keeps the shared folder inside of itself, or has it as a neighbour.
    folders = [Path(name, "data/clothing") for name in ("shared", "../shared")]
    default = next((folder for folder in folders if folder.is_dir()), folders[0])
    parser.add_argument("--photos", type=Path, default=default, help="folder with images.csv")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one pipeline's turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--min-area", type=float, default=DataConfig.crop_min_area, help="smallest share of a crop"
    )
    parser.add_argument("--only", nargs="+", default=[], help="names that begin with one of these")
    arguments = parser.parse_args()
    if not (arguments.photos / "images.csv").is_file():
        sys.exit(f"{arguments.photos} has no images.csv: name a folder of photos with --photos.")
    return arguments


def _photo_paths(folder: Path) -> list[str]:
    with (folder / "images.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return [str((folder / row["path"]).absolute()) for row in rows]


def _entries(folder: Path, paths: Sequence[str], photos: Path, min_area: float) -> list[Entry]:
    shape = {"size": SIZE, "batch": BATCH, "min_area": min_area}
    rival = {**shape, "paths": paths}
    ours = {**shape, "source": folder / "photos"}
    small = {
        "source": folder / "small",
        "size": input_ours.SMALL,
        "batch": SMALL_BATCH,
        "min_area": min_area,
        "decodes": False,
    }
    files = {**ours, "source": photos / "images.csv", "processes": False}
    return [
        Entry("limit", "input_rivals:limit", True, rival),
        Entry("limit, less exact", "input_rivals:limit_fast", True, rival),
        Entry("ours, bare", "input_ours:bare", True, ours),
        Entry("ours, threads", "input_ours:loader", False, {**ours, "processes": False}),
        Entry("ours, processes", "input_ours:loader", False, {**ours, "processes": True}),
        Entry("ours, files of a CSV", "input_ours:loader", False, files),
        Entry("tf.data", "input_rivals:tf_data", False, rival),
        Entry("tf.data, aliased", "input_rivals:tf_data_aliased", False, rival),
        Entry("PIL", "input_rivals:pil", True, rival),
        Entry("torch DataLoader", "input_rivals:torch_loader", False, rival),
        Entry("no decoding, bare", "input_ours:bare", True, small),
        Entry("no decoding, threads", "input_ours:loader", False, {**small, "processes": False}),
        Entry("no decoding, processes", "input_ours:loader", False, {**small, "processes": True}),
    ]


def _wanted(entry: Entry, prefixes: Sequence[str]) -> bool:
    return not prefixes or entry.name.startswith(tuple(prefixes))


def _racers(entries: Sequence[Entry]) -> dict[str, Racer]:
    """By name/cores."""
    racers = {}
    for entry, cores in itertools.product(entries, CORES):
        racers[f"{entry.name}/{cores}"] = Racer(
            f"{entry.name}/{cores}",
            entry.function,
            entry.arguments,
            batch=entry.arguments["batch"],
            cores=cores,
            copies=cores if entry.alone else 1,
        )
    return racers


def _apart(cores: int | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it in a fresh process, pinned to that many cores."""
    mine = sorted(os.sched_getaffinity(0))[:cores]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, os.sched_setaffinity, (0, mine)) as pool:
        return pool.submit(function, *arguments).result()


def print_rates(racers: Mapping[str, Racer]) -> dict[str, dict[str, float]]:
    rates = {
        name: {
            "images_per_second": round(racer.rate, 1),
            "per_cpu_second": round(racer.cpu_rate, 1),
            "cores_used": round(racer.cores_used, 2),
        }
        for name, racer in racers.items()
    }
    rows = [[name, *(f"{value:,.4g}" for value in row.values())] for name, row in rates.items()]
    print_table("pipeline / cores", ["", "images/s", "a CPU second", "cores used"], rows)
    busy = [name for name, racer in racers.items() if racer.cores_used < 0.85 * racer.cores]
    if busy:
        print(
            f"{len(busy)} of {len(racers)} pipelines used less than 85 % of their cores: they waited, or there was "
            "other work on the machine. Then CPU seconds say more than the wall."
        )
    return rates


def print_goals(racers: Mapping[str, Racer]) -> list[dict[str, Any]]:
    results = []
    for goal in GOALS:
        if goal.over in racers and goal.under in racers:
            pair = racers[goal.over], racers[goal.under]
            # By CPU seconds, twice the cores would be twice as fast if they did not stand in each other's way.
            by_cpu = cpu_ratio(*pair) * pair[0].cores / pair[1].cores
            results.append(
                {
                    "what": goal.what,
                    "ratio": round(ratio(*pair), 3),
                    "by_cpu_seconds": round(by_cpu, 3),
                    "goal": goal.least,
                }
            )
    rows = [
        [row["what"], str(row["ratio"]), str(row["by_cpu_seconds"]), f"≥ {row['goal']}"]
        for row in results
    ]
    print_table("ratios", ["", "ratio", "by CPU seconds", "goal"], rows)
    return results


def print_parts(racers: Mapping[str, Racer], parts: Mapping[str, float]) -> dict[str, float]:
    """Where the time of one core goes, and the share that Grain, hand-over and batching take together."""
    whole = sum(parts.values())
    rows = [[name, f"{value:.0f}", f"{value / whole:.1%}"] for name, value in parts.items()]
    print_table("bare, one core", ["", "µs an image", "share"], rows)
    batching = parts[input_ours.BATCHING] / whole
    hands = {"batching": round(batching, 4)}
    for name, loaded, bare in HANDS:
        if loaded in racers and bare in racers:
            hand_over = 1 - cpu_ratio(racers[loaded], racers[bare])
            hands[name] = round(1 - (1 - batching) * (1 - hand_over), 4)
    rows = [[name, f"{value:.1%}"] for name, value in hands.items()]
    print("batching alone, then with Grain and hand-over, of the loader's CPU time (goal: ≤ 10 %)")
    print_table("", ["", "share"], rows)
    return hands


def print_stall(waiting: Mapping[str, float]) -> Mapping[str, float]:
    print(
        f"a step that takes {waiting['load']:.0%} of {waiting['images_per_second']:,.0f} images/s waits "
        f"{waiting['stall']:.2%} of its time (goal: < 1 %)"
    )
    return waiting


def print_hosts(racers: Mapping[str, Racer]) -> dict[str, float]:
    """What a large host would feed, as many times one core and at the efficiency that the second core showed."""
    one, two = (racers.get(name) for name in ("ours, threads/1", "ours, processes/2"))
    if one is None or two is None:
        return {}
    rates = {
        f"{BIG_HOST} cores, as {BIG_HOST} times one": BIG_HOST * one.rate,
        f"{BIG_HOST} cores, as {BIG_HOST // 2} times two": BIG_HOST / 2 * two.rate,
        **{f"{model} on an H200 takes": rate for model, rate in CONSUMED.items()},
    }
    rows = [[name, f"{rate:,.0f}"] for name, rate in rates.items()]
    print("feeding an accelerator (arithmetic, not measured)")
    print_table("", ["", "images/s"], rows)
    return {name: round(rate) for name, rate in rates.items()}


if __name__ == "__main__":
    main()
