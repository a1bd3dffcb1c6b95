"""How a text enters a network: an encoder of our own, trained along, or a reader of a frozen encoder's features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.networks.attend import attend
from ddpm.networks.blocks import Context, time_embedding

HEAD_WIDTH = 64
"""Least width of an attention head in the text encoder; a narrower encoder has one head."""


@dataclass(frozen=True, slots=True)
class TextInput:
    """How a network reads texts.

    Attributes:
        width: D, of the tokens that cross-attention looks at.
        vocabulary: number of ids that an encoder of our own reads, with 0 for padding; none: it reads features.
        features: width of a frozen encoder's features; none: it reads ids.
        layers: of our own encoder.
    """

    width: int
    vocabulary: int | None = None
    features: int | None = None
    layers: int = 2

    def build(self) -> TextEncoder | FeatureReader:
        """Return the module that turns a condition's tokens into a `Context`."""
        if self.vocabulary is not None:
            return TextEncoder(self.vocabulary, width=self.width, layers=self.layers)
        assert self.features is not None  # one of the two is what there is to read
        return FeatureReader(self.features, width=self.width)


class TextBlock(nn.Module):
    """One layer of a transformer, with its norms first (Xiong et al. 2020): attention, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, width // HEAD_WIDTH), 0, -1) if width % n == 0)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        """Return [B, M, width] for tokens [B, M, width], of which only those with `there` (bool [B, M]) are seen."""
        batch, length, width = h.shape
        qkv = self.qkv(self.norm1(h)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.transpose(1, 3).unbind(2)  # [B, heads, M, width / heads]
        seen = attend(q, k, v, there)
        h = h + self.out(seen.transpose(1, 2).reshape(batch, length, width))  # [B, M, width]
        result: Tensor = h + self.mlp(self.norm2(h))
        return result


class TextEncoder(nn.Module):
    """A small transformer over the ids of a text, behind a learned first token that stands alone where there is none.

    Args:
        vocabulary: number of ids, of which 0 is padding.
        width: of the tokens.
        layers: of the transformer.
    """

    def __init__(self, vocabulary: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))
        self.first = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.blocks = nn.ModuleList([TextBlock(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def none(self, batch: int) -> Tensor:
        """Return what stands for no text, int64 [B, 1]."""
        return torch.zeros(batch, 1, dtype=torch.int64, device=self.first.device)

    def forward(self, ids: Tensor) -> Context:
        """Return 1 + L tokens for ids int64 [B, L], where 0 is padding; longer padding changes nothing."""
        first = self.first.expand(len(ids), 1, -1)
        there = functional.pad(ids != 0, (1, 0), value=True)  # [B, 1 + L]
        # Weights of 1 / sqrt(width), enlarged to the size of the positions (Vaswani et al. 2017, Sec. 3.4): rare words
        # are learned sqrt(width) times faster than with weights of that size.
        h = torch.cat([first, self.embedding(ids)], dim=1) * math.sqrt(self.width)  # [B, 1 + L, width]
        positions = torch.arange(h.shape[1], device=ids.device)
        h = h + time_embedding(positions, self.width).to(h.dtype)
        for block in self.blocks:
            h = block(h, there)
        return Context(self.norm(h), there)


class FeatureReader(nn.Module):
    """Brings the features of a frozen text encoder to the network's width, behind a learned first token.

    Args:
        features: D', the width of the features.
        width: of the tokens.
    """

    def __init__(self, features: int, *, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, width)
        self.first = nn.Parameter(torch.randn(width))

    def none(self, batch: int) -> Tensor:
        """Return what stands for no text, float32 [B, 1, D']."""
        return torch.zeros(batch, 1, len(self.norm.weight), device=self.first.device)

    def forward(self, features: Tensor) -> Context:
        """Return 1 + L tokens for features [B, L, D'], where a row of zeros is padding."""
        there = functional.pad((features != 0).any(2), (1, 0), value=True)  # [B, 1 + L]
        tokens = self.project(self.norm(features.to(self.norm.weight.dtype)))  # [B, L, width]
        first = self.first.to(tokens.dtype).expand(len(tokens), 1, -1)
        return Context(torch.cat([first, tokens], dim=1), there)
