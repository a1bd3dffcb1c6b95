"""What training takes of the memory: forecast and measured, with and without gradient checkpointing.

Each setting runs in a process of its own: a forecast, then three optimizer steps as `ddpm train` makes them, on
pictures of random numbers. Measured is by how much the peak of the process exceeds what it took before the network was
built, its libraries loaded (which the first pass of any network does, for about 140 MiB); seconds are the processor's.

What a forecast adds for memory that it does not see was chosen to suit "cifar10" and "64x64" at 8 pictures, "mnist" and
"auto-few" at their presets' batch; "128x128" and other batches test it.

python benchmarks/training_memory.py [--networks cifar10,64x64,mnist,auto-few,128x128] [--batches 8,preset]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from turns import peak_memory

from ddpm.config import Config, ObjectiveConfig, from_tree, merge
from ddpm.config.presets import PRESETS, auto_preset
from ddpm.diffusion import make_schedule
from ddpm.engine import Engine, choose_engine
from ddpm.networks import build_network
from ddpm.networks.levels import recompute_activations
from ddpm.training.batches import Batch
from ddpm.training.ema import Ema
from ddpm.training.forecast import foresee
from ddpm.training.loop import Objective, TrainState, make_optimizer, train_steps

NETWORKS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {  # shape of the pictures, recipe
    "cifar10": ((32, 32, 3), PRESETS["cifar10-paper"]),
    "64x64": ((64, 64, 3), auto_preset((64, 64), 10_000)),
    "mnist": ((28, 28, 1), PRESETS["mnist"]),
    "auto-few": ((64, 64, 3), auto_preset((64, 64), 1000)),
    "128x128": ((128, 128, 3), auto_preset((128, 128), 1000)),
}
STEPS = 3


def main() -> None:
    """Measure every setting, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="8,16")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", nargs=3, metavar=("NETWORK", "BATCH", "CHECKPOINTING"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        name, batch, checkpointing = arguments.worker
        print(json.dumps(measure(name, batch, arguments.precision, checkpointing=checkpointing == "True")))
        return
    print(
        f"{'network':<12}{'batch':>6}{'checkpointing':>15}{'forecast':>12}{'measured':>12}{'error':>8}{'s a step':>10}"
    )
    for name in arguments.networks.split(","):
        for batch in arguments.batches.split(","):
            for checkpointing in (False, True):
                passed = ["--precision", arguments.precision, "--threads", str(arguments.threads)]
                command = [sys.executable, str(Path(__file__)), *passed, "--worker", name, batch, str(checkpointing)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                forecast, measured = found["forecast"] / 2**20, found["measured"] / 2**20
                setting = f"{name:<12}{found['batch']:>6}{'yes' if checkpointing else 'no':>15}"
                print(
                    f"{setting}{forecast:>8.0f} MiB{measured:>8.0f} MiB"
                    f"{forecast / measured - 1:>8.0%}{found['seconds']:>10.2f}",
                    flush=True,
                )


def measure(name: str, batch: str, precision: str, *, checkpointing: bool) -> dict[str, float]:
    """Return pictures a step, forecast and measured bytes, and the processor's seconds a step."""
    shape, recipe = NETWORKS[name]
    engine = choose_engine("cpu", precision)
    tiny = from_tree({"network": {"base_channels": 8, "num_groups": 4}, "training": {"batch_size": 2}})
    train((32, 32, 3), tiny, engine, checkpointing=checkpointing)  # loads libraries
    before = psutil.Process().memory_info().rss
    own = {} if batch == "preset" else {"batch_size": int(batch)}
    config = from_tree(merge(recipe, {"training": {**own, "gradient_checkpointing": checkpointing}}))
    forecast, seconds = train(shape, config, engine, checkpointing=checkpointing)
    measured = peak_memory() - before
    return {"batch": config.training.batch_size, "forecast": forecast, "measured": measured, "seconds": seconds}


def train(shape: tuple[int, int, int], config: Config, engine: Engine, *, checkpointing: bool) -> tuple[int, float]:
    """Make some steps; return the forecast in bytes, and the processor's seconds a step."""
    network = engine.place(build_network(config.network, shape))
    recompute_activations(network, checkpointing)
    objective = Objective(make_schedule("linear", 1000), ObjectiveConfig(), engine, levels=256)
    training = config.training
    pictures = random_batch(training.batch_size, shape)
    memory = foresee(network, objective, pictures, training)
    state = TrainState(
        network, Ema(network, training.ema_decay), make_optimizer(network, training), memory.micro_batch_size
    )
    seconds = []
    for _ in train_steps(state, [pictures] * STEPS, objective, training):
        seconds.append(time.process_time())
    return memory.total(memory.micro_batch_size), (seconds[-1] - seconds[0]) / (STEPS - 1)


def random_batch(batch: int, shape: tuple[int, int, int]) -> Batch:
    """Return a batch of random numbers, for pictures of a shape (height, width, channels)."""
    height, width, channels = shape
    x_0, eps = torch.rand(2, batch, channels, height, width).mul(2).sub(1).unbind()
    u = torch.rand(batch, dtype=torch.float64)
    return Batch(
        rows=torch.arange(batch).numpy(),
        x_0=x_0,
        t=(u * 1000).long(),
        eps=eps,
        dropout_keys=torch.arange(batch),
        u=u,
        conditioned=torch.zeros(batch, dtype=torch.bool),
        weights=torch.ones(batch),
    )


if __name__ == "__main__":
    main()
