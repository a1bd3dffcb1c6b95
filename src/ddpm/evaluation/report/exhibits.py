"""What a report shows beside its numbers: pictures, pairs of near ones, histograms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.evaluation.scores.spread import spread

if TYPE_CHECKING:
    from ddpm.diffusion.bits import BitsPerDim

SHOWN = 64
_MOST_VALUES = 2**22  # of the pictures shown: keeps the page to a few MiB
_BINS = 48


@dataclass(frozen=True, eq=False)
class Pair:
    """A sample and its nearest training picture.

    Attributes:
        number: of the sample.
        sample: [H, W, C].
        nearest: [H, W, C].
        name: of the training picture.
        ratio: distance, over that to the second nearest.
        is_near_copy: whether that is called a copy.
    """

    number: int
    sample: NDArray[Any]
    nearest: NDArray[Any]
    name: str
    ratio: float
    is_near_copy: bool


@dataclass(eq=False)
class Exhibits:
    """What the page of a report shows.

    Attributes:
        samples: the first ones [K, H, W, C].
        real: held-out pictures, as many.
        levels: of the pictures.
        value_range: of the pictures.
        pairs: measure of nearness -> samples that are nearest to a training picture, the nearest first.
        histograms: per channel, shares of values of samples and of training pictures, [C, 2, bins]; None without.
        bits: the bound by noise level; None without.
    """

    samples: Pictures
    real: Pictures
    levels: int | None
    value_range: tuple[float, float]
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    histograms: NDArray[np.float64] | None = None
    bits: BitsPerDim | None = None

    @classmethod
    def of(cls, samples: Pictures, store: Store) -> Exhibits:
        """Choose the pictures to show."""
        count = max(8, min(SHOWN, _MOST_VALUES // int(np.prod(samples.shape[1:]))))
        if store.is_points:
            count = 2000
        real = store.pictures[spread(store.held_out, count)]
        return cls(samples[:count], real, store.levels, store.value_range)

    @property
    def are_points(self) -> bool:
        """Whether these are points in the plane."""
        return self.samples.shape[1:] == (1, 1, 2)

    def add_histograms(self, samples: Pictures, real: Pictures, value_range: tuple[float, float]) -> None:
        """Count the values of each channel; data of few levels get a bin a level."""
        bins = min(_BINS, self.levels) if self.levels else _BINS
        low, high = value_range
        half = (high - low) / (self.levels - 1) / 2 if self.levels else 0.0
        edges = np.linspace(low - half, high + half, bins + 1)
        self.histograms = np.array(
            [
                [np.histogram(side[..., channel], edges)[0] / side[..., channel].size for side in (samples, real)]
                for channel in range(samples.shape[3])
            ]
        )
