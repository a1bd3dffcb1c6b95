"""The variational bound, term by term: E[-log p(x_0)] <= L_T + sum_{t>1} L_{t-1} + L_0 (Ho et al. 2020, Eq. 5).

Every term is per sample, [B], in nats, summed over the dimensions of a sample. L = -ELBO is minimised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
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


@torch.no_grad()
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
    columns = []
    decoder = torch.empty(0)
    for t in range(len(schedule)):
        times = torch.full((len(x_0),), float(t), dtype=torch.float64)
        x_t = process.q_sample(x_0, times, noise.normal(t, "bound").to(x_0.dtype), schedule)
        prediction = denoiser(x_t, times)
        if t == 0:
            decoder = decoder_term(x_0, x_t, prediction, schedule, levels, variance)
        else:
            columns.append(transition_term(x_0, x_t, times, prediction, schedule, variance))
    return Bound(prior_term(x_0, schedule).double(), torch.stack(columns, 1).double(), decoder.double())
