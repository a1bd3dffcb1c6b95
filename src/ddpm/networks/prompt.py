"""How an image prompt enters a network: from the features of a picture to tokens that pixels look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PromptInput:
    """How a network reads image prompts.

    Attributes:
        given: P', the vectors of features of a picture: of all of it, or of the places of a square grid, row by row.
        features: D', their width.
        tokens: P, that pixels look at; where P' > 1, it is P'.
        width: D, of the tokens.
    """

    given: int
    features: int
    tokens: int
    width: int

    def __post_init__(self) -> None:
        if min(self.given, self.features, self.tokens, self.width) < 1:
            raise ConfigError(f"an image prompt of {self}; expected numbers from 1")
        if self.given > 1 and self.tokens != self.given:
            raise ConfigError(f"{self.tokens} tokens of {self.given} vectors of features; expected as many")
        if math.isqrt(self.given) ** 2 != self.given:
            raise ConfigError(f"{self.given} vectors of features; expected one, or those of a square grid of places")

    @property
    def side(self) -> int | None:
        """How many places the grid has a side; none: the tokens are of the whole picture."""
        return math.isqrt(self.given) if self.given > 1 else None


class PromptProjection(nn.Module):
    """From the features of a picture to the tokens of its prompt: a linear layer and a norm (Ye et al. 2023, Sec. 3.2).

    One vector becomes P tokens; several, each of its own place in the picture, become one token each.
    """

    def __init__(self, prompt: PromptInput) -> None:
        super().__init__()
        self.prompt = prompt
        self.project = nn.Linear(prompt.features, prompt.width * (prompt.tokens if prompt.given == 1 else 1))
        self.places = nn.Parameter(torch.randn(prompt.tokens, prompt.width))
        self.norm = nn.LayerNorm(prompt.width)

    def forward(self, features: Tensor) -> Tensor:
        """Return tokens [B, P, D] for features [B, P', D']."""
        tokens = self.project(features.to(self.project.weight.dtype)).view(len(features), *self.places.shape)
        normed: Tensor = self.norm(tokens + self.places.to(tokens.dtype))  # [B, P, D]
        return normed
