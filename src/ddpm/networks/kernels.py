"""Whether a network's parts run in the compiled kernels."""

from __future__ import annotations

from torch import nn

from ddpm.networks.blocks import Attention
from ddpm.networks.conv import Conv3x3
from ddpm.networks.norm import GroupNorm


def use_kernels(network: nn.Module, wanted: bool) -> None:
    """Let the parts of a network use the compiled kernels of `ddpm.native` where they can, or torch's operations."""
    for module in network.modules():
        if isinstance(module, Attention | Conv3x3 | GroupNorm):
            module.fused = wanted


def keep_no_weights(network: nn.Module) -> None:
    """Let no part of a network keep what it has computed from its weights."""
    for module in network.modules():
        if isinstance(module, Conv3x3):
            module.keeps = False
