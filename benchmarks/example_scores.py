"""What examples/ddpm_in_200_lines.py reaches on the digits: seconds, and the scores over raw pixels of its samples.

python benchmarks/example_scores.py [--seeds 3] [--steps 4000] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from turns import machine

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.evaluation.scores.pixel_scores import pixel_scores
from ddpm.files import write_text

GOALS = {
    "sure_ratio": "at least 0.95",
    "frechet_ratio": "at most 1.3",
    "two_sample_accuracy": "at most 0.62",
    "copying_ratio": "between 0.8 and 1.25",
}
SAMPLES = {"ddim": 1000, "ddpm": 360}  # DDPM takes 20 times as long


def main() -> None:
    """Train once, score samples of both samplers, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of DDIM; DDPM has one")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    example = load_example("ddpm_in_200_lines")
    torch.manual_seed(0)
    wall, processor = time.monotonic(), time.process_time()
    model = example.train(example.load_pictures(None), arguments.steps)
    seconds = {"wall": time.monotonic() - wall, "processor": time.process_time() - processor}
    scores = {"ddim": [score(example, model, "ddim", seed) for seed in range(arguments.seeds)]}
    scores["ddpm"] = [score(example, model, "ddpm", 0)]
    print(f"trained {arguments.steps:,} steps: {seconds['wall']:.0f} s, {seconds['processor']:.0f} s of one core")
    for sampler, of_sampler in scores.items():
        print(f"{sampler}, {SAMPLES[sampler]:,} samples")
        for name, goal in GOALS.items():
            values = [each[name] for each in of_sampler]
            shown = " ".join(f"{value:.3f}" for value in values)
            print(f"  {name:<20} {shown}  median {statistics.median(values):.3f} ({goal})")
    if arguments.json:
        tree = {"steps": arguments.steps, "seconds": seconds, "goals": GOALS, "scores": scores, "machine": machine()}
        write_text(arguments.json, json.dumps(tree, indent=2) + "\n")


def load_example(name: str) -> ModuleType:
    """Return an example as a module; it is a script beside the package, not a part of it."""
    file = Path(__file__).parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def score(example: ModuleType, model: torch.nn.Module, sampler: str, seed: int) -> dict[str, Any]:
    """Return the scores of samples of one seed, in the 17 gray levels of the digits."""
    torch.manual_seed(seed)
    x_0 = getattr(example, sampler)(model, torch.randn(SAMPLES[sampler], 1, 8, 8))
    pictures = np.rint((x_0.permute(0, 2, 3, 1).numpy() + 1) * 8).clip(0, 16).astype(np.uint8)
    return {"seed": seed, **pixel_scores(pictures, open_store("digits", DataConfig())).as_tree()}


if __name__ == "__main__":
    main()
