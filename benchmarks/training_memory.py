"""What training takes of the memory: forecast and measured, with and without gradient checkpointing.

Each setting runs in a process of its own: a forecast, then three optimizer steps as `ddpm train` makes them, on
pictures of random numbers. Measured is by how much the peak of the process exceeds what it took before the network was
built, its libraries loaded (which the first pass of any network does, for about 140 MiB); seconds are the processor's.

python benchmarks/training_memory.py [--networks cifar10,64x64] [--batches 8,16] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from turns import peak_memory

from ddpm.config import NetworkConfig, ObjectiveConfig, TrainingConfig
from ddpm.diffusion import make_schedule
from ddpm.engine import Engine, choose_engine
from ddpm.networks import build_network
from ddpm.networks.levels import recompute_activations
from ddpm.training.batches import Batch
from ddpm.training.ema import Ema
from ddpm.training.forecast import foresee
from ddpm.training.loop import Objective, TrainState, make_optimizer, train_steps

NETWORKS = {
    "cifar10": (32, NetworkConfig(dropout=0.1)),
    "64x64": (
        64,
        NetworkConfig(
            base_channels=64, channel_multipliers=(1, 2, 4, 4), attention_levels=(2, 3), head_channels=32, num_groups=8
        ),
    ),
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
        print(json.dumps(measure(name, int(batch), arguments.precision, checkpointing=checkpointing == "True")))
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
                setting = f"{name:<12}{batch:>6}{'yes' if checkpointing else 'no':>15}"
                print(
                    f"{setting}{forecast:>8.0f} MiB{measured:>8.0f} MiB"
                    f"{forecast / measured - 1:>8.0%}{found['seconds']:>10.2f}",
                    flush=True,
                )


def measure(name: str, batch: int, precision: str, *, checkpointing: bool) -> dict[str, float]:
    """Return forecast and measured bytes, and the processor's seconds a step."""
    side, config = NETWORKS[name]
    engine = choose_engine("cpu", precision)
    train(32, NetworkConfig(base_channels=8, num_groups=4), 2, engine, checkpointing=checkpointing)  # loads libraries
    before = psutil.Process().memory_info().rss
    forecast, seconds = train(side, config, batch, engine, checkpointing=checkpointing)
    return {"forecast": forecast, "measured": peak_memory() - before, "seconds": seconds}


def train(side: int, config: NetworkConfig, batch: int, engine: Engine, *, checkpointing: bool) -> tuple[int, float]:
    """Make some steps; return the forecast in bytes, and the processor's seconds a step."""
    network = engine.place(build_network(config, (side, side, 3)))
    recompute_activations(network, checkpointing)
    objective = Objective(make_schedule("linear", 1000), ObjectiveConfig(), engine, levels=256)
    training = TrainingConfig(batch_size=batch)
    pictures = random_batch(batch, side)
    memory = foresee(network, objective, pictures, training)
    state = TrainState(network, Ema(network, training.ema_decay), make_optimizer(network, training), batch)
    seconds = []
    for _ in train_steps(state, [pictures] * STEPS, objective, training):
        seconds.append(time.process_time())
    return memory.total(memory.micro_batch_size), (seconds[-1] - seconds[0]) / (STEPS - 1)


def random_batch(batch: int, side: int) -> Batch:
    """Return a batch of random numbers."""
    x_0, eps = torch.rand(2, batch, 3, side, side).mul(2).sub(1).unbind()
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
