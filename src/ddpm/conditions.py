"""What a picture is conditioned on: y in eps_theta(x_t, t, y)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Condition:
    """The conditions of a batch of pictures.

    Attributes:
        label: int64 [B], the class of each picture; -1 stands for "no class" (dropped, or unconditional).
    """

    label: Tensor

    def __len__(self) -> int:
        return int(self.label.shape[0])

    def drop(self, mask: Tensor) -> Condition:
        """Return the conditions with those under `mask` (bool [B]) replaced by "none"."""
        return replace(self, label=torch.where(mask, torch.full_like(self.label, -1), self.label))

    def select(self, index: Tensor) -> Condition:
        """Return the conditions of the pictures in `index` (int64 [K])."""
        return replace(self, label=self.label[index])

    def to(self, device: torch.device | str) -> Condition:
        """Return the conditions on another device."""
        return replace(self, label=self.label.to(device))
