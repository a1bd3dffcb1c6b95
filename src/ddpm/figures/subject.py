"""What figures of sampling draw from: a trained model, or without one the exact denoiser of the digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm.codec import PixelCodec
from ddpm.data.sources.embedded import digits, swissroll
from ddpm.diffusion.analytic import MixtureDenoiser, finite_set_denoiser
from ddpm.diffusion.bits import BitsPerDim, NoiseLevel
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.likelihood import bits_per_dim, level_terms, prior_term, stratified_times, time_strata
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.errors import ConfigError
from ddpm.estimate import Estimate, mean_estimate
from ddpm.model import Model

_LEVELS = 17  # gray levels of the digits


@dataclass(frozen=True, eq=False)
class Subject:
    """A denoiser of pictures.

    Attributes:
        name: for the figure.
        denoiser: what samplers see.
        schedule: of its noise.
        shape: of a picture, (C, H, W).
    """

    name: str
    denoiser: Denoiser
    schedule: NoiseSchedule
    shape: tuple[int, int, int]

    def noise(self, seed: int, count: int) -> NoiseSource:
        """Return the noise of pictures 0 to count - 1."""
        return NoiseSource(seed, range(count), self.shape)


def digit_pictures(count: int | None = None) -> Tensor:
    """Return the digits to train on as x_0, float32 [count, 1, 8, 8] in [-1, 1]; none: all 1,437."""
    data = digits()
    rows = np.setdiff1d(np.arange(len(data.pictures)), data.held_out)[:count]
    return PixelCodec(data.levels, data.value_range, "uint8").encode(data.pictures[rows])


def exact_digits(schedule: str = "linear", count: int = 500) -> Subject:
    """Return the exact denoiser of a set of `count` digits: what a network that memorises them perfectly computes."""
    made = make_schedule(schedule)
    denoiser = finite_set_denoiser(made, digit_pictures(count).flatten(1))
    return Subject(schedule, denoiser, made, (1, 8, 8))


def model_subject(model: Model) -> Subject:
    """Return a model as what figures draw from.

    Raises:
        ConfigError: for a model of points: there are no pictures to show.
    """
    height, width, channels = model.picture_shape
    if height == width == 1:
        raise ConfigError("this figure shows pictures, and the model makes points in the plane; give another --model")
    return Subject("model", model.denoiser(), model.schedule, (channels, height, width))


def roll_denoiser(schedule: NoiseSchedule | None = None, count: int = 250, deviation: float = 0.02) -> MixtureDenoiser:
    """Return the exact denoiser of a Swiss roll in the plane: a narrow Gaussian on each of `count` of its points."""
    points = torch.from_numpy(swissroll().pictures[:count].reshape(-1, 2)).double()
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    variances = torch.full((count,), deviation**2, dtype=torch.float64)
    return MixtureDenoiser(schedule or make_schedule("linear"), weights, points, variances)


def exact_bits(subject: Subject, x_0: Tensor, *, seed: int = 0, strata: int = 50) -> BitsPerDim:
    """Return the variational bound of a denoiser on digits x_0 [N, 1, 8, 8] (Ho et al. 2020, Eq. 5).

    Each picture sees one time of each stratum.

    For the exact denoiser of a set that holds them, no more than log2 of its size is needed to say which one it is.
    """
    schedule, dimensions = subject.schedule, math.prod(subject.shape)
    ranges = time_strata(schedule, strata)
    noise, x = subject.noise(seed, len(x_0)), x_0.double()
    times = stratified_times(ranges, seed, range(len(x)))
    terms = level_terms(
        subject.denoiser, schedule, x, noise, levels=_LEVELS, variance="fixed_small", strata=ranges, times=times
    )
    prior = bits_per_dim(prior_term(x, schedule), dimensions)
    total, levels = prior, []
    for times_of, term in zip((range(1), *ranges), terms, strict=True):
        bits = bits_per_dim(term.nats, dimensions)
        total = total + bits
        levels.append(NoiseLevel(times_of.start, times_of[-1], mean_estimate(bits), _distortion(term.squared_error)))
    return BitsPerDim(mean_estimate(total), mean_estimate(prior), tuple(levels), {"pictures": len(x), "seed": seed})


def _distortion(squared_error: Tensor) -> Estimate:
    """Return the root of the mean squared error on [-1, 1] in units of 0 to 255, its error to first order."""
    squared = mean_estimate(squared_error)
    root = math.sqrt(squared.value)
    return Estimate(127.5 * root, 127.5 * squared.error / (2 * root) if root > 0 else 0.0)
