"""The whole suite runs on 8 fake CPU devices; fixtures that several rooms use."""

import csv
import os
import signal

import numpy as np
import pytest
from PIL import Image
from xla_flags import quick_flags

# Before the first import of jax anywhere in the session.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_flags(devices=8)}"

# A shell's background job ignores it, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """48 noisy 24-px images of three colours; every fourth has no shade."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "colour", "shade"])
        for i in range(48):
            name, rgb = list(COLOURS.items())[i % 3]
            shade = rng.integers(3)
            pixels = np.asarray(rgb) * (0.4 + 0.3 * shade) + rng.normal(0, 20, (24, 24, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg")
            split = "test" if i >= 40 else "train"
            writer.writerow([f"{i}.jpg", split, name, "" if i % 4 == 3 else shade])
    return folder


@pytest.fixture(scope="session")
def make_config(photos):
    from vitscale.config import TrainConfig
    from vitscale.config_loading import from_mapping

    def make(**changes) -> TrainConfig:
        tree = {
            "duration": 12,
            "model": {"variant": "mu/8", "image_size": 16},
            "data": {
                "root": str(photos),
                "sources": [
                    {
                        "kind": "csv",
                        "path": "images.csv",
                        "split": "train",
                        "fields": ["colour", "shade"],
                    }
                ],
                "global_batch_size": 16,
                "max_labels": 1,
            },
            "tasks": [
                {"name": "colour", "kind": "single_label"},
                {"name": "shade", "kind": "ordinal"},
                {
                    "name": "embedding",
                    "kind": "embedding",
                    "field": "colour",
                    "embedding": {"dim": 8},
                },
            ],
            "optim": {"lr": 3e-3, "warmup": 2},
            "checkpoint": {"every_steps": 4, "keep": 2},
            "log": {"every_steps": 1, "tensorboard": False},
        }
        for path, value in changes.items():
            node = tree
            *parents, last = path.split("__")
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
        return from_mapping(TrainConfig, tree)

    return make


@pytest.fixture
def config_file(tmp_path, make_config):
    """Writes what `make_config` makes as a file with `get_config()`; gives its path."""
    from vitscale.config_loading import to_json

    def write(**changes) -> str:
        text = to_json(make_config(**changes))
        path = tmp_path / "config.py"
        path.write_text(f"import json\ndef get_config():\n    return json.loads({text!r})\n")
        return str(path)

    return write
