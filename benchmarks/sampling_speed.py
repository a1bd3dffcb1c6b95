"""Pictures a second of sampling, beside diffusers' DDIMPipeline with the very same weights, in one run.

The network is the CIFAR-10 U-Net of Ho et al. 2020 (35.7 M parameters; random weights, which take the same time). Each
program runs at its default setting, and at every setting that could be its best; medians of interleaved repeats.

python benchmarks/sampling_speed.py [--batch 64] [--steps 20] [--repeats 3] [--compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from peers import HO, copy_unet

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.diffusion import make_schedule
from ddpm.engine import Engine, choose_engine
from ddpm.files import write_text
from ddpm.model import Model
from ddpm.networks import build_network
from ddpm.sampling import forecast, make_pictures
from ddpm.sampling_config import SamplingConfig

NETWORK = NetworkConfig(base_channels=128, channel_multipliers=(1, 2, 2, 2), blocks_per_level=2, attention_levels=(1,))
GOALS = {"best to best": "at least 1.5", "best to default": "at least 5"}
Sampling = Callable[[], object]


def main() -> None:
    """Time every setting, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also compiled; minutes of compilation on a CPU")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    theirs = reference_network()
    ours = our_model(theirs, arguments.steps)
    apart = difference(theirs, ours)
    settings = {
        **{f"ours, {name}": way for name, way in our_settings(ours, arguments).items()},
        **{f"diffusers, {name}": way for name, way in their_settings(theirs, arguments).items()},
    }
    seconds = measured(settings, arguments.repeats)
    rates = {name: arguments.batch / statistics.median(times) for name, times in seconds.items()}
    result = {
        "batch": arguments.batch,
        "steps": arguments.steps,
        "parameters": ours.num_parameters,
        "same weights: largest difference of outputs": apart,
        "pictures a second": {name: round(rate, 4) for name, rate in rates.items()},
        "seconds": {name: [round(value, 3) for value in times] for name, times in seconds.items()},
        "ratios": ratios(rates),
        "goals": GOALS,
        "machine": machine(),
    }
    for name, rate in rates.items():
        print(f"{name:<42}{rate:>9.3f} pictures a second")
    for name, ratio in ratios(rates).items():
        print(f"{name:<42}{ratio:>9.2f}{'':>3}({GOALS[name]})")
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def reference_network() -> UNet2DModel:
    """Return the network of google/ddpm-cifar10-32, with random weights."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        **HO,
    )
    return network.eval().requires_grad_(False)


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


def our_settings(model: Model, arguments: argparse.Namespace) -> dict[str, Sampling]:
    """Return what to time of ours: the default, then by hand float32, and compiled."""
    engine = choose_engine()
    plain = replace(engine, precision="float32", channels_last=False, native=False)
    settings = {
        "default": our_way(model, engine, arguments.batch),
        "float32": our_way(model, plain, arguments.batch),
    }
    if arguments.compile:
        settings["default, compiled"] = our_way(model, engine, arguments.batch, compiled=True)
    return settings


def our_way(model: Model, engine: Engine, count: int, *, compiled: bool = False) -> Sampling:
    """Return the sampling of `ddpm sample`, without its files."""
    network = engine.place(copy.deepcopy(model.network))
    placed = replace(model, network=torch.compile(network) if compiled else network)
    size = forecast(placed, count, engine).batch_size
    return lambda: list(make_pictures(placed, range(count), seed=0, engine=engine, batch_size=size))


def their_settings(network: UNet2DModel, arguments: argparse.Namespace) -> dict[str, Sampling]:
    """Return what to time of theirs: the default, and what could be faster (bfloat16 weights fail there)."""
    settings = {
        "default": their_way(network, arguments),
        "channels_last": their_way(network, arguments, channels_last=True),
        "bfloat16 autocast, channels_last": their_way(network, arguments, channels_last=True, autocast=True),
    }
    if arguments.compile:
        settings["bfloat16 autocast, channels_last, compiled"] = their_way(
            network, arguments, channels_last=True, autocast=True, compiled=True
        )
    return settings


def their_way(
    network: UNet2DModel,
    arguments: argparse.Namespace,
    *,
    channels_last: bool = False,
    autocast: bool = False,
    compiled: bool = False,
) -> Sampling:
    """Return the call of DDIMPipeline, with arrays as its output as ours has."""
    device = choose_engine().device
    unet = copy.deepcopy(network).to(device)
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    if compiled:
        unet = torch.compile(unet)
    pipeline = DDIMPipeline(unet, DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        context: AbstractContextManager[object] = (
            torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if autocast else nullcontext()
        )
        with context:
            return pipeline(batch_size=arguments.batch, num_inference_steps=arguments.steps, output_type="np")

    return run


def measured(settings: dict[str, Sampling], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each setting, after one run of each that is not counted; repeats are interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for repeat in range(repeats + 1):
        for name, run in settings.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return seconds


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Return our best against their best, and against their default."""
    best = {who: max(rate for name, rate in rates.items() if name.startswith(who)) for who in ("ours", "diffusers")}
    return {
        "best to best": round(best["ours"] / best["diffusers"], 3),
        "best to default": round(best["ours"] / rates["diffusers, default"], 3),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "engine": choose_engine().as_tree(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


if __name__ == "__main__":
    main()
