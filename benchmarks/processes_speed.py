"""A training step of one process with N threads beside that of N processes with one thread each, in turns.

Both make the same steps of the same U-Net (the CIFAR-10 network of Ho et al. 2020, by default at half its width), the
same batch, on pictures made of random numbers. Processor seconds are those of all processes together. The goal: N
processes take at most 15 % longer.

python benchmarks/processes_speed.py [--channels 64] [--batch 32] [--processes 2] [--repeats 7] [--json FILE]
on a slow machine: python benchmarks/processes_speed.py --channels 32 --batch 8 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import Turn, as_tree, machine, medians, serve, take_turns

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig, ObjectiveConfig, TrainingConfig
from ddpm.diffusion import make_schedule
from ddpm.engine import choose_engine
from ddpm.files import write_text
from ddpm.networks import build_network
from ddpm.processes import ALONE, Group, joined
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.ema import Ema
from ddpm.training.loop import Objective, TrainState, make_optimizer, train_steps

ONE, MANY = "one process", "processes"
_WARM = 3  # steps before any is timed: the first two let gradients travel after the backward pass


def main() -> None:
    """Time both, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments)
        return
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    words = [f"--{name}={getattr(arguments, name)}" for name in ("channels", "batch", "processes")]
    turns, facts = take_turns((ONE, MANY), [*words, f"--port={port}"], arguments.repeats)
    report(turns, facts, arguments)


def report(turns: dict[str, list[Turn]], facts: dict[str, Any], arguments: argparse.Namespace) -> None:
    ratios = {
        of: [getattr(many, of) / getattr(one, of) for one, many in zip(turns[ONE], turns[MANY], strict=True)]
        for of in ("wall", "processor")
    }
    count = arguments.processes
    print(f"{'a step of':<32} {'wall, s':>9} {'processor, s':>13}")
    for name, words in ((ONE, f"1 process, {count} threads"), (MANY, f"{count} processes, 1 thread each")):
        print(f"{words:<32} {medians(turns, 'wall')[name]:>9.3f} {medians(turns, 'processor')[name]:>13.3f}")
    for of, values in ratios.items():
        print(f"{of}: {np.median(values):.2f} times as long, median of turns ({min(values):.2f} to {max(values):.2f})")
    print("goal: at most 1.15 times, by the wall clock, on a quiet machine")
    if arguments.json:
        tree = {"machine": machine(), "facts": facts, "turns": as_tree(turns), "ratios": ratios}
        write_text(arguments.json, json.dumps(tree, indent=2) + "\n")


def work(arguments: argparse.Namespace) -> None:
    """Be one of the two settings, or one of the other processes of the second."""
    if arguments.worker == ONE:
        torch.set_num_threads(arguments.processes)
        serve(warmed(step_of(arguments, ALONE)), {"threads": arguments.processes})
        return
    peers: list[subprocess.Popen[bytes]] = []
    if arguments.rank == 0:
        words = [sys.executable, *sys.argv]
        peers = [
            # The driver talks to the first process alone.
            subprocess.Popen([*words, f"--rank={rank}"], stdin=subprocess.DEVNULL, stdout=sys.stderr)
            for rank in range(1, arguments.processes)
        ]
    place = {"RANK": arguments.rank, "LOCAL_RANK": arguments.rank}
    sizes = {"WORLD_SIZE": arguments.processes, "LOCAL_WORLD_SIZE": arguments.processes}
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": arguments.port}
    os.environ |= {name: str(value) for name, value in {**place, **sizes, **where}.items()}
    torch.set_num_threads(1)
    try:
        with joined() as group:
            lead(arguments, group) if group.is_first else follow(arguments, group)
    finally:
        for peer in peers:
            peer.terminate()


def lead(arguments: argparse.Namespace, group: Group) -> None:
    step = step_of(arguments, group)
    spent = 0.0

    def timed() -> None:
        nonlocal spent
        step()
        spent = sum(group.every(time.process_time()))

    serve(warmed(timed), {"threads": 1, "links": group.words}, lambda: spent)


def follow(arguments: argparse.Namespace, group: Group) -> None:
    step = step_of(arguments, group)
    try:
        while True:
            step()
            group.every(time.process_time())
    except RuntimeError:  # the first process has ended
        return


def warmed(step: Callable[[], object]) -> Callable[[], object]:
    """Return a step that is made some times more when it is first asked for."""
    for _ in range(_WARM - 1):
        step()
    return step


def step_of(arguments: argparse.Namespace, group: Group) -> Callable[[], object]:
    engine = choose_engine("cpu")
    config = NetworkConfig(
        base_channels=arguments.channels, channel_multipliers=(1, 2, 2, 2), attention_levels=(1,), dropout=0.1
    )
    training = TrainingConfig(batch_size=arguments.batch)
    torch.manual_seed(0)
    network = engine.place(build_network(config, (32, 32, 3)))
    state = TrainState(network, Ema(network, 0.9999), make_optimizer(network, training), arguments.batch)
    schedule = make_schedule("linear", 1000)
    objective = Objective(schedule, ObjectiveConfig(), engine, levels=256)
    pictures = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    source = BatchSource(
        pictures=pictures,
        rows=np.arange(len(pictures)),
        codec=PixelCodec(256, (0.0, 255.0), "uint8"),
        batch_size=arguments.batch,
        num_timesteps=len(schedule),
        seed=0,
        flip=True,
        part=group.part(arguments.batch),
    )

    def batches() -> Iterator[Batch]:
        number = 0
        while True:
            yield source.batch(number)
            number += 1

    steps = train_steps(state, batches(), objective, training, group)
    return lambda: next(steps)


if __name__ == "__main__":
    main()
