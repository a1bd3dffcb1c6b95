"""Whether a device computes what a CPU computes: one tiny training step on both, compared."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ddpm.networks.unet import UNet

_TOLERANCE = 1e-3  # of the largest number: float32 on different hardware differs by 1e-6, a wrong kernel by all of it


@lru_cache(maxsize=8)
def trouble_with(device: str) -> str | None:
    """Return what is wrong with a device, in words, or none. It costs a second at the first call.

    Output and gradients of a small U-Net, with all operations that training uses, are compared with those of the CPU.
    """
    expected = tiny_step("cpu")
    try:
        found = tiny_step(device)
    except (RuntimeError, TypeError) as error:
        return f"it cannot run a network ({str(error).splitlines()[0]})"
    for here, there in zip(expected, found, strict=True):
        scale = max(float(here.abs().max()), 1e-6)
        off = float((here - there).abs().max()) / scale
        if not off <= _TOLERANCE:  # one that is not a number, too
            return f"it computes other numbers than the CPU (off by {off:.1g} of the largest; expected below 1e-3)"
    return None


def tiny_step(device: str) -> list[Tensor]:
    """Return the output and all gradients of one step of a small U-Net in float32, computed on a device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(in_channels=3, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, dropout=0.2)
        for weight in network.parameters():  # those that start as zero would hide what is behind them
            torch.nn.init.normal_(weight, std=0.2)
        x_t = torch.randn(2, 3, 8, 8)
    network.to(device)
    output = network(x_t.to(device), torch.tensor([3.0, 700.0]).to(device), dropout_keys=torch.arange(2).to(device))
    output.square().mean().backward()
    return [output.detach().cpu(), *(weight.grad.cpu() for weight in network.parameters() if weight.grad is not None)]
