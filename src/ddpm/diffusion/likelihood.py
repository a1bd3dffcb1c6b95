"""The variational bound, term by term: E[-log p(x_0)] <= L_T + sum_{t>1} L_{t-1} + L_0 (Ho et al. 2020, Eq. 5).

Every term is per sample, [B], in nats, summed over the dimensions of a sample. L = -ELBO is minimised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource, stream
from ddpm.diffusion.samplers.ancestral import ReverseVariance
from ddpm.diffusion.schedules import NoiseSchedule, Transition, expand_like
from ddpm.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Bound:
    """The terms of the variational bound, float64, in nats per sample.

    Attributes:
        prior: [B], L_T.
        transitions: [B, T - 1], the paper's L_1 .. L_{T-1}: column t - 1 is the step from code time t to t - 1.
        decoder: [B], L_0.
    """

    prior: Tensor
    transitions: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x_0), [B]."""
        return self.prior + self.transitions.sum(1) + self.decoder


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Return nats per sample as bits per dimension."""
    return nats / (dimensions * math.log(2))


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """Return KL(N(mean_1, variance_1) || N(mean_2, variance_2)), elementwise, in nats.

    With equal variances it is the squared distance of the means over 2 sigma^2.
    """
    return 0.5 * (
        log_variance_2
        - log_variance_1
        + torch.expm1(log_variance_1 - log_variance_2)
        + (mean_1 - mean_2).square() * torch.exp(-log_variance_2)
    )


def prior_term(x_0: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return L_T = KL(q(x_T | x_0) || N(0, I)), [B] nats. No parameter enters it."""
    signal, noise = (expand_like(c, x_0) for c in schedule.signal_and_noise(len(schedule) - 1))
    zero = torch.zeros_like(x_0)
    return gaussian_kl(signal * x_0, zero + 2 * noise.log(), zero, zero).flatten(1).sum(1)


def transition_term(
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction: Prediction,
    schedule: NoiseSchedule,
    variance: ReverseVariance = "fixed_small",
) -> Tensor:
    """Return L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), [B] nats, for code times t >= 1 (Eq. 5)."""
    transition = schedule.transition(t, process.previous_time(t))
    true_log_variance = expand_like(transition.log_variance_small, x_0).expand_as(x_0)
    mean = transition.mean(prediction.x_0, x_t)
    log_variance = reverse_log_variance(transition, prediction, variance, x_0)
    return gaussian_kl(transition.mean(x_0, x_t), true_log_variance, mean, log_variance).flatten(1).sum(1)


def decoder_term(
    x_0: Tensor,
    x_1: Tensor,
    prediction: Prediction,
    schedule: NoiseSchedule,
    levels: int,
    variance: ReverseVariance = "fixed_small",
) -> Tensor:
    """Return L_0 = -log p(x_0 | x_1) under the discretised Gaussian decoder, [B] nats (Eq. 13).

    Each bin is 2 / (levels - 1) wide around its level; the outermost reach to infinity. The paper's "x_1" is code
    time 0. "fixed_small" has no variance there, and takes that of the next step, as Ho et al. do.

    Args:
        x_0: [B, ...], data on `levels` equally spaced values in [-1, 1].
        x_1: [B, ...], x_0 after the first noise step.
        prediction: of x_0 from x_1.
        schedule: the noise schedule.
        levels: how many values a channel can take: 256 for 8-bit pictures.
        variance: of the last reverse step.
    """
    transition = schedule.transition(torch.zeros(len(x_0)), torch.full((len(x_0),), -1.0))
    mean = transition.mean(prediction.x_0, x_1)
    log_variance = reverse_log_variance(transition, prediction, variance, x_0)
    return -discretised_gaussian_log_likelihood(x_0, mean, log_variance, levels).flatten(1).sum(1)


def discretised_gaussian_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor, levels: int) -> Tensor:
    """Return the log of the mass that N(mean, variance) gives to the bin of each value, elementwise (Eq. 13)."""
    if levels < 2:
        raise ConfigError(f"levels is {levels}; the decoder of discrete data needs at least 2")
    half_bin = 1 / (levels - 1)
    inverse_deviation = torch.exp(-0.5 * log_variance)
    upper = torch.where(x_0 > 1 - half_bin, math.inf, (x_0 - mean + half_bin) * inverse_deviation)
    lower = torch.where(x_0 < -1 + half_bin, -math.inf, (x_0 - mean - half_bin) * inverse_deviation)
    # Both ends are mirrored into the lower tail, where log Phi keeps its precision and the difference does not cancel.
    mirrored = lower + upper > 0
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    mass: Tensor = log_high + torch.log(-torch.expm1(log_low - log_high))
    return mass


