"""Guidance: denoisers made of denoisers, before any sampler sees them.

With two predictions of the same x_t, `b + scale (a - b)` keeps x_t = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) eps, for
the weights add up to one: it is the same in x_0, eps, v and the score. A scale of 1 is `a` alone: no guidance. The w of
Ho & Salimans 2022 is scale - 1; the guidance_scale of diffusers, and the s of Dhariwal & Nichol 2021, are this scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.conditions import Condition, concatenated
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import ConditionalDenoiser, Denoiser, Prediction
from ddpm.diffusion.schedules import NoiseSchedule, expand_like
from ddpm.errors import SamplingError

LogProbability = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], t [B]) -> log p(y | x_t) [B] of the classes asked for, differentiable in x_t."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """How strongly, when, and how much of the contrast that it adds is taken back.

    Attributes:
        scale: 1 is what the condition alone makes; 0 is what is guided away from.
        interval: least and largest t of the guided steps (Kynkäänniemi et al. 2024); none: all.
        rescale: share of the contrast of x_0, its deviation within a picture, that is brought back to that without
            guidance (Lin et al. 2023, Sec. 3.4); 0 to 1.

    Raises:
        SamplingError: for numbers out of range.
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise SamplingError(f"guidance scale {self.scale}; expected a number from 0 (1 is no guidance)")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise SamplingError(f"guidance interval {list(self.interval)}; expected two times t, the smaller one first")
        if not 0 <= self.rescale <= 1:
            raise SamplingError(f"guidance rescale {self.rescale}; expected 0 to 1")

    def inside(self, t: Tensor) -> Tensor:
        """Return which of the times [B] lie in the interval, bool [B] on the CPU."""
        if self.interval is None:
            return torch.ones(len(t), dtype=torch.bool)
        low, high = self.interval
        return ((t >= low) & (t <= high)).cpu()


def classifier_free(
    denoiser: ConditionalDenoiser,
    condition: Condition,
    guidance: Guidance,
    schedule: NoiseSchedule,
    *,
    against: Condition | None = None,
) -> Denoiser:
    """Return classifier-free guidance (Ho & Salimans 2022, Eq. 6): one pass over twice the batch, or a plain one.

    eps = eps(none) + scale (eps(y) - eps(none)), within the interval. Outside of it, and everywhere at scale 1, it is
    the conditional prediction, bit for bit.

    Args:
        denoiser: of a network trained with and without conditions.
        condition: y, of B pictures.
        guidance: how strongly, and when.
        schedule: the noise schedule.
        against: what is guided away from, a negative prompt; none: no condition.
    """
    away = condition.dropped() if against is None else against
    both = concatenated([condition, away])

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        acts = guidance.inside(t)
        if guidance.scale == 1 or not bool(acts.any()):
            return denoiser(x_t, t, condition, previous)
        if guidance.scale == 0 and bool(acts.all()):
            return denoiser(x_t, t, away, previous)
        found = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both, _twice(previous))
        towards, apart = _half(found, slice(None, len(x_t))), _half(found, slice(len(x_t), None))
        return _guided(towards, apart, x_t, t, acts, guidance, schedule)

    return denoise


def autoguided(denoiser: Denoiser, worse: Denoiser, guidance: Guidance, schedule: NoiseSchedule) -> Denoiser:
    """Return autoguidance (Karras et al. 2024a, Eq. 3): away from a worse model with the same condition.

    The worse model, smaller or less trained, makes the same errors more strongly; what it shares with the good one,
    the class and its variety, stays.

    Args:
        denoiser: the good one, with its condition.
        worse: the bad one, with the same condition.
        guidance: how strongly, and when.
        schedule: of both.
    """

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        prediction = denoiser(x_t, t, previous)
        acts = guidance.inside(t)
        if guidance.scale == 1 or not bool(acts.any()):
            return prediction
        return _guided(prediction, worse(x_t, t, previous), x_t, t, acts, guidance, schedule)

    return denoise


