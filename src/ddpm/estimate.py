"""A number and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured number with its standard error.

    Attributes:
        value: the number.
        error: one standard error, in the unit of the number.
    """

    value: float
    error: float


def mean_estimate(values: Tensor) -> Estimate:
    """Return the mean of independent values [N], N >= 2, and its standard error."""
    return Estimate(float(values.mean()), float(values.std(correction=1)) / math.sqrt(len(values)))