def reverse_log_variance(
    transition: Transition, prediction: Prediction, variance: ReverseVariance, like: Tensor
) -> Tensor:
    """Return log sigma^2 of p(x_{t-1} | x_t), [B, ...].

    Raises:
        ConfigError: for an unknown variance, or "learned" with a denoiser that has none.
    """
    if variance == "learned":
        if prediction.variance_fraction is None:
            raise ConfigError("variance 'learned', but this denoiser's variance is fixed")
        return transition.learned_log_variance(prediction.variance_fraction)
    if variance == "fixed_large":
        return expand_like(transition.variance_large.log(), like).expand_as(like)
    if variance == "fixed_small":
        return expand_like(transition.log_variance_small, like).expand_as(like)
    known = get_args(ReverseVariance)
    raise ConfigError(f"unknown variance '{variance}'{nearest(variance, known)}; known are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class LevelTerm:
    """What one noise level adds to the bound.

    Attributes:
        nats: [B], L_0, or the estimated sum of L_{t-1} over the times of a stratum.
        squared_error: [B], of the expected x_0, mean over the dimensions of a sample: the distortion.
    """

    nats: Tensor
    squared_error: Tensor


@torch.no_grad()
def level_terms(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    noise: NoiseSource,
    *,
    levels: int,
    variance: ReverseVariance = "fixed_small",
    strata: Sequence[range],
    times: Tensor,
    first_draw: int = 0,
) -> Iterator[LevelTerm]:
    """Yield L_0, then the part of each stratum: its number of times, times L_{t-1} at one of them.

    The expectation over a uniform t in a stratum is the sum over the stratum, so the estimate has no bias.

    Args:
        denoiser: the model; clipping is part of it.
        schedule: the noise schedule.
        x_0: [B, ...] in [-1, 1]; float64 for exact terms, never a half precision.
        noise: gives the eps of part k as draw number ``first_draw + k`` of the purpose "bound".
        levels: how many values a channel can take.
        variance: of the reverse process.
        strata: K ranges of times, in order, that partition 1 .. T - 1.
        times: [B, K], a time of each stratum for each sample.
        first_draw: number of the first draw, for independent repeats.
    """
    clean = torch.zeros(len(x_0), 1, dtype=torch.float64)
    for k, t in enumerate(torch.cat([clean, times.double()], 1).unbind(1)):
        x_t = process.q_sample(x_0, t, noise.normal(first_draw + k, "bound").to(x_0), schedule)
        prediction = denoiser(x_t, t)
        if k == 0:
            nats = decoder_term(x_0, x_t, prediction, schedule, levels, variance)
        else:
            nats = len(strata[k - 1]) * transition_term(x_0, x_t, t, prediction, schedule, variance)
        yield LevelTerm(nats, (prediction.x_0 - x_0).square().flatten(1).mean(1))


def variational_bound(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    noise: NoiseSource,
    *,
    levels: int,
    variance: ReverseVariance = "fixed_small",
) -> Bound:
    """Return every term of the bound for `x_0`, one draw of x_t each: an unbiased estimate.

    Args:
        denoiser: the model; clipping is part of it.
        schedule: the noise schedule.
        x_0: [B, ...] in [-1, 1]; float64 for exact terms, never a half precision.
        noise: gives the eps of each t as draw number t of the purpose "bound".
        levels: gray levels of the data.
        variance: of the reverse process.
    """
    strata = time_strata(schedule, len(schedule) - 1)
    times = torch.arange(1, len(schedule)).expand(len(x_0), -1)
    parts = level_terms(denoiser, schedule, x_0, noise, levels=levels, variance=variance, strata=strata, times=times)
    decoder, *transitions = (part.nats.double() for part in parts)
    return Bound(prior_term(x_0, schedule).double(), torch.stack(transitions, 1), decoder)


def time_strata(schedule: NoiseSchedule, count: int) -> tuple[range, ...]:
    """Partition the times 1 .. T - 1 into `count` ranges that hold about equal shares of the bound.

    The share of a step is taken as that of standard normal data, where E[L_{t-1}] is about half the fall of
    -log(1 - alpha-bar) per dimension: early times, which matter most, stand alone or nearly so.

    Raises:
        ConfigError: for a count outside 1 .. T - 1.
    """
    last = len(schedule) - 1
    if not 1 <= count <= last:
        raise ConfigError(f"{count} strata of the times 1 to {last}; expected 1 to {last}")
    information = torch.nn.functional.softplus(schedule.log_snr(torch.arange(last + 1)))  # -log(1 - alpha-bar_t)
    shares = (information[:-1] - information[1:]).tolist()
    strata: list[range] = []
    left, held, first = sum(shares), 0.0, 1
    for t, share in enumerate(shares, 1):
        held += share
        still_to_open = count - len(strata) - 1
        full = still_to_open > 0 and held >= left / (still_to_open + 1)
        if full or last - t == still_to_open:
            strata.append(range(first, t + 1))
            left, held, first = left - held, 0.0, t + 1
    return tuple(strata)


def stratified_times(strata: Sequence[range], seed: int, pictures: Sequence[int], repeat: int = 0) -> Tensor:
    """Return a uniform time of each stratum for each picture, int64 [B, K]: independent between pictures."""
    first = np.array([times.start for times in strata])
    size = np.array([len(times) for times in strata])
    rows = [
        first + np.floor(stream(seed, "bound t", picture, repeat).random(len(strata)) * size) for picture in pictures
    ]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
