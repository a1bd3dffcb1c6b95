"""Pictures a second of training, beside other programs and the attainable rate, in one run.

The network is the CIFAR-10 U-Net of Ho et al. 2020 (35.7 M parameters, dropout 0.1); a step is noising, forward,
backward, clipping of the gradient, Adam and the moving average of the weights, on pictures made of random numbers. Each
program runs at its default setting, and at every setting that could be its best, in a process of its own, which also
tells its peak memory; medians of turns.

The attainable rate is that of the matrix library: every convolution and matrix product of the network alone, forward
and for both gradients, in bfloat16 and channels_last, and nothing between them.

denoising-diffusion-pytorch is timed too where it can be imported; its U-Net of the same widths is another network (its
number of parameters is in the JSON).

python benchmarks/training_speed.py [--batch 32] [--repeats 5] [--json FILE]
on a slow machine: python benchmarks/training_speed.py --batch 4 --repeats 2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from peers import EAGER, copy_unet, reference_network
from torch import Tensor, nn
from torch.nn import functional
from turns import as_tree, machine, medians, serve, take_turns

from ddpm.config import NetworkConfig, ObjectiveConfig, TrainingConfig
from ddpm.diffusion import make_schedule
from ddpm.engine import choose_engine
from ddpm.files import write_text
from ddpm.networks import build_network
from ddpm.networks.blocks import Attention
from ddpm.networks.conv import Conv3x3
from ddpm.training.batches import Batch
from ddpm.training.ema import Ema
from ddpm.training.loop import Objective, TrainState, make_optimizer, train_steps

NETWORK = NetworkConfig(
    base_channels=128, channel_multipliers=(1, 2, 2, 2), blocks_per_level=2, attention_levels=(1,), dropout=0.1
)
TRAINING = TrainingConfig(learning_rate=2e-4, weight_decay=0.0, gradient_clip=1.0)
GOALS = {"best to best": "at least 2", "best to default": "at least 5", "share of attainable": "at least 0.6"}
ATTAINABLE = "convolutions and products alone"
SETTINGS = (*EAGER, ATTAINABLE)
LUCIDRAINS = ("lucidrains, default", "lucidrains, bfloat16 autocast, channels_last")
Step = Callable[[], object]


def main() -> None:
    """Time every setting, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of each program; default: all cores")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    torch.manual_seed(0)
    if arguments.worker:
        serve(*step_of(arguments.worker, arguments.batch))
        return
    names = [*SETTINGS, *(LUCIDRAINS if find_spec("denoising_diffusion_pytorch") else ())]
    passed = ["--batch", str(arguments.batch), "--threads", str(torch.get_num_threads())]
    turns, facts = take_turns(names, passed, arguments.repeats)
    seconds, processor = medians(turns, "wall"), medians(turns, "processor")
    result = {
        "batch": arguments.batch,
        "pictures a second": {name: round(arguments.batch / wall, 3) for name, wall in seconds.items()},
        "processor seconds a picture": {name: round(cost / arguments.batch, 4) for name, cost in processor.items()},
        "facts": facts,
        "turns": as_tree(turns),
        "ratios": ratios(seconds),
        "ratios of processor time": ratios(processor),
        "goals": GOALS,
        "machine": machine(),
    }
    for name, wall in seconds.items():
        memory = max(turn.memory for turn in turns[name]) / 2**20
        cost = processor[name] / arguments.batch
        print(f"{name:<46}{arguments.batch / wall:>8.2f} pictures a second{cost:>7.3f} processor s{memory:>7.0f} MiB")
    for name, ratio in ratios(seconds).items():
        print(f"{name:<46}{ratio:>8.2f} ({GOALS[name]}); of processor time {ratios(processor)[name]:.2f}")
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Return how many times faster our best is than diffusers', and its share of the attainable rate."""
    best = {who: min(time for name, time in seconds.items() if name.startswith(who)) for who in ("ours", "diffusers")}
    return {
        "best to best": round(best["diffusers"] / best["ours"], 3),
        "best to default": round(seconds["diffusers, default"] / best["ours"], 3),
        "share of attainable": round(seconds[ATTAINABLE] / best["ours"], 3),
    }


def step_of(name: str, batch: int) -> tuple[Step, dict[str, Any]]:
    """Return one step of a setting, and what is to be known about it."""
    if name == ATTAINABLE:
        return products_alone(batch), {}
    if name.startswith("ours"):
        return our_step(name, batch)
    network, loss = their_loss(name)
    return their_step(name, network, loss, batch), {"parameters": sum(each.numel() for each in network.parameters())}


def our_step(name: str, batch: int) -> tuple[Step, dict[str, Any]]:
    """Return a step of `ddpm train`, without its files."""
    engine = choose_engine()
    if "float32" in name:
        engine = replace(engine, precision="float32")
    network: Any = build_network(NETWORK, (32, 32, 3))
    copy_unet(reference_network(), network)
    network = engine.place(network)
    optimizer = make_optimizer(network, TRAINING)
    state = TrainState(network, Ema(network, TRAINING.ema_decay), optimizer, micro_batch_size=batch)
    objective = Objective(make_schedule("linear", 1000), ObjectiveConfig(), engine, levels=256)
    steps = train_steps(state, our_batches(batch), objective, TRAINING)
    return lambda: next(steps), {"parameters": sum(each.numel() for each in network.parameters())}


