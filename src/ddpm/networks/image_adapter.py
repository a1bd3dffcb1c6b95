"""IP-Adapter: decoupled cross-attention over the tokens of an image prompt, on a frozen network (Ye et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError
from ddpm.networks.attend import attend
from ddpm.networks.blocks import Attention, Prompt, zero_init
from ddpm.networks.cross_attention import CrossAttention
from ddpm.networks.prompt import PromptInput, PromptProjection
from ddpm.networks.unet import UNet

_OWN = ("prompted.", "prompt_projection.")  # in the names of an adapter's weights


class PromptAttention(nn.Module):
    """The second half of decoupled cross-attention: what the image prompt adds, under the frozen queries.

    Softmax(Q K'^T / sqrt(d) - s |p - p'|^2) V' (Ye et al. 2023, Eq. 5), then an output layer of its own. Two things are
    not the paper's. The output layer: that of a small base, which began at zero itself, lets little through (half of
    its singular values are below 0.04, the largest about 1), and whatever the prompt has to say would have to squeeze
    through it. It is zero at first, so that a network with a new adapter computes what its base does. And where tokens
    are of places p' in the prompt, a pixel at p begins with those of its own place, the sharper the larger s of each
    head, which is trained: the frozen queries say hardly where they are, least of all in noise.

    Args:
        channels: of the pixels.
        heads: that they attend with.
        prompt: what the network reads.
    """

    def __init__(self, channels: int, heads: int, prompt: PromptInput) -> None:
        super().__init__()
        self.side = prompt.side
        self.kv = nn.Linear(prompt.width, 2 * channels, bias=False)
        self.log_sharpness = None if self.side is None else nn.Parameter(torch.zeros(heads))
        self.out = nn.Linear(channels, channels)
        zero_init(self.out)

    def forward(self, q: Tensor, size: tuple[int, int], prompt: Prompt) -> Tensor:
        """Return what is added to the pixels, [B, N, C]: zeros for pictures without a prompt.

        Args:
            q: [B, heads, N, C / heads], the frozen queries of N = height width pixels.
            size: (height, width).
            prompt: the tokens, and their scale.
        """
        batch, heads, pixels, width = q.shape
        k, v = self.kv(prompt.tokens).view(batch, -1, 2, heads, width).transpose(1, 3).unbind(2)
        h = attend(q, k, v, bias=self._nearness(size, q))  # [B, heads, N, C / heads]
        h = self.out(h.transpose(1, 2).reshape(batch, pixels, heads * width))  # [B, N, C]
        weights = prompt.scale * prompt.there.to(h.dtype)
        result: Tensor = weights[:, None, None] * h
        return result

    def _nearness(self, size: tuple[int, int], q: Tensor) -> Tensor | None:
        """Return what is added to the scores, [heads, N, P]; none: the tokens are of the whole picture."""
        if self.side is None or self.log_sharpness is None:
            return None
        apart = squared_distances(size, self.side).to(q.device)  # [N, P]
        return (-self.log_sharpness.exp()[:, None, None] * apart).to(q.dtype)


def squared_distances(size: tuple[int, int], side: int) -> Tensor:
    """Return how far each pixel of (height, width) is from each place of a grid, squared, [N, P]; a place is 1 wide."""
    rows, columns = ((torch.arange(count) + 0.5) * side / count for count in size)
    pixels = torch.cartesian_prod(rows, columns)  # [N, 2]
    middles = torch.arange(side) + 0.5
    places = torch.cartesian_prod(middles, middles)  # [P, 2]
    return (pixels[:, None] - places).square().sum(2)


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
        attention.prompted = PromptAttention(attention.out.in_features, attention.heads, prompt)
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
