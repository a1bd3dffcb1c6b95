"""Denoising networks: nn.Modules, tensors in, tensors out; they know no file and no schedule."""

from __future__ import annotations

from torch import nn

from ddpm.config import NetworkConfig
from ddpm.networks.mlp import Mlp
from ddpm.networks.unet import UNet, build_unet

__all__ = ["Mlp", "UNet", "build_network", "build_unet"]


def build_network(config: NetworkConfig, picture_shape: tuple[int, int, int]) -> nn.Module:
    """Return the network that `config` describes, for pictures of (H, W, C).

    Raises:
        ConfigError: if the description contradicts itself or the shape.
    """
    height, width, channels = picture_shape
    if config.kind == "mlp":
        return Mlp(shape=(channels, height, width), width=config.base_channels, depth=config.blocks_per_level)
    return build_unet(config, channels)