def our_batches(batch: int) -> Iterator[Batch]:
    """Yield batches of random numbers."""
    number = 0
    while True:
        x_0, eps = torch.rand(2, batch, 3, 32, 32).mul(2).sub(1).unbind()
        u = torch.rand(batch, dtype=torch.float64)
        yield Batch(
            rows=np.arange(batch),
            x_0=x_0,
            t=(u * 1000).long(),
            eps=eps,
            dropout_keys=torch.arange(number, number + batch),
            u=u,
            conditioned=torch.zeros(batch, dtype=torch.bool),
            weights=torch.ones(batch),
        )
        number += batch


def their_loss(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the network of another program, and its loss of a batch in [-1, 1]."""
    if name.startswith("lucidrains"):
        return lucidrains_loss()
    network = reference_network(dropout=0.1).train()
    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def loss(x_0: Tensor) -> Tensor:
        eps, t = torch.randn_like(x_0), torch.randint(0, 1000, (len(x_0),))
        output = network(scheduler.add_noise(x_0, eps, t), t).sample
        return functional.mse_loss(output.float(), eps)

    return network, loss


def lucidrains_loss() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the U-Net of denoising-diffusion-pytorch of the same widths, and its loss."""
    # Only its Trainer uses these; they bring packages that are not needed for a step.
    for missing in ("torchvision", "accelerate", "pytorch_fid"):
        if find_spec(missing) is None:
            sys.modules[missing] = types.ModuleType(missing)
            vars(sys.modules[missing]).update(transforms=None, utils=None, Accelerator=None)
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet

    network = Unet(dim=128, dim_mults=(1, 2, 2, 2), dropout=0.1)
    diffusion = GaussianDiffusion(network, image_size=32, timesteps=1000)
    return network, lambda x_0: diffusion((x_0 + 1) / 2)


def their_step(name: str, network: nn.Module, loss: Callable[[Tensor], Tensor], batch: int) -> Step:
    """Return a step as diffusers' training example makes it; at its best with the fused optimizer and average."""
    best = "channels_last" in name
    if best:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0, fused=best or None)
    average = EMAModel(network.parameters(), foreach=best)

    def run() -> None:
        context: AbstractContextManager[object] = (
            torch.autocast("cpu", dtype=torch.bfloat16) if "autocast" in name else nullcontext()
        )
        x_0 = torch.rand(batch, 3, 32, 32).mul(2).sub(1)
        with context:
            value = loss(x_0.to(memory_format=torch.channels_last) if best else x_0)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.step(network.parameters())
        optimizer.zero_grad()

    return run


def products_alone(batch: int) -> Step:
    """Return the convolutions and matrix products of a step, each forward and for both gradients."""
    network = build_network(NETWORK, (32, 32, 3))
    found: list[Step] = []

    def note(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, Attention):
            found.extend(attention_products(batch, given[0].shape[2] * given[0].shape[3], module.qkv.in_features))
        elif isinstance(module, nn.Linear):
            found.extend(linear_products(batch * (given[0].numel() // given[0].shape[-1]), module))
        elif isinstance(module, nn.Conv2d):
            doubled = isinstance(module, Conv3x3) and output.shape[2] > given[0].shape[2]
            scale = 2 if doubled else 1
            found.extend(conv_products(batch, module, [scale * side for side in given[0].shape[2:]]))

    for module in network.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    return lambda: [run() for run in found]


def operand(*shape: int) -> Tensor:
    """Return numbers in bfloat16, pictures in channels_last."""
    drawn = torch.randn(shape).bfloat16()
    return drawn.to(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def conv_products(batch: int, conv: nn.Conv2d, sides: list[int]) -> list[Step]:
    """Return a convolution, and both of its gradients in one call."""
    x, weight = operand(batch, conv.in_channels, *sides), operand(*conv.weight.shape)
    stride, padding = list(conv.stride), [int(side) for side in conv.padding]
    dy = torch.randn_like(functional.conv2d(x, weight, None, stride, padding))

    def backward() -> object:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, (True, True, False)
        )

    return [lambda: functional.conv2d(x, weight, None, stride, padding), backward]


def linear_products(rows: int, linear: nn.Linear) -> list[Step]:
    """Return a linear layer's product and those of both gradients."""
    x, weight, dy = operand(rows, linear.in_features), operand(*linear.weight.shape), operand(rows, linear.out_features)
    return [lambda: x @ weight.T, lambda: dy @ weight, lambda: dy.T @ x]


def attention_products(batch: int, pixels: int, width: int) -> list[Step]:
    """Return the two products of attention, and the four of their gradients."""
    q, k, weights = operand(batch, pixels, width), operand(batch, pixels, width), operand(batch, pixels, pixels)
    scores, values = (lambda: q @ k.mT), (lambda: weights @ k)
    return [scores, values, scores, values, values, values]


if __name__ == "__main__":
    main()
