"""Codec: pictures <-> x_0, the values that diffuse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pictures = NDArray[Any]
"""Pictures [N, H, W, C] in their own dtype: uint8, uint16 or float32."""


class Codec(Protocol):
    """The contract between pictures and the values that diffuse."""

    @property
    def levels(self) -> int | None:
        """How many values a channel can take, or none if they are continuous."""
        ...

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """The range of x_0, or none if it has no bounds."""
        ...

    def encode(self, pictures: Pictures) -> Tensor:
        """Return x_0, float32 [N, C, H, W]."""
        ...

    def decode(self, x_0: Tensor) -> Pictures:
        """Return pictures [N, H, W, C] in the dtype of the data."""
        ...


@dataclass(frozen=True, slots=True)
class PixelCodec:
    """x_0 is the pixels themselves, from `value_range` mapped to [-1, 1].

    Attributes:
        levels: 17 for the digits, 256 for 8-bit pictures, 65,536 for 16-bit ones, none for floating point.
        value_range: the values that become -1 and 1.
        dtype: "uint8", "uint16" or "float32", that of the pictures.

    Raises:
        ValueError: if these contradict each other.
    """

    levels: int | None
    value_range: tuple[float, float]
    dtype: str

    def __post_init__(self) -> None:
        low, high = self.value_range
        if self.dtype not in ("uint8", "uint16", "float32"):
            raise ValueError(f"pictures of dtype {self.dtype!r}; expected uint8, uint16 or float32")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a range of values from {low} to {high}; expected two finite ones, the lower first")
        if self.levels is not None and (type(self.levels) is not int or self.levels < 2):
            raise ValueError(f"{self.levels!r} levels; expected a whole number from 2, or none")
        whole = self.dtype != "float32"
        if whole != (self.levels is not None) or (whole and not 0 <= low < high <= np.iinfo(self.dtype).max):
            raise ValueError(f"{self.levels} levels from {low:g} to {high:g} do not go with pictures of {self.dtype}")

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """[-1, 1] for pixels; generated points of floating point have no bounds."""
        return None if self.levels is None else (-1.0, 1.0)

    def encode(self, pictures: Pictures) -> Tensor:
        """Return x_0, float32 [N, C, H, W] in [-1, 1]."""
        low, high = self.value_range
        values = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32))
        return (values - low) * (2 / (high - low)) - 1

    def decode(self, x_0: Tensor) -> Pictures:
        """Return pictures [N, H, W, C], clamped to the range and rounded to the nearest level."""
        low, high = self.value_range
        values = (x_0.detach().float().cpu() + 1) * ((high - low) / 2) + low
        if self.levels is not None:
            values = values.clamp(low, high).round()
        return np.ascontiguousarray(values.permute(0, 2, 3, 1).numpy().astype(self.dtype))
