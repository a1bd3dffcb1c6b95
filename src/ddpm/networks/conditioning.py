"""How conditions enter a network: labels and numbers through the time embedding, a paired picture beside x_t."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.conditions import Condition
from ddpm.errors import ConfigError
from ddpm.networks.prompt import PromptInput
from ddpm.networks.text import TextInput


class NumberEmbedding(nn.Module):
    """An MLP over standardised numbers, each beside a flag that says whether it is there."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.widen = nn.Linear(2 * count, width)
        self.mix = nn.Linear(width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return [B, width] for numbers [B, count], where NaN is none."""
        there = numbers.isfinite()
        seen = torch.cat([numbers.where(there, torch.zeros_like(numbers)), there.to(numbers.dtype)], dim=1)
        embedding: Tensor = self.mix(functional.silu(self.widen(seen.to(self.widen.weight.dtype))))
        return embedding


def label_rows(label: Tensor | None, table: nn.Embedding, batch: int) -> Tensor:
    """Return the rows of a table of class embeddings, [B, width]; its last row is "no class".

    Args:
        label: int64 [B], -1 is none; None: none for all.
        table: of one row a class, and one more.
        batch: B.
    """
    last = table.num_embeddings - 1
    if label is None:
        label = torch.full((batch,), -1, dtype=torch.int64, device=table.weight.device)
    rows: Tensor = table(torch.where(label == -1, last, label))
    return rows


def number_rows(numbers: Tensor | None, embedding: NumberEmbedding, batch: int) -> Tensor:
    """Return the embedding of numbers [B, K], of which NaN is none; None: none for all. [B, width]."""
    if numbers is None:
        numbers = torch.full((batch, embedding.count), torch.nan, device=embedding.widen.weight.device)
    rows: Tensor = embedding(numbers)
    return rows


def with_picture(x: Tensor, condition: Condition | None, channels: int) -> Tensor:
    """Return what the first convolution reads: x [B, C, H, W] and the paired picture, [B, C + channels, H, W].

    Args:
        x: what it reads without a paired picture.
        condition: with the paired picture; none, or without one: zeros, which is "none".
        channels: of the paired picture, with the one that says where it is known; 0: the network reads none.
    """
    if channels == 0:
        return x
    picture = None if condition is None else condition.picture
    if picture is None:
        picture = x.new_zeros(len(x), channels, *x.shape[2:])
    return torch.cat([x, picture.to(x.dtype)], dim=1)


def check_condition(
    condition: Condition | None,
    x_t: Tensor,
    *,
    num_classes: int | None,
    num_numbers: int,
    picture_channels: int = 0,
    text: TextInput | None = None,
    prompt: PromptInput | None = None,
) -> None:
    """Refuse conditions that the network does not have, or of other shapes.

    Raises:
        ConfigError: with the field, its shape, and the one that is expected.
    """
    if condition is None:
        return
    batch, known = len(x_t), condition.fields()
    if "label" in known and num_classes is None:
        raise ConfigError("this network was built without classes (num_classes is none), but got a label; leave it out")
    shapes: dict[str, tuple[int, ...]] = {
        "label": (batch,),
        "numbers": (batch, num_numbers),
        "picture": (batch, picture_channels, *x_t.shape[2:]),
    }
    for name, shape in shapes.items():
        if name in known and 0 in shape[1:]:
            raise ConfigError(f"this network was built without {name}, but got a condition with them; leave it out")
        if name in known and tuple(known[name].shape) != shape:
            one = ", one for each picture" if len(shape) == 1 else ""
            raise ConfigError(f"condition.{name} has shape {list(known[name].shape)}; expected {list(shape)}{one}")
    if "tokens" in known:
        _check_tokens(known["tokens"], batch, text)
    if "prompt" in known:
        _check_prompt(known["prompt"], batch, prompt)


def _check_prompt(features: Tensor, batch: int, prompt: PromptInput | None) -> None:
    if prompt is None:
        raise ConfigError("this network has no image adapter, but got an image prompt; add an adapter, or leave it out")
    if tuple(features.shape) != (batch, prompt.given, prompt.features):
        wanted = [batch, prompt.given, prompt.features]
        raise ConfigError(f"condition.prompt has shape {list(features.shape)}; expected {wanted}")


def _check_tokens(tokens: Tensor, batch: int, text: TextInput | None) -> None:
    if text is None:
        raise ConfigError("this network was built without text, but got tokens; leave them out")
    tail = [] if text.features is None else [text.features]
    shape = list(tokens.shape)
    if tokens.ndim != 2 + len(tail) or [shape[0], *shape[2:]] != [batch, *tail] or shape[1] < 1:
        raise ConfigError(
            f"condition.tokens has shape {shape}; expected {str([batch, 'L', *tail]).replace(chr(39), '')}"
        )
