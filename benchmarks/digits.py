"""The digits preset as a newcomer runs it: wall time of the command, then scores over several sampling seeds.

python benchmarks/digits.py [--seeds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ddpm.files import write_text

GOALS = {
    "sure_ratio": "at least 0.95",
    "class_shares": "each between 0.05 and 0.16",
    "frechet_ratio": "at most 1.3",
    "two_sample_accuracy": "at most 0.62",
    "copying_ratio": "between 0.8 and 1.25",
    "seconds": "at most 180",
}


def main() -> None:
    """Train once, score each sampling seed, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "digits"
        start = time.monotonic()
        ddpm("train", "digits", "--out", str(run))
        seconds = time.monotonic() - start
        scores = [score(run, seed) for seed in range(arguments.seeds)]
    result = {
        "seconds": round(seconds, 1),
        "goals": GOALS,
        "scores": scores,
        "machine": {
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
    }
    print(f"trained in {seconds:.0f} s ({GOALS['seconds']})")
    for name in ("sure_ratio", "frechet_ratio", "two_sample_accuracy", "copying_ratio"):
        values = [each[name] for each in scores]
        print(
            f"{name:<22} {' '.join(f'{v:.3f}' for v in values)}  median {statistics.median(values):.3f} ({GOALS[name]})"
        )
    shares = [share for each in scores for share in each["class_shares"]]
    print(f"{'class_shares':<22} {min(shares):.3f} to {max(shares):.3f} ({GOALS['class_shares']})")
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def ddpm(*words: str) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "ddpm.cli.main", *words], check=True)


def score(run: Path, seed: int) -> dict[str, Any]:
    """Return the scores of 1,000 samples of one seed."""
    file = run / f"scores-{seed}.json"
    ddpm("evaluate", str(run), "-n", "1000", "--metrics", "pixels", "--seed", str(seed), "--json", str(file))
    scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["details"]["pixels"]
    return {"seed": seed, **scores}


if __name__ == "__main__":
    main()
