"""IP-Adapter: decoupled cross-attention over the tokens of an image prompt, on a frozen network (Ye et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.errors import ConfigError
from ddpm.networks.blocks import Attention, Prompt
from ddpm.networks.cross_attention import CrossAttention
from ddpm.networks.prompt import PromptInput, PromptProjection
from ddpm.networks.unet import UNet

_OWN = ("prompted.", "prompt_projection.")  # in the names of an adapter's weights


class PromptAttention(nn.Module):
    """The second half of decoupled cross-attention: keys and values of the image prompt, under the frozen queries.

    Softmax(Q K'^T / sqrt(d)) V' (Ye et al. 2023, Eq. 5), which is added to what the frozen half makes. The values are
    zero at first, so that a network with a new adapter computes what its base does.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.kv = nn.Linear(width, 2 * channels, bias=False)
        with torch.no_grad():
            self.kv.weight[channels:] = 0

    def forward(self, q: Tensor, prompt: Prompt) -> Tensor:
        """Return [B, heads, N, C / heads] for queries of that shape; zeros for pictures without a prompt."""
        batch, heads, _, width = q.shape
        k, v = self.kv(prompt.tokens).view(batch, -1, 2, heads, width).transpose(1, 3).unbind(2)
        h = functional.scaled_dot_product_attention(q, k, v)  # [B, heads, N, C / heads]
        weights: Tensor = prompt.scale * prompt.there.to(h.dtype)
        return weights[:, None, None, None] * h


def add_image_adapter(network: nn.Module, prompt: PromptInput) -> None:
    """Freeze a network, and give it an image adapter to train, drawn from torch's global generator.

    The prompt enters beside each cross-attention over a text; of a network without text, beside its self-attention,
    under the queries of which it stands just as well.

    Args:
        network: changed in place; it computes the same as before.
        prompt: what it is to read.

    Raises:
        ConfigError: if the network has no attention, is no U-Net, or reads image prompts already.
    """
    if not isinstance(network, UNet):
        raise ConfigError("an image prompt enters through attention, and this network is an mlp; use a U-Net")
    if network.prompt_projection is not None:
        raise ConfigError("this model carries an image adapter already; use one at a time")
    crossing = [module for module in network.modules() if isinstance(module, CrossAttention)]
    itself = [module for module in network.modules() if isinstance(module, Attention)]
    attending: Sequence[CrossAttention | Attention] = crossing or itself
    if not attending:
        raise ConfigError("an image prompt enters through attention, and this network has none")
    network.requires_grad_(False)
    for attention in attending:
        attention.prompted = PromptAttention(attention.out.in_features, prompt.width)
    network.prompt_projection = PromptProjection(prompt)


def image_adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network's image adapter, by their names in the network."""
    return {name: tensor for name, tensor in network.state_dict().items() if is_adapters(name)}


def is_adapters(name: str) -> bool:
    """Whether a weight of this name is an image adapter's."""
    return any(own in name for own in _OWN)


def load_image_adapter(network: nn.Module, prompt: PromptInput, tensors: dict[str, Tensor], scale: float) -> None:
    """Give a network an image adapter with these weights.

    Args:
        network: changed in place.
        prompt: what the adapter reads.
        tensors: as `image_adapter_tensors` returns them.
        scale: of what it adds; at 0 nothing is added, and the network computes bit for bit what it did.

    Raises:
        ConfigError: if the weights do not fit, or as `add_image_adapter` says.
    """
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]):  # of weights that are replaced at once
        add_image_adapter(network, prompt)
    network.to(device)
    wanted = image_adapter_tensors(network)
    if wanted.keys() != tensors.keys() or any(wanted[name].shape != tensors[name].shape for name in wanted):
        first = sorted({*wanted} ^ {*tensors} or [name for name in wanted if wanted[name].shape != tensors[name].shape])
        raise ConfigError(f"the image adapter does not fit this network (first difference: {first[0]})")
    network.load_state_dict(tensors, strict=False)
    network.requires_grad_(False)
    assert isinstance(network, UNet)  # `add_image_adapter` refuses others
    network.prompt_scale = scale
