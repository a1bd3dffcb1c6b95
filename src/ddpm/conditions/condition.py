"""What a picture is conditioned on: y in eps_theta(x_t, t, y)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_NONE: dict[str, float] = {"label": -1, "numbers": float("nan"), "picture": 0, "tokens": 0, "prompt": 0}
"""The value that stands for "none" in each field, everywhere in a picture's part of it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The conditions of a batch of pictures; a field is None where the model has no such condition.

    Attributes:
        label: int64 [B], the class of each picture; -1 is none.
        numbers: float32 [B, K], numeric columns, standardised by the training data; NaN is none.
        picture: float32 [B, C' + 1, H, W], a paired picture in x_0's range, then where it is known: 1, else 0 with
            zeros in the picture. Zeros in all channels are none.
        tokens: int64 [B, L], ids of a text, 0 is padding; or float32 [B, L, D], features of it, a row of zeros is
            padding. Padding alone is none.
        prompt: float32 [B, P, D], features of an image prompt; zeros are none.

    Raises:
        ValueError: if all fields are None, or the fields are of different numbers of pictures.
    """

    label: Tensor | None = None
    numbers: Tensor | None = None
    picture: Tensor | None = None
    tokens: Tensor | None = None
    prompt: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in self.fields().items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a condition of {lengths or 'nothing'}; expected fields of one number of pictures")

    def __len__(self) -> int:
        """Return B."""
        return len(next(iter(self.fields().values())))

    def fields(self) -> dict[str, Tensor]:
        """Return the fields that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def drop(self, mask: Tensor) -> Condition:
        """Return the conditions with those under `mask` (bool [B]) replaced by "none"."""
        dropped = {}
        for name, value in self.fields().items():
            under = mask.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            dropped[name] = torch.where(under, torch.full_like(value, _NONE[name]), value)
        return Condition(**dropped)

    def dropped(self) -> Condition:
        """Return "none" for every picture: what the unconditional half of guidance sees."""
        return Condition(**{name: torch.full_like(value, _NONE[name]) for name, value in self.fields().items()})

    def select(self, index: Tensor | slice) -> Condition:
        """Return the conditions of the pictures in `index`: int64 [K], bool [B], or a slice."""
        return Condition(**{name: value[index] for name, value in self.fields().items()})

    def to(self, device: torch.device | str) -> Condition:
        """Return the conditions on another device."""
        return Condition(**{name: value.to(device) for name, value in self.fields().items()})


def concatenated(conditions: Sequence[Condition]) -> Condition:
    """Return conditions of the same kinds as one batch, in order: for one pass through the network."""
    parts = [condition.fields() for condition in conditions]
    return Condition(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
