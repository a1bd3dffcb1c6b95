"""LoRA: low-rank updates of the weights of any network (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ddpm.errors import ConfigError
from ddpm.networks.blocks import Attention
from ddpm.networks.cross_attention import CrossAttention

LoraLayers = Literal["attention", "linear", "all"]
"""Which weights are updated: those of attention, all linear ones, or convolutions too."""


class LowRank(nn.Module):
    """W + scale up down: the sum is the layer's weight, so that nothing else in the network has to know of it.

    Beside a branch of its own, up(down(x)), the product costs out x rank x in operations a pass, which are few, and the
    gradient of W is computed whole before it is projected; in return a merged network computes bit for bit the same.

    Args:
        weight: to be updated, [out, in, ...].
        rank: of the update; where a side of the weight is smaller, that.
        scale: alpha / rank.

    Attributes:
        up: [out, rank], zero at first: the network begins as its base.
        down: [rank, in * ...], normal with variance 1 / (in * ...) at first.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        self.scale = scale
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        self.down = nn.Parameter(torch.randn(rank, inputs, dtype=weight.dtype) / inputs**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, in its dtype, whatever autocast says."""
        with torch.autocast(weight.device.type, enabled=False):
            return updated(weight, self.up, self.down, self.scale)


def updated(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """Return W + scale up down (Hu et al. 2021, Eq. 3) in the shape of W [out, in, ...]."""
    return weight + scale * (up @ down).view(weight.shape)


def add_low_rank(network: nn.Module, *, rank: int, alpha: float, layers: LoraLayers) -> None:
    """Freeze a network, and give its layers low-rank updates to train, drawn from torch's global generator.

    Args:
        network: changed in place; what it computes stays the same, for the updates are zero.
        rank: of the updates.
        alpha: the updates are scaled by alpha / rank.
        layers: which weights are updated.

    Raises:
        ConfigError: if the network has no such layers.
    """
    found = list(_layers(network, layers))
    if not found:
        raise ConfigError(f"lora.layers is '{layers}', but the network has no such layers; use 'all'")
    network.requires_grad_(False)
    for _, layer in found:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha / rank))


def low_rank_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the factors of all updates of a network, by ``LAYER.up`` and ``LAYER.down``."""
    tensors: dict[str, Tensor] = {}
    for name, update in _updates(network):
        tensors |= {f"{name}.up": update.up, f"{name}.down": update.down}
    return tensors


@torch.no_grad()
def merge_low_rank(network: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Add updates to the weights of a network, in place; updates of several adapters add up.

    Args:
        network: without updates of its own.
        tensors: as `low_rank_tensors` returns them.
        scale: of the updates, alpha / rank included; 0 changes no bit.

    Raises:
        ConfigError: for tensors that fit no layer of the network.
    """
    weights = dict(network.named_parameters())
    names = {name.rpartition(".")[0] for name in tensors}
    for name in sorted(names):
        weight, up, down = weights.get(f"{name}.weight"), tensors.get(f"{name}.up"), tensors.get(f"{name}.down")
        if weight is None or up is None or down is None or not _fits(weight, up, down):
            raise ConfigError(f"the update of layer '{name}' fits no layer of this network")
        if scale:
            weight.copy_(updated(weight, up.to(weight.device), down.to(weight.device), scale))


def _fits(weight: Tensor, up: Tensor, down: Tensor) -> bool:
    wanted = tuple(weight.flatten(1).shape) if weight.ndim > 1 else ()
    return up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] and (up.shape[0], down.shape[1]) == wanted


def _layers(network: nn.Module, layers: LoraLayers) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    kinds = (Attention, CrossAttention)
    attending = {id(part) for module in network.modules() if isinstance(module, kinds) for part in module.modules()}
    for name, module in network.named_modules():
        linear = isinstance(module, nn.Linear) and (layers != "attention" or id(module) in attending)
        if linear or (layers == "all" and isinstance(module, nn.Conv2d)):
            assert isinstance(module, nn.Linear | nn.Conv2d)
            yield name, module


def _updates(network: nn.Module) -> Iterator[tuple[str, LowRank]]:
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            for part in module.parametrizations["weight"]:
                if isinstance(part, LowRank):
                    yield name, part
