"""The ancestral sampler of DDPM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.step import CLEAN, AfterStep, Evaluator, Interval, SampleStep, walk
from ddpm.diffusion.schedules import NoiseSchedule, Transition, expand_like
from ddpm.errors import SamplingError, nearest

ReverseVariance = Literal["fixed_large", "fixed_small", "learned"]

MeanShift = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t [B, ...], t float64 [B], variance of the step, like x_t) -> what to add to the step's mean [B, ...]."""


def ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    variance: ReverseVariance = "fixed_large",
    mean_shift: MeanShift | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by x_s = mu-tilde(x_t, x_0-hat) + sigma z (Ho et al. 2020, Alg. 2), over any decreasing list of times.

    The last step returns the mean: it adds no noise.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: where z comes from.
        timesteps: strictly decreasing; none visits all T.
        variance: sigma^2 = beta ("fixed_large", best for x_0 ~ N(0, I)), beta-tilde ("fixed_small", best for a
            point), or what the denoiser learned.
        mean_shift: moves the mean of every step but the last, whose variance is 0: classifier guidance in the form of
            Dhariwal & Nichol 2021, Alg. 1.
        after_step: may change x_s.

    Raises:
        SamplingError: for an unknown variance, "learned" with a denoiser that has none, or timesteps that are empty,
            not strictly decreasing or off the schedule.
    """
    known = get_args(ReverseVariance)
    if variance not in known:
        raise SamplingError(f"unknown variance '{variance}'{nearest(variance, known)}; known are {', '.join(known)}")

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        prediction = evaluate(x_t, interval.start.t)
        transition = schedule.transition(interval.start.t, interval.end.t)
        mean = transition.mean(prediction.x_0, x_t)
        if interval.end.t == CLEAN:
            return mean, prediction
        deviation = _deviation(prediction, transition, variance, mean)
        if mean_shift is not None:
            times = torch.full((len(x_t),), interval.start.t, dtype=torch.float64)
            mean = mean + mean_shift(x_t, times, deviation.square())
        fresh = noise.normal(interval.index, "step").to(mean.dtype)
        return mean + deviation * fresh, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def _deviation(prediction: Prediction, transition: Transition, variance: ReverseVariance, like: Tensor) -> Tensor:
    if variance != "learned":
        return expand_like(transition.variance(variance).sqrt(), like)
    if prediction.variance_fraction is None:
        raise SamplingError(
            "variance 'learned', but this model's variance is fixed; use 'fixed_large' or 'fixed_small'"
        )
    return (0.5 * transition.learned_log_variance(prediction.variance_fraction)).exp()
