"""A residual MLP for data without an image's neighbourhoods: points in the plane, tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddpm.conditions import Condition
from ddpm.errors import ConfigError
from ddpm.networks.blocks import time_embedding


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


class Mlp(nn.Module):
    """Predicts from flattened x_t and t; the simplified network of many DDPM tutorials, made residual."""

    def __init__(
        self, *, shape: tuple[int, int, int], out_channels: int | None = None, width: int = 128, depth: int = 4
    ) -> None:
        """Build the network.

        Args:
            shape: (C, H, W) of the input.
            out_channels: of the output; none: C.
            width: of every hidden layer.
            depth: residual blocks.
        """
        super().__init__()
        self.shape = shape
        self.width = width
        self.out_shape = (shape[0] if out_channels is None else out_channels, *shape[1:])
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(math.prod(shape), width)
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
            condition: not supported; must be none.
            dropout_keys: ignored, this network has no dropout.

        Raises:
            ConfigError: for another shape, or a condition.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            raise ConfigError(f"x_t is {list(x_t.shape)}; this network takes [B, {', '.join(map(str, self.shape))}]")
        if condition is not None:
            raise ConfigError("this network takes no condition")
        embedding = self.embed_time(time_embedding(t, self.width).to(self.enter.weight.dtype))  # [B, width]
        h = self.enter(x_t.flatten(1))  # [B, width]
        for block in self.blocks:
            h = block(h, embedding)  # [B, width]
        output: Tensor = self.leave(torch.nn.functional.silu(self.norm(h)))  # [B, out_channels H W]
        return output.to(x_t.dtype).reshape(-1, *self.out_shape)
