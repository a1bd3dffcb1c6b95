"""The parts of a U-Net: time embedding, residual block, attention, resampling.

Activations keep the memory format that the weights ask for: with channels_last weights nothing here copies a
tensor only to reorder it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm import native
from ddpm.errors import ConfigError
from ddpm.networks.conv import Conv3x3, double
from ddpm.networks.norm import GroupNorm

TimeConditioning = Literal["add", "scale_shift"]
Resample = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Context:
    """The tokens that cross-attention looks at.

    Attributes:
        tokens: [B, M, D]; the first is learned, and all that there is where a picture has no text.
        there: bool [B, M], false for padding; true for the first, so that no softmax is over padding alone.
    """

    tokens: Tensor
    there: Tensor

    def mean(self) -> Tensor:
        """Return the mean of the tokens that are there, [B, D], float32 or better."""
        weights = self.there[:, :, None].to(torch.promote_types(self.tokens.dtype, torch.float32))  # [B, M, 1]
        return (self.tokens * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of image prompts, that attention looks at beside its own (`image_adapter`).

    Attributes:
        tokens: [B, P, D].
        there: bool [B], false for pictures without a prompt.
        scale: of what the prompts add.
    """

    tokens: Tensor
    there: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """What blocks read besides their activations; a residual block looks up its own number.

    Attributes:
        embeddings: for each block, the projected embedding of time and class, [B, C] or [B, 2C].
        dropout_states: for each block, int64 [B] from `dropout_states`; none: no dropout.
        context: what cross-attention looks at; none: there is no such attention.
        prompt: image prompts; none: there are none, or at scale 0.
    """

    embeddings: Sequence[Tensor]
    dropout_states: Sequence[Tensor] | None
    context: Context | None = None
    prompt: Prompt | None = None


def time_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Return the sinusoidal embedding of time (Vaswani et al. 2017; frequencies of Ho et al. 2020's code).

    Args:
        t: [B], of any real type; times off the integer grid are embedded as they are.
        width: width of the embedding; an odd width ends in a column of zeros.
        max_period: the longest wave, in units of t over 2 pi.

    Returns:
        [B, width], sines then cosines; float64 if `t` is float64, else float32.
    """
    half = width // 2
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    exponents = torch.arange(half, device=t.device, dtype=dtype) / max(half - 1, 1)
    angles = t.to(dtype)[:, None] * torch.exp(-math.log(max_period) * exponents)  # [B, width / 2]
    zeros = [angles.new_zeros(len(t), 1)] if width % 2 else []
    return torch.cat([angles.sin(), angles.cos(), *zeros], dim=1)  # [B, width]


def zero_init(module: nn.Conv2d | nn.Linear) -> None:
    """Set weight and bias to zero, so that the branch that ends here starts as the zero function."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def halve(x: Tensor) -> Tensor:
    """Return the means of 2x2 pixels, [B, C, H/2, W/2]."""
    return functional.avg_pool2d(x, 2)


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution (Ho et al. 2020).

    The picture is padded on the right and at the bottom only, as TensorFlow's "SAME" does for even sizes and the
    published weights expect. It costs one copy of the activations.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return [B, C, H/2, W/2]; `inputs` is there for the residual block that can stand in this place."""
        h: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution (Ho et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return [B, C, 2H, 2W]; `inputs` is there for the residual block that can stand in this place."""
        h: Tensor = self.conv(x, doubled=True)
        return h


class ResBlock(nn.Module):
    """Residual block of Ho et al. 2020; with the options, of Dhariwal & Nichol 2021.

    Starts as its shortcut: the second convolution is zero.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_groups: groups of GroupNorm, reduced where they do not divide.
        dropout: share of activations dropped before the second convolution, if there are dropout states.
        time_conditioning: whether the embedding is added, or scales and shifts the second norm.
        resample: halve or double the picture inside, on both branches (BigGAN, Brock et al. 2019).

    Attributes:
        number: the place of the block's own entries in `BlockInputs`.
        embedding_width: how many channels the projected embedding must have.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_groups: int,
        dropout: float,
        time_conditioning: TimeConditioning,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.number = 0
        self.dropout = dropout
        self.scale_shift = time_conditioning == "scale_shift"
        self.resample = {"up": double, "down": halve, None: None}[resample]
        self.embedding_width = out_channels * (2 if self.scale_shift else 1)
        self.norm1 = GroupNorm(in_channels, num_groups)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, num_groups)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        zero_init(self.conv2)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """Return [B, out_channels, H', W'], where H', W' are H, W, halved or doubled if the block resamples."""
        embedding = inputs.embeddings[self.number]  # [B, C or 2C]
        h = self.norm1(x, silu=True)  # [B, in_channels, H, W]
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)  # [B, in_channels, H', W']
        h = self.conv1(h)  # [B, out_channels, H', W']
        state = None if inputs.dropout_states is None else inputs.dropout_states[self.number]
        scale, shift = embedding.chunk(2, dim=1) if self.scale_shift else (None, None)  # [B, out_channels] each
        h = self.norm2(
            h,
            offset=None if self.scale_shift else embedding,
            scale=scale,
            shift=shift,
            silu=True,
            dropout_state=state if self.dropout > 0 else None,
            dropped=self.dropout,
        )
        result: Tensor = self.conv2(h, residual=self.shortcut(x))  # [B, out_channels, H', W']
        return result


class Attention(nn.Module):
    """Self-attention over all pixels (Ho et al. 2020; several heads: Dhariwal & Nichol 2021).

    Starts as the identity: the output projection is zero.

    Attributes:
        fused: whether to use the compiled kernel where it can read the activations.
        prompted: what an image adapter adds under the same queries; none: there is no adapter.

    Raises:
        ConfigError: if `head_channels` does not divide `channels`.
    """

    def __init__(self, channels: int, *, num_groups: int, head_channels: int | None) -> None:
        super().__init__()
        self.prompted: nn.Module | None = None
        self.heads = count_heads(channels, head_channels)
        self.norm = GroupNorm(channels, num_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.fused = False
        zero_init(self.out)

    def forward(self, x: Tensor, prompt: Prompt | None = None) -> Tensor:
        """Return [B, C, H, W]; the kernel's softmax is float32 or better whatever the dtype of `x`."""
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # [B, N, C]
        qkv = self.qkv(pixels).view(batch, height * width, 3, self.heads, -1)  # [B, N, 3, heads, D]
        h = self.out(self._attend(qkv).reshape(batch, height * width, channels))  # [B, N, C]
        if self.prompted is not None and prompt is not None:
            h = h + self.prompted(qkv[:, :, 0].transpose(1, 2), (height, width), prompt)
        result: Tensor = x + h.view(batch, height, width, channels).permute(0, 3, 1, 2)  # [B, C, H, W]
        return result

    def _attend(self, qkv: Tensor) -> Tensor:
        if self.fused and native.attends(qkv):
            return native.attention(qkv)  # [B, N, heads, D]
        q, k, v = qkv.transpose(1, 3).unbind(2)  # [B, heads, N, D]
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # [B, N, heads, D]


def count_heads(channels: int, head_channels: int | None) -> int:
    """Return the number of attention heads over `channels`.

    Raises:
        ConfigError: if `head_channels` does not divide `channels`.
    """
    if head_channels is None:
        return 1
    if channels % head_channels:
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        close = min(divisors, key=lambda n: abs(n - head_channels))
        raise ConfigError(
            f"network.head_channels is {head_channels}, which does not divide the {channels} channels of a level "
            f"that attends (the last level always does); the nearest divisor is {close}"
        )
    return channels // head_channels
