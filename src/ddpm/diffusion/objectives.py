"""What a network is trained towards, and how its error is weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Parameterization, unknown_parameterization
from ddpm.diffusion.schedules import NoiseSchedule, VarianceKind


def target(
    x_0: Tensor,
    eps: Tensor,
    x_t: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
) -> Tensor:
    """Return what the network should output [B, ...]: eps, x_0, v, or mu, the mean of q(x_{t-1} | x_t, x_0)."""
    if parameterization == "eps":
        return eps
    if parameterization == "x_0":
        return x_0
    if parameterization == "v":
        return process.v_from_x_0_eps(x_0, eps, t, schedule)
    if parameterization == "mu":
        return process.mu_from_x_0(x_0, x_t, t, schedule)
    raise unknown_parameterization(parameterization)


def squared_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error of each sample, float32 or better, [B].

    With the target eps and t uniform, its mean over the batch is L_simple (Ho et al. 2020, Eq. 14).
    """
    error = output.to(wanted.dtype) - wanted
    return error.square().flatten(1).mean(1)


def bound_weight(
    t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization, variance: VarianceKind
) -> Tensor:
    """Return the w_t that turns a squared error (summed over dimensions) into L_{t-1} in nats, float64 [B].

    For eps: beta^2 / (2 sigma^2 alpha (1 - alpha-bar)) (Ho et al. 2020, Eq. 12); for mu: 1 / (2 sigma^2) (Eq. 8);
    for x_0: the square of its weight in mu, over 2 sigma^2 (Eq. 7 in Eq. 8); for v: that times 1 - alpha-bar. With
    "fixed_large", KL(q || p) has a constant beside this term; with "fixed_small" it is the whole. L_simple is the
    reweighting w = 1: it is not L_{t-1}.

    Args:
        t: [B], at least 1 (the paper's t > 1; the paper's L_0 is a likelihood, not a KL).
        schedule: the noise schedule.
        parameterization: what the error is an error of.
        variance: sigma^2.
    """
    transition = schedule.transition(t, process.previous_time(t))
    half_precision = 0.5 / transition.variance(variance)
    noise = schedule.signal_and_noise(t)[1]
    per_x_0 = half_precision * transition.x_0_weight.square()
    if parameterization == "mu":
        return half_precision
    if parameterization == "x_0":
        return per_x_0
    if parameterization == "v":
        return per_x_0 * noise.square()
    if parameterization == "eps":
        beta = transition.variance_large
        return half_precision * beta.square() / ((1 - beta) * noise.square())
    raise unknown_parameterization(parameterization)


def snr(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the signal-to-noise ratio alpha-bar / (1 - alpha-bar), float64 of the shape of `t`."""
    return torch.exp(schedule.log_snr(t))
