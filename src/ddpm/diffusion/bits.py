"""What a bound says of a data set: means over its pictures in bits per dimension, each with its standard error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddpm.estimate import Estimate


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """The reverse steps from one range of times.

    Attributes:
        first: least code time t from which a step starts.
        last: largest one; the same where every t was evaluated.
        bits: bits/dim of all its steps together.
        distortion: root mean squared error of the expected x_0 at these times, where the range of the data is 0 to 255.
    """

    first: int
    last: int
    bits: Estimate
    distortion: Estimate

    @property
    def size(self) -> int:
        """How many times it holds."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class BitsPerDim:
    """The variational bound of a model on a data set.

    Attributes:
        total: L = L_T + sum L_{t-1} + L_0, an upper bound on the mean of -log2 p(x_0) per dimension.
        prior: L_T.
        levels: L_0 (t = 0) first, then the ranges of times in order.
        recipe: how it was measured, in plain JSON values.
    """

    total: Estimate
    prior: Estimate
    levels: tuple[NoiseLevel, ...]
    recipe: Mapping[str, Any]

    @property
    def decoder(self) -> Estimate:
        """L_0, the discretised decoder."""
        return self.levels[0].bits

    def rates(self) -> tuple[float, ...]:
        """Return the bits/dim that give each of `levels` its distortion (Ho et al. 2020, Sec. 4.3).

        Who holds x_t has paid for L_T and the steps from all later times. Within a range of times, the average over
        them is taken, as for its distortion: half of what its other times cost.
        """
        rate, rates = self.prior.value, []
        for level in reversed(self.levels):
            rates.append(rate + level.bits.value * (level.size - 1) / (2 * level.size))
            rate += level.bits.value
        return tuple(reversed(rates))

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values."""
        levels = [{**asdict(level), "rate": rate} for level, rate in zip(self.levels, self.rates(), strict=True)]
        return {
            "bits_per_dim": asdict(self.total),
            "prior": asdict(self.prior),
            "decoder": asdict(self.decoder),
            "levels": levels,
            "recipe": dict(self.recipe),
        }
