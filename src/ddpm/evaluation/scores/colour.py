"""Colour drift: do samples have the brightness, contrast and colours of the data?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores.checks import check_finite
from ddpm.words import counted

_BINS = 64
_BLOCK = 256  # pictures taken to float64 at a time
DRIFT = 3.0
"""Standard errors of a mean beyond which it has drifted."""

_VISIBLE = 0.01  # of the value range: less is not seen


@dataclass(frozen=True, slots=True)
class ColourDrift:
    """Statistics of each channel, in units of the value range (0 is its lower end, 1 its upper).

    Attributes:
        mean: of the samples, per channel.
        mean_real: of real pictures.
        std: of all values of the samples, per channel.
        std_real: of real pictures.
        mean_error: standard error of `mean - mean_real`, from the means of single pictures, per channel.
        histogram_distance: between the values of samples and real pictures, per channel: the area between their
            cumulative histograms of 64 bins (first Wasserstein distance), 0 to 1.
        verdict: one sentence.
    """

    mean: tuple[float, ...]
    mean_real: tuple[float, ...]
    std: tuple[float, ...]
    std_real: tuple[float, ...]
    mean_error: tuple[float, ...]
    histogram_distance: tuple[float, ...]
    verdict: str


def colour_drift(samples: NDArray[Any], real: NDArray[Any], value_range: tuple[float, float]) -> ColourDrift:
    """Compare the channels of samples and real pictures.

    Args:
        samples: [N, H, W, C], numbers in `value_range`.
        real: [M, H', W', C].
        value_range: least and largest value.

    Raises:
        DataError: for fewer than two pictures, another number of channels, values that are not finite, or an empty
            range.
    """
    low, high = value_range
    if not low < high:
        raise DataError(f"value range {low:g} to {high:g}; expected a least and a larger value")
    for pictures, what in ((samples, "samples"), (real, "real pictures")):
        if pictures.ndim != 4 or len(pictures) < 2:
            raise DataError(f"{what} of shape {pictures.shape}; expected at least 2 pictures [N, H, W, C]")
        check_finite(pictures, what)
    if samples.shape[3] != real.shape[3]:
        raise DataError(
            f"samples have {counted(samples.shape[3], 'channel')}, real pictures {real.shape[3]}; expected the same"
        )
    of_samples, of_real = (_Channels.of(pictures, low, high) for pictures in (samples, real))
    error = np.sqrt(of_samples.error**2 + of_real.error**2)
    distances = np.abs(of_samples.histogram.cumsum(0) - of_real.histogram.cumsum(0)).sum(0) / _BINS
    return ColourDrift(
        mean=_floats(of_samples.mean),
        mean_real=_floats(of_real.mean),
        std=_floats(of_samples.std),
        std_real=_floats(of_real.std),
        mean_error=_floats(error),
        histogram_distance=_floats(distances),
        verdict=_verdict(of_samples, of_real, error),
    )


@dataclass(frozen=True, eq=False)
class _Channels:
    mean: NDArray[np.float64]  # [C]
    std: NDArray[np.float64]
    error: NDArray[np.float64]  # of the mean, over pictures
    histogram: NDArray[np.float64]  # [bins, C], sums to 1

    @classmethod
    def of(cls, pictures: NDArray[Any], low: float, high: float) -> _Channels:
        means, squares = [], []
        histogram = np.zeros((_BINS, pictures.shape[3]))
        for start in range(0, len(pictures), _BLOCK):
            block = (pictures[start : start + _BLOCK].astype(np.float64) - low) / (high - low)
            means.append(block.mean((1, 2)))
            squares.append(np.square(block).mean((1, 2)))
            for channel in range(block.shape[3]):
                histogram[:, channel] += np.histogram(block[..., channel].clip(0, 1), _BINS, (0, 1))[0]
        of_pictures = np.concatenate(means)
        mean = of_pictures.mean(0)
        std = np.sqrt((np.concatenate(squares).mean(0) - mean**2).clip(0))
        return cls(mean, std, of_pictures.std(0, ddof=1) / len(of_pictures) ** 0.5, histogram / histogram[:, 0].sum())


def _verdict(samples: _Channels, real: _Channels, error: NDArray[np.float64]) -> str:
    shift = samples.mean - real.mean
    contrast = samples.std / np.where(real.std > 0, real.std, 1)
    drifted = (np.abs(shift) > DRIFT * error) & (np.abs(shift) > _VISIBLE)
    if drifted.any():
        channel = int(np.abs(np.where(drifted, shift, 0)).argmax())
        word = "brighter" if shift[channel] > 0 else "darker"
        return (
            f"Colours drift: {_name(channel, len(shift))} is {100 * abs(shift[channel]):.1f} % of the range {word} "
            f"than in the data ({abs(shift[channel]) / error[channel]:.0f} standard errors)."
        )
    channel = int(np.abs(contrast - 1).argmax())
    if abs(contrast[channel] - 1) > 0.1:
        word = "more" if contrast[channel] > 1 else "less"
        return (
            f"Means agree, but {_name(channel, len(shift))} has {word} contrast: {contrast[channel]:.2f} of the data's."
        )
    return "No colour drift: means and contrast of every channel agree with the data."


def _name(channel: int, channels: int) -> str:
    return (
        "brightness" if channels == 1 else ("red", "green", "blue")[channel] if channels == 3 else f"channel {channel}"
    )


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
