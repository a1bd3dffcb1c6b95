"""What classifier-free guidance costs: pictures a second with and without it, and with it in a part of the steps.

Random weights take the same time as trained ones; medians of interleaved repeats. The goal: at most 2.1 times the time
without guidance, and less with an interval.

python benchmarks/guidance_cost.py [--batch 16] [--steps 10] [--repeats 3] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.config.conditions import ConditionSpec
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion import make_schedule
from ddpm.engine import Engine, choose_engine
from ddpm.files import write_text
from ddpm.model import Model
from ddpm.networks import build_network

NETWORK = NetworkConfig(base_channels=32, channel_multipliers=(1, 2, 2), blocks_per_level=1, attention_levels=(2,))
SHAPE = (28, 28, 1)
GOAL = 2.1
PLAIN = "without guidance"


def main() -> None:
    """Time every setting, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = choose_engine()
    model = labelled_model(engine, arguments.steps)
    settings = {
        PLAIN: model,
        "guidance 2": model.with_sampling(guidance=2.0),
        "guidance 2 in half of the steps": model.with_sampling(guidance=2.0, guidance_interval=[250.0, 749.0]),
    }
    times: dict[str, list[float]] = {name: [] for name in settings}
    for repeat in range(arguments.repeats + 1):
        for name, each in settings.items():
            seconds = time_one(each, engine, arguments.batch)
            if repeat:  # the first warms up
                times[name].append(seconds)
    report(times, engine, arguments)


def labelled_model(engine: Engine, steps: int) -> Model:
    """Return a model of the network of the preset "mnist", with ten classes and random weights."""
    spec = ConditionSpec(classes=tuple("0123456789"), class_counts=(1,) * 10, dropout=0.1)
    network = engine.place(build_network(NETWORK, SHAPE, conditions=spec).eval().requires_grad_(False))
    codec = PixelCodec(256, (0.0, 255.0), "uint8")
    advice = SamplingConfig(steps=steps)
    return Model(network, NETWORK, make_schedule("cosine"), "v", codec, SHAPE, conditions=spec, sampling=advice)


def time_one(model: Model, engine: Engine, batch: int) -> float:
    """Return the seconds that a batch takes."""
    start = time.perf_counter()
    with engine.autocast():
        model.sample(batch, label="all", batch_size=batch)
    return time.perf_counter() - start


def report(times: dict[str, list[float]], engine: Engine, arguments: argparse.Namespace) -> None:
    """Print and write what was measured."""
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"{'setting':<34}{'pictures/s':>11}{'times the time':>16}")
    for name, seconds in medians.items():
        print(f"{name:<34}{arguments.batch / seconds:>11.2f}{seconds / medians[PLAIN]:>16.2f}")
    print(f"goal: guidance at most {GOAL} times the time")
    if arguments.json is not None:
        tree = {
            "seconds": times,
            "ratio": {name: seconds / medians[PLAIN] for name, seconds in medians.items()},
            "goal": GOAL,
            "batch": arguments.batch,
            "steps": arguments.steps,
            "engine": replace(engine, threads=torch.get_num_threads()).as_tree(),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }
        write_text(arguments.json, json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
