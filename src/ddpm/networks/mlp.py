"""A residual MLP for data without an image's neighbourhoods: points in the plane, tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddpm.conditions import Condition
from ddpm.errors import ConfigError
from ddpm.networks.blocks import time_embedding
from ddpm.networks.conditioning import NumberEmbedding, check_condition, label_rows, number_rows

_WAVES = 8  # frequencies


class MlpBlock(nn.Module):
    """x + W2 silu(W1 norm(x) + time), with W2 zero at first: the block begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.time = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [B, width] for x [B, width] and the embedding of time [B, width]."""
        h = nn.functional.silu(self.widen(self.norm(x)) + self.time(embedding))  # [B, 2 width]
        narrowed: Tensor = self.narrow(h)  # [B, width]
        return x + narrowed


def waves(x: Tensor) -> Tensor:
    """Return each value of x [B, D] and its sines and cosines, value after value [B, D (1 + 2 * 8)].

    Without them a network of smooth functions takes ten times as long to learn what is narrow, such as a spiral
    (Tancik et al. 2020). They are 6.3 to 0.4 long: data lie in [-1, 1]. An x of zeros, which is how "nothing known
    yet" is written, has features of zeros: hence the one less than the cosine.
    """
    angles = x[:, :, None] * torch.logspace(0, 1.2, _WAVES, device=x.device, dtype=x.dtype)  # [B, D, 8]
    return torch.cat([x[:, :, None], angles.sin(), angles.cos() - 1], dim=2).flatten(1)


class Mlp(nn.Module):
    """Predicts from flattened x_t and t; the simplified network of many DDPM tutorials, residual, with waves of x_t."""

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        out_channels: int | None = None,
        width: int = 128,
        depth: int = 4,
        num_classes: int | None = None,
        num_numbers: int = 0,
    ) -> None:
        """Build the network.

        Args:
            shape: (C, H, W) of the input.
            out_channels: of the output; none: C.
            width: of every hidden layer.
            depth: residual blocks.
            num_classes: number of classes of y; none: no labels.
            num_numbers: numeric columns of y.
        """
        super().__init__()
        self.num_classes, self.num_numbers = num_classes, num_numbers
        self.shape = shape
        self.width = width
        self.out_shape = (shape[0] if out_channels is None else out_channels, *shape[1:])
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.number_embedding = NumberEmbedding(num_numbers, width) if num_numbers else None
        self.enter = nn.Linear((1 + 2 * _WAVES) * math.prod(shape), width)
        self.blocks = nn.ModuleList(MlpBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, math.prod(self.out_shape))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition | None = None, *, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """Return the output [B, out_channels, H, W], float32 or better.

        Args:
            x_t: [B, C, H, W].
            t: [B], may lie off the integer grid.
            condition: labels below `num_classes`, numbers [B, num_numbers]; none: "none" for all.
            dropout_keys: ignored, this network has no dropout.

        Raises:
            ConfigError: for another shape, or a condition that the network does not have.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise ConfigError(f"x_t is {list(x_t.shape)}; this network takes [B, {', '.join(map(str, self.shape))}]")
        check_condition(condition, x_t, num_classes=self.num_classes, num_numbers=self.num_numbers)
        embedding = self.embed_time(time_embedding(t, self.width).to(self.enter.weight.dtype))  # [B, width]
        if self.label_embedding is not None:
            embedding = embedding + label_rows(
                None if condition is None else condition.label, self.label_embedding, len(x_t)
            )
        if self.number_embedding is not None:
            embedding = embedding + number_rows(
                None if condition is None else condition.numbers, self.number_embedding, len(x_t)
            )
        h = self.enter(waves(x_t.flatten(1)))  # [B, width]
        for block in self.blocks:
            h = block(h, embedding)  # [B, width]
        output: Tensor = self.leave(torch.nn.functional.silu(self.norm(h)))  # [B, out_channels H W]
        return output.to(x_t.dtype).reshape(-1, *self.out_shape)
