"""The levels of a U-Net: what all blocks of one resolution share, on the way down and on the way up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.errors import ConfigError
from ddpm.networks.blocks import (
    Attention,
    BlockInputs,
    Downsample,
    Resample,
    ResBlock,
    TimeConditioning,
    Upsample,
)
from ddpm.networks.cross_attention import CrossAttention

Resampling = Literal["conv", "residual"]


@dataclass(frozen=True)
class Parts:
    """What all blocks of one network have in common."""

    num_groups: int
    head_channels: int | None
    dropout: float
    time_conditioning: TimeConditioning
    resampling: Resampling
    context_width: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network.dropout is {self.dropout}; expected 0 up to, not including, 1")
        _check_choice("time_conditioning", self.time_conditioning, get_args(TimeConditioning))
        _check_choice("resampling", self.resampling, get_args(Resampling))

    def block(self, in_channels: int, out_channels: int, resample: Resample | None = None) -> ResBlock:
        """Return a residual block."""
        return ResBlock(
            in_channels,
            out_channels,
            num_groups=self.num_groups,
            dropout=self.dropout,
            time_conditioning=self.time_conditioning,
            resample=resample,
        )

    def attention(self, channels: int) -> Attention:
        """Return a self-attention."""
        return Attention(channels, num_groups=self.num_groups, head_channels=self.head_channels)

    def cross_attention(self, channels: int) -> CrossAttention | None:
        """Return an attention over the tokens of a text; none: there is no text."""
        if self.context_width is None:
            return None
        return CrossAttention(
            channels, self.context_width, num_groups=self.num_groups, head_channels=self.head_channels
        )

    def resampling_step(self, channels: int, resample: Resample) -> nn.Module:
        """Return the step from one resolution to the next."""
        if self.resampling == "residual":
            return self.block(channels, channels, resample)
        return Downsample(channels) if resample == "down" else Upsample(channels)


class Level(nn.Module):
    """One resolution: blocks, with attention behind each or behind none, then the step to the next resolution.

    Args:
        parts: makes the blocks.
        in_channels: of each block, its input channels.
        channels: output channels of all blocks.
        attends: whether there is attention behind each block.
        resample: the step to the next resolution; none: there is none.

    Attributes:
        recompute: whether only the input of each block is kept for the backward pass, which makes the rest anew
            (Chen et al. 2016): one forward more, for the memory of one block in place of all. Gradients are the same
            bits, since dropout masks are functions of their keys.
    """

    def __init__(
        self,
        parts: Parts,
        in_channels: Sequence[int],
        channels: int,
        *,
        attends: bool,
        resample: Resample | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([parts.block(width, channels) for width in in_channels])
        self.attention = nn.ModuleList([parts.attention(channels) for _ in in_channels if attends])
        crossing = [parts.cross_attention(channels) for _ in in_channels if attends]
        self.cross_attention = nn.ModuleList([each for each in crossing if each is not None])
        self.resample = None if resample is None else parts.resampling_step(channels, resample)
        self.recompute = False

    def stage(self, index: int, inputs: BlockInputs, *parts: Tensor) -> Tensor:
        """Return block `index` and the attention behind it at `parts`, concatenated along channels."""
        return self._kept_or_not(self._stage, index, inputs, *parts)

    def leave(self, h: Tensor, inputs: BlockInputs) -> Tensor:
        """Return the activations at the next resolution."""
        assert self.resample is not None  # levels know whether they have one
        return self._kept_or_not(self.resample, h, inputs)

    def _stage(self, index: int, inputs: BlockInputs, *parts: Tensor) -> Tensor:
        h = self.blocks[index](parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), inputs)
        h = self.attention[index](h, inputs.prompt) if self.attention else h
        if self.cross_attention:
            h = self.cross_attention[index](h, inputs.context, inputs.prompt)
        result: Tensor = h
        return result

    def _kept_or_not(self, function: Callable[..., Tensor], *inputs: int | Tensor | BlockInputs) -> Tensor:
        if not self.recompute or not torch.is_grad_enabled():
            return function(*inputs)
        made: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return made


class DownLevel(Level):
    """A level on the way down."""

    def forward(self, h: Tensor, inputs: BlockInputs) -> list[Tensor]:
        """Return what each step made: the way up reads all of it, the next level the last."""
        made: list[Tensor] = []
        for index in range(len(self.blocks)):
            h = self.stage(index, inputs, h)
            made.append(h)
        if self.resample is not None:
            made.append(self.leave(h, inputs))
        return made


class UpLevel(Level):
    """A level on the way up."""

    def forward(self, h: Tensor, inputs: BlockInputs, skips: list[Tensor]) -> Tensor:
        """Return the activations for the next level; each block takes one from the end of `skips`."""
        for index in range(len(self.blocks)):
            h = self.stage(index, inputs, h, skips.pop())
        return h if self.resample is None else self.leave(h, inputs)


def number_blocks(network: nn.Module) -> list[int]:
    """Tell every residual block its place in `BlockInputs`; return the widths of their embeddings, in that order."""
    blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    for number, block in enumerate(blocks):
        block.number = number
    return [block.embedding_width for block in blocks]


def recompute_activations(network: nn.Module, wanted: bool) -> None:
    """Let the levels of a U-Net or a classifier keep only their blocks' inputs for the backward pass, or everything."""
    for module in network.modules():
        if isinstance(module, Level):
            module.recompute = wanted


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"network.{name} is '{value}'; expected one of {', '.join(known)}")
