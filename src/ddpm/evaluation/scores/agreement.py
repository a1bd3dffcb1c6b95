"""Whether a classifier sees in each sample the class that was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a classifier agrees.

    Attributes:
        share: of all pictures, with its binomial error.
        by_class: class -> share of its pictures and their number; classes without a picture are left out.
    """

    share: Estimate
    by_class: dict[str, tuple[float, int]]

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: {"share": share, "n": count} for name, (share, count) in self.by_class.items()}


def agreement(probabilities: NDArray[Any], asked: NDArray[np.int64], classes: Sequence[str]) -> Agreement:
    """Return how often the likeliest class is the one that was asked for.

    Args:
        probabilities: [N, K], of the classes.
        asked: int64 [N], numbers of the classes; N >= 1.
        classes: their names.
    """
    agrees = probabilities.argmax(1) == asked
    share = float(agrees.mean())
    by_class = {
        name: (float(agrees[asked == number].mean()), int((asked == number).sum()))
        for number, name in enumerate(classes)
        if bool((asked == number).any())
    }
    return Agreement(Estimate(share, math.sqrt(share * (1 - share) / len(asked))), by_class)
