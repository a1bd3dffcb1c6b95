"""Denoising networks: nn.Modules, tensors in, tensors out; they know no file and no schedule."""

from __future__ import annotations

from torch import nn

from ddpm.config import NetworkConfig
from ddpm.config.conditions import ConditionSpec, TextSpec
from ddpm.errors import ConfigError
from ddpm.networks.mlp import Mlp
from ddpm.networks.text import TextInput
from ddpm.networks.unet import UNet, build_unet

__all__ = ["Mlp", "UNet", "build_network", "build_unet"]


def build_network(
    config: NetworkConfig,
    picture_shape: tuple[int, int, int],
    *,
    learned_variance: bool = False,
    conditions: ConditionSpec | None = None,
) -> nn.Module:
    """Return the network that `config` describes, for pictures of (H, W, C).

    Args:
        config: the description; with self-conditioning, the network reads 2 C channels: x_t, then an estimate of x_0.
        picture_shape: (H, W, C).
        learned_variance: whether it returns 2 C channels: the prediction, then the variance.
        conditions: what it is conditioned on; none: nothing.

    Raises:
        ConfigError: if the description contradicts itself or the shape.
    """
    height, width, channels = picture_shape
    inputs = channels * (2 if config.self_conditioning else 1)
    outputs = channels * (2 if learned_variance else 1)
    spec = conditions or ConditionSpec()
    num_classes, num_numbers = len(spec.classes) or None, len(spec.numbers)
    if config.kind == "mlp":
        if spec.picture is not None:
            raise ConfigError("network.kind is 'mlp', which reads no paired picture; use 'unet', or another condition")
        if spec.text is not None:
            raise ConfigError("network.kind is 'mlp', which reads no text; use 'unet', or another condition")
        return Mlp(
            shape=(inputs, height, width),
            out_channels=outputs,
            width=config.base_channels,
            depth=config.blocks_per_level,
            num_classes=num_classes,
            num_numbers=num_numbers,
        )
    return build_unet(
        config,
        inputs,
        outputs,
        num_classes,
        num_numbers=num_numbers,
        picture_channels=spec.picture_channels,
        text=None if spec.text is None else _text_input(config, spec.text),
    )


def _text_input(config: NetworkConfig, text: TextSpec) -> TextInput:
    return TextInput(
        width=config.text_width, layers=config.text_layers, vocabulary=text.vocabulary, features=text.features
    )
