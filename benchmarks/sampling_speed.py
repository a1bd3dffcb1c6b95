"""Pictures a second of sampling, beside diffusers' DDIMPipeline with the very same weights, in one run.

The network is the CIFAR-10 U-Net of Ho et al. 2020 (35.7 M parameters; random weights, which take the same time). Each
program runs at its default setting, and at every setting that could be its best, in a process of its own; medians of
turns. All steps of a batch cost the same, so `--timed` of the `--steps` are run and timed, and the rest is reckoned.

python benchmarks/sampling_speed.py [--batch 64] [--steps 20] [--timed 3] [--repeats 5] [--compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from peers import EAGER, copy_unet, reference_network
from turns import as_tree, machine, medians, serve, take_turns

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion import make_schedule
from ddpm.engine import choose_engine
from ddpm.files import write_text
from ddpm.model import Model
from ddpm.networks import build_network
from ddpm.sampling import forecast, make_pictures

NETWORK = NetworkConfig(base_channels=128, channel_multipliers=(1, 2, 2, 2), blocks_per_level=2, attention_levels=(1,))
GOALS = {"best to best": "at least 1.5", "best to default": "at least 5"}
SETTINGS = EAGER
COMPILED = ("ours, default, compiled", "diffusers, bfloat16 autocast, channels_last, compiled")
Sampling = Callable[[], object]


def main() -> None:
    """Time every setting, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="of a picture")
    parser.add_argument("--timed", type=int, default=3, help="steps that are run and timed; as many as --steps: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of each program; default: all cores")
    parser.add_argument("--compile", action="store_true", help="also compiled; minutes of compilation on a CPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    if arguments.worker:
        work(arguments.worker, arguments.batch, arguments.timed)
        return
    names = [*SETTINGS, *(COMPILED if arguments.compile else ())]
    passed = ["--batch", str(arguments.batch), "--timed", str(arguments.timed)]
    passed += ["--threads", str(torch.get_num_threads())]
    turns, facts = take_turns(names, passed, arguments.repeats)
    share = arguments.timed / arguments.steps
    rates = {name: arguments.batch * share / seconds for name, seconds in medians(turns, "wall").items()}
    costs = {name: seconds / share / arguments.batch for name, seconds in medians(turns, "processor").items()}
    result = {
        "batch": arguments.batch,
        "steps": arguments.steps,
        "timed steps": arguments.timed,
        "same weights: largest difference of outputs": facts["ours, default"]["difference"],
        "pictures a second": {name: round(rate, 4) for name, rate in rates.items()},
        "processor seconds a picture": {name: round(cost, 4) for name, cost in costs.items()},
        "turns": as_tree(turns),
        "ratios": ratios(rates),
        "ratios of processor time": ratios({name: 1 / cost for name, cost in costs.items()}),
        "goals": GOALS,
        "machine": machine(),
    }
    for name, rate in rates.items():
        print(f"{name:<46}{rate:>8.3f} pictures a second{costs[name]:>8.3f} processor seconds a picture")
    for name, ratio in ratios(rates).items():
        print(f"{name:<46}{ratio:>8.2f} ({GOALS[name]}); of processor time {result['ratios of processor time'][name]}")
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def work(name: str, batch: int, steps: int) -> None:
    """Be one setting."""
    theirs = reference_network().requires_grad_(False)
    if name.startswith("diffusers"):
        serve(their_way(theirs, batch, steps, name), {})
        return
    ours = our_model(theirs, steps)
    apart = difference(theirs, ours)
    serve(our_way(ours, batch, name), {"difference": apart})


def our_model(theirs: UNet2DModel, steps: int) -> Model:
    """Return a model of ours with the same weights."""
    network: Any = build_network(NETWORK, (32, 32, 3))
    copy_unet(theirs, network)
    return Model(
        network=network.eval().requires_grad_(False),
        network_config=NETWORK,
        schedule=make_schedule("linear", 1000),
        parameterization="eps",
        codec=PixelCodec(256, (0.0, 255.0), "uint8"),
        picture_shape=(32, 32, 3),
        sampling=SamplingConfig(sampler="ddim", steps=steps),
    )


def difference(theirs: UNet2DModel, ours: Model) -> float:
    """Return the largest difference of the two networks' outputs."""
    x_t, t = torch.randn(2, 3, 32, 32), torch.full((2,), 500.0)
    with torch.no_grad():
        return float((theirs(x_t, t).sample - ours.network(x_t, t)).abs().max())


def our_way(model: Model, count: int, name: str) -> Sampling:
    """Return the sampling of `ddpm sample`, without its files."""
    engine = choose_engine()
    if "float32" in name:
        engine = replace(engine, precision="float32")
    network = engine.place(model.network)
    if "compiled" in name:
        network.compile()
    placed = replace(model, network=network)
    size = forecast(placed, count, engine).batch_size
    return lambda: list(make_pictures(placed, range(count), seed=0, engine=engine, batch_size=size))


def their_way(network: UNet2DModel, batch: int, steps: int, name: str) -> Sampling:
    """Return the call of DDIMPipeline, with arrays as its output as ours has (bfloat16 weights fail there)."""
    device = choose_engine().device
    unet = network.to(device)
    if "channels_last" in name:
        unet = unet.to(memory_format=torch.channels_last)
    if "compiled" in name:
        unet = torch.compile(unet)
    pipeline = DDIMPipeline(unet, DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        context: AbstractContextManager[object] = (
            torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if "autocast" in name else nullcontext()
        )
        with context:
            return pipeline(batch_size=batch, num_inference_steps=steps, output_type="np")

    return run


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Return our best against their best, and against their default."""
    best = {who: max(rate for name, rate in rates.items() if name.startswith(who)) for who in ("ours", "diffusers")}
    return {
        "best to best": round(best["ours"] / best["diffusers"], 3),
        "best to default": round(best["ours"] / rates["diffusers, default"], 3),
    }


if __name__ == "__main__":
    main()
