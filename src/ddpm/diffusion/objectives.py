"""What a network is trained towards, and how its error is weighted: every loss is per sample, [B].

A weighting over noise levels is written once, as the weight of a squared error of v: unlike those of eps and x_0 it is
finite at every signal-to-noise ratio, 0 included. An error of eps, x_0 or mu is converted to it by an exact factor, so
the same weighting under two parameterizations is the same loss of the same prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.config import ObjectiveConfig
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Parameterization, split_output, to_prediction, unknown_parameterization
from ddpm.diffusion.likelihood import bits_per_dim, decoder_term, gaussian_kl, reverse_log_variance
from ddpm.diffusion.samplers.ancestral import ReverseVariance
from ddpm.diffusion.schedules import NoiseSchedule, VarianceKind, expand_like
from ddpm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Noised:
    """Data with the noise that they were given, all in one dtype on one device, but for the times.

    Attributes:
        x_0: [B, C, ...], in [-1, 1].
        eps: [B, C, ...].
        x_t: [B, C, ...], x_0 with eps at t.
        t: int64 [B], on the CPU.
    """

    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    t: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of a batch, each [B].

    Attributes:
        total: what is minimised.
        simple: the weighted mean squared error; none in the loss "bound".
        bound: T L_{t-1} in bits/dim: the mean over uniform t, with L_T added, is the bound; none in "simple".
    """

    total: Tensor
    simple: Tensor | None = None
    bound: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """Return what the total is made of, where that is more than one squared error."""
        named = {"simple": self.simple, "bound": self.bound}
        return {} if self.bound is None else {name: part for name, part in named.items() if part is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Losses:
        """Return the losses after `change` to each part."""
        changed = [None if part is None else change(part) for part in (self.simple, self.bound)]
        return Losses(change(self.total), *changed)


def concatenated(many: Sequence[Losses]) -> Losses:
    """Return the losses of several batches of one objective as those of one batch."""
    simple = [losses.simple for losses in many if losses.simple is not None]
    bound = [losses.bound for losses in many if losses.bound is not None]
    return Losses(
        torch.cat([losses.total for losses in many]),
        simple=torch.cat(simple) if simple else None,
        bound=torch.cat(bound) if bound else None,
    )


def training_losses(
    output: Tensor, noised: Noised, schedule: NoiseSchedule, objective: ObjectiveConfig, levels: int | None
) -> Losses:
    """Return the losses of a network's output.

    "simple" is Ho et al. 2020, Eq. 14, times the weighting; "bound" is Eq. 5, one term a sample; "hybrid" is
    L_simple + lambda L_vlb (Nichol & Dhariwal 2021, Eq. 16), where L_vlb moves the variance alone: the gradient that
    reaches the mean is that of L_simple, to the bit.

    Args:
        output: [B, C, ...], or [B, 2 C, ...] with a learned variance.
        noised: what the network saw, and what it was made from.
        schedule: the noise schedule.
        objective: the choice of loss.
        levels: gray levels of the data, for the decoder of L_0; none: data are continuous.

    Raises:
        ConfigError: for an output that is not of the shape that the variance asks for.
    """
    output = output.to(noised.x_0.dtype)
    mean, fraction = split_output(output, noised.x_t)
    if (fraction is not None) != (objective.variance == "learned"):
        has = "no output for the variance" if fraction is None else "an output for a learned variance"
        raise ConfigError(f"objective.variance is '{objective.variance}', but the network has {has}")
    if objective.loss == "bound":
        bound = bound_loss(output, noised, schedule, objective.parameterization, objective.variance, levels)
        return Losses(bound, bound=bound)
    wanted = target(noised.x_0, noised.eps, noised.x_t, noised.t, schedule, objective.parameterization)
    simple = squared_error(mean, wanted)
    simple = simple * expand_like(simple_weight(noised.t, schedule, objective), simple)
    if objective.loss == "simple":
        return Losses(simple, simple=simple)
    still = torch.cat([mean.detach(), output[:, mean.shape[1] :]], dim=1)
    bound = bound_loss(still, noised, schedule, objective.parameterization, objective.variance, levels)
    return Losses(simple + objective.bound_weight * bound, simple=simple, bound=bound)


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


def simple_weight(t: Tensor, schedule: NoiseSchedule, objective: ObjectiveConfig) -> Tensor:
    """Return the weight of the mean squared error of what the network outputs, float64 [B].

    With "none" it is 1 for every parameterization, which are then four different losses.
    """
    if objective.weighting == "none":
        return torch.ones(t.shape, dtype=torch.float64)
    return v_weight(schedule.log_snr(t), objective) * v_error_factor(t, schedule, objective.parameterization)


def v_weight(log_snr: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the weight that a weighting gives to a squared error of v, float64; that of x_0 over snr + 1.

    For a squared error of x_0 the sources have min(snr, gamma) (min-SNR; Hang et al. 2023), snr / (k +
    snr)^gamma (P2, there 1 / (k + snr)^gamma of eps; Choi et al. 2022), and snr + 1 / sigma_data^2 (EDM, there
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 with sigma^2 = 1 / snr; Karras et al. 2022, Table 1).

    Raises:
        ConfigError: for an unknown weighting.
    """
    signal, noise = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)  # snr / (snr + 1) and 1 / (snr + 1)
    if objective.weighting == "min_snr":
        return torch.minimum(signal, objective.min_snr_gamma * noise)
    if objective.weighting == "p2":
        return signal * (objective.p2_k + log_snr.exp()).pow(-objective.p2_gamma)
    if objective.weighting == "edm":
        return signal + noise / objective.edm_sigma_data**2
    raise ConfigError(f"no weight belongs to the weighting '{objective.weighting}'; known are min_snr, p2, edm")


def v_error_factor(t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization) -> Tensor:
    """Return the factor that turns a squared error of the parameterization into one of v, float64 [B].

    Squared errors of one prediction are to each other as x_0: 1, eps: snr, v: snr + 1, mu: the square of x_0's weight
    in mu. At zero SNR eps says nothing of v: the factor is 0 there.
    """
    log_snr = schedule.log_snr(t)
    if parameterization == "v":
        return torch.ones_like(log_snr)
    if parameterization == "eps":
        return torch.where(log_snr == -torch.inf, 0.0, 1 / torch.sigmoid(log_snr))
    per_x_0 = 1 / torch.sigmoid(-log_snr)
    if parameterization == "x_0":
        return per_x_0
    if parameterization == "mu":
        return per_x_0 / schedule.transition(t, process.previous_time(t)).x_0_weight.square()
    raise unknown_parameterization(parameterization)


def mu_error_factor(t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization) -> Tensor:
    """Return the factor that turns a squared error of the parameterization into one of mu, float64 [B].

    For eps it is beta^2 / (alpha (1 - alpha-bar)) (Ho et al. 2020, Eq. 11 in Eq. 8); for x_0 the square of its weight
    in mu (Eq. 7); for v that times 1 - alpha-bar.
    """
    transition = schedule.transition(t, process.previous_time(t))
    noise = schedule.signal_and_noise(t)[1]
    per_x_0 = transition.x_0_weight.square()
    if parameterization == "mu":
        return torch.ones_like(per_x_0)
    if parameterization == "x_0":
        return per_x_0
    if parameterization == "v":
        return per_x_0 * noise.square()
    if parameterization == "eps":
        beta = transition.variance_large
        return beta.square() / ((1 - beta) * noise.square())
    raise unknown_parameterization(parameterization)


def bound_weight(
    t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization, variance: VarianceKind
) -> Tensor:
    """Return the w_t that turns a squared error (summed over dimensions) into L_{t-1} in nats, float64 [B].

    For mu: 1 / (2 sigma^2) (Ho et al. 2020, Eq. 8); for the others that times `mu_error_factor` (for eps: Eq. 12).
    With "fixed_large", KL(q || p) has a constant beside this term; with "fixed_small" it is the whole. L_simple is the
    reweighting w = 1: it is not L_{t-1}.

    Args:
        t: [B], at least 1 (the paper's t > 1; the paper's L_0 is a likelihood, not a KL).
        schedule: the noise schedule.
        parameterization: what the error is an error of.
        variance: sigma^2.
    """
    transition = schedule.transition(t, process.previous_time(t))
    return 0.5 / transition.variance(variance) * mu_error_factor(t, schedule, parameterization)


def bound_loss(
    output: Tensor,
    noised: Noised,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    variance: ReverseVariance,
    levels: int | None,
) -> Tensor:
    """Return T times the term of the bound at t, in bits/dim, [B]: L_{t-1}, or L_0 where t = 0 (Ho et al. 2020, Eq. 5).

    The distance of the means comes from the error of the output by its exact factor, never from two means: at small
    beta these differ in their last digits only, which float32 would lose.

    Args:
        output: [B, C, ...], or [B, 2 C, ...] with a learned variance.
        noised: what the network saw, and what it was made from.
        schedule: the noise schedule.
        parameterization: what the network outputs.
        variance: of the reverse process.
        levels: gray levels of the data; none: L_0 is the Gaussian density.
    """
    x_0, x_t, t = noised.x_0, noised.x_t, noised.t
    error = split_output(output, x_t)[0] - target(x_0, noised.eps, x_t, t, schedule, parameterization)
    transition = schedule.transition(t, process.previous_time(t))
    distance = expand_like(mu_error_factor(t, schedule, parameterization).sqrt(), error) * error
    prediction = to_prediction(output, x_t, t, schedule, parameterization)
    log_variance = reverse_log_variance(transition, prediction, variance, x_0)
    true_log_variance = expand_like(transition.log_variance_small, x_0).expand_as(x_0)
    kl = gaussian_kl(distance, true_log_variance, torch.zeros_like(distance), log_variance)
    nats = kl.flatten(1).sum(1)
    first = (t == 0).nonzero().squeeze(1).to(x_0.device)
    if len(first):
        decoded = _decoder_nats(output[first], x_0[first], x_t[first], schedule, parameterization, variance, levels)
        nats = nats.index_copy(0, first, decoded)
    return len(schedule) * bits_per_dim(nats, x_0[0].numel())


def _decoder_nats(
    output: Tensor,
    x_0: Tensor,
    x_1: Tensor,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    variance: ReverseVariance,
    levels: int | None,
) -> Tensor:
    """Return L_0, [B] nats, in the dtype of `x_0`: discretised, or for continuous data the negative log density."""
    precise = torch.float32 if x_0.device.type == "mps" else torch.float64  # bins are differences of tiny tails
    of_bin, at_1 = x_0.to(precise), x_1.to(precise)
    t = torch.zeros(len(x_0))
    prediction = to_prediction(output.to(precise), at_1, t, schedule, parameterization)
    if levels is not None:
        return decoder_term(of_bin, at_1, prediction, schedule, levels, variance).to(x_0.dtype)
    transition = schedule.transition(t, torch.full_like(t, -1.0))
    log_variance = reverse_log_variance(transition, prediction, variance, of_bin)
    distance = of_bin - transition.mean(prediction.x_0, at_1)
    density = -0.5 * (distance.square() * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi))
    return -density.flatten(1).sum(1).to(x_0.dtype)


def snr(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the signal-to-noise ratio alpha-bar / (1 - alpha-bar), float64 of the shape of `t`."""
    return torch.exp(schedule.log_snr(t))
