"""Time and outcome of `vitscale demo`, with `--install` also of `make demo` in a fresh clone. Prints one JSON line.

python benchmarks/demo.py --install
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
GOAL_SECONDS, GOAL_WITH_INSTALL_SECONDS = 300, 480


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="clone, install, and run")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir, start = Path(folder) / "demo", time.perf_counter()
        if arguments.install:
            clone = Path(folder) / "clone"
            subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
            command = ["make", "-C", str(clone), "demo", f"WORKDIR={workdir}"]
            command += [f"SIZE={arguments.size}"]
        else:
            command = [sys.executable, "-m", "vitscale.cli", "demo", "--workdir", str(workdir)]
            command += ["--size", arguments.size, "--seed", str(arguments.seed)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        summary = json.loads((workdir / "summary.json").read_text())
    result = {
        "benchmark": "demo",
        "with_install": arguments.install,
        "seconds": round(seconds, 1),
        "goal_seconds": GOAL_WITH_INSTALL_SECONDS if arguments.install else GOAL_SECONDS,
        "ratio_to_goal": round(
            seconds / (GOAL_WITH_INSTALL_SECONDS if arguments.install else GOAL_SECONDS), 3
        ),
        "retrieval/P@1": {
            name: metrics["retrieval/P@1"]
            for name, metrics in summary.items()
            if isinstance(metrics, dict) and "retrieval/P@1" in metrics
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