def classifier_guided(
    denoiser: Denoiser, log_probability: LogProbability, guidance: Guidance, schedule: NoiseSchedule
) -> Denoiser:
    """Return classifier guidance in its score form (Dhariwal & Nichol 2021, Alg. 2), for any sampler.

    eps = eps - scale sqrt(1 - alpha-bar) grad log p(y | x_t). By Bayes' rule, with an exact classifier it is what
    `classifier_free` makes at the same scale: 0 is unconditional, 1 conditional.

    Args:
        denoiser: unconditional; one with the condition is at scale 1 already, and the scale here is added to it.
        log_probability: of a classifier of x_t.
        guidance: how strongly, and when.
        schedule: the noise schedule.
    """

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        prediction = denoiser(x_t, t, previous)
        acts = guidance.inside(t)
        if guidance.scale == 0 or not bool(acts.any()):
            return prediction
        signal, noise = (expand_like(each, x_t) for each in schedule.signal_and_noise(t))
        push = guidance.scale * noise * gradient(log_probability, x_t, t)
        # x_t without signal says nothing of y: its gradient is 0, and so is its effect on x_0.
        moved = torch.where(signal > 0, noise / signal * push, torch.zeros_like(push))
        shifted = Prediction(prediction.x_0 + moved, prediction.eps - push, prediction.variance_fraction)
        return _where(acts, _rescaled(shifted, prediction, x_t, t, guidance.rescale, schedule), prediction)

    return denoise


def mean_shift(log_probability: LogProbability, guidance: Guidance) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return classifier guidance in its mean form (Dhariwal & Nichol 2021, Alg. 1), for the sampler `ddpm`.

    The mean of each step moves by scale Sigma grad log p(y | x_t). The score form moves it by x_0's weight in that mean
    times its own shift: the same to first order in the step, and not the same in few steps.

    Returns:
        (x_t [B, ...], t [B], variance of the step, [B, ...] or a number) -> what to add to the mean [B, ...].
    """

    def shift(x_t: Tensor, t: Tensor, variance: Tensor) -> Tensor:
        acts = guidance.inside(t)
        if guidance.scale == 0 or not bool(acts.any()):
            return torch.zeros_like(x_t)
        moved = guidance.scale * variance * gradient(log_probability, x_t, t)
        return torch.where(_rows(acts, moved), moved, torch.zeros_like(moved))

    return shift


def gradient(log_probability: LogProbability, x_t: Tensor, t: Tensor) -> Tensor:
    """Return grad log p(y | x_t) in x_t [B, ...], also within `torch.no_grad`."""
    with torch.enable_grad():
        leaf = x_t.detach().requires_grad_(True)
        total = log_probability(leaf, t).sum()  # a picture's probability depends on that picture alone
        (found,) = torch.autograd.grad(total, leaf)
    return found


def _guided(
    towards: Prediction,
    apart: Prediction,
    x_t: Tensor,
    t: Tensor,
    acts: Tensor,
    guidance: Guidance,
    schedule: NoiseSchedule,
) -> Prediction:
    scale = guidance.scale
    mixed = Prediction(
        apart.x_0 + scale * (towards.x_0 - apart.x_0),
        apart.eps + scale * (towards.eps - apart.eps),
        towards.variance_fraction,
    )
    return _where(acts, _rescaled(mixed, towards, x_t, t, guidance.rescale, schedule), towards)


def _rescaled(
    guided: Prediction, plain: Prediction, x_t: Tensor, t: Tensor, share: float, schedule: NoiseSchedule
) -> Prediction:
    """Bring the deviation of x_0 within each picture back, for a share of it, to that of the plain prediction."""
    if share == 0:
        return guided
    wanted, have = (each.x_0.flatten(1).std(dim=1, correction=0) for each in (plain, guided))
    ratio = torch.where(have > 0, wanted / have, torch.ones_like(have))
    x_0 = guided.x_0 * expand_like(share * ratio + (1 - share), guided.x_0)
    return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule), guided.variance_fraction)


def _where(acts: Tensor, guided: Prediction, plain: Prediction) -> Prediction:
    if bool(acts.all()):
        return guided
    rows = _rows(acts, guided.x_0)
    return Prediction(
        torch.where(rows, guided.x_0, plain.x_0), torch.where(rows, guided.eps, plain.eps), plain.variance_fraction
    )


def _rows(acts: Tensor, like: Tensor) -> Tensor:
    return acts.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _twice(previous: Prediction | None) -> Prediction | None:
    """Return what both halves of the batch see of the step before: the guided prediction, which x_t came from."""
    if previous is None:
        return None
    return Prediction(torch.cat([previous.x_0, previous.x_0]), torch.cat([previous.eps, previous.eps]))


def _half(prediction: Prediction, rows: slice) -> Prediction:
    fraction = prediction.variance_fraction
    return Prediction(prediction.x_0[rows], prediction.eps[rows], None if fraction is None else fraction[rows])
