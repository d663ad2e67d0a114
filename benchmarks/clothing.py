"""Trains `configs/clothing.py` on the real photos and evaluates it. Prints one JSON line with figures and times.

python benchmarks/clothing.py [--root ../shared/data/clothing]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=str(REPOSITORY / "../shared/data/clothing"))
    parser.add_argument("--workdir", default=None, help="keep the run here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(arguments.workdir or folder) / "clothing"
        vitscale = [sys.executable, "-m", "vitscale.cli"]
        train = ["train", "--config", "configs/clothing.py", "--workdir", str(workdir)]
        train_seconds = run([*vitscale, *train, f"--config.data.root={arguments.root}"])
        evaluate = ["eval", "--config", "configs/eval/clothing.py", "--checkpoint", str(workdir)]
        evaluate += ["--output", str(workdir / "eval"), f"--config.root={arguments.root}"]
        eval_seconds = run([*vitscale, *evaluate])
        metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
    names = (
        "test/label/accuracy",
        "retrieval/P@1",
        "retrieval/hit@10",
        "retrieval/mAP@10",
        "knn/accuracy",
    )
    print(
        json.dumps(
            {
                "benchmark": "clothing",
                "train_seconds": round(train_seconds, 1),
                "eval_seconds": round(eval_seconds, 1),
                **{name: metrics[name] for name in names},
                "scann_recall@10": metrics["retrieval/scann_recall@10"]["value"],
            }
        )
    )


def run(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=REPOSITORY)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
