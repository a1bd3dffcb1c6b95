"""Denoising diffusion implicit models, and the way back: from a picture to its noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.step import (
    CLEAN,
    AfterStep,
    Evaluator,
    Interval,
    Level,
    SampleStep,
    levels_of,
    transfer,
    walk,
)
from ddpm.diffusion.samplers.timesteps import checked_timesteps
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError


def ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    eta: float = 0.0,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by Song et al. 2021, Eq. 12 and 16, over any decreasing list of times.

    x_s = sqrt(alpha-bar_s) x_0-hat + sqrt(1 - alpha-bar_s - sigma^2) eps-hat + sigma z, with sigma = eta
    sqrt(beta-tilde). eta = 0 is deterministic; eta = 1 is `ddpm` with variance "fixed_small".

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: where z comes from; not used at eta = 0.
        timesteps: strictly decreasing; none visits all T.
        eta: 0 to 1.
        after_step: may change x_s.

    Raises:
        SamplingError: if eta is out of its range, or the timesteps are empty, not strictly decreasing or off the
            schedule.
    """
    if not 0 <= eta <= 1:
        raise SamplingError(f"eta is {eta}; expected 0 (deterministic) to 1 (ancestral)")

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        prediction = evaluate(x_t, start.t)
        if eta == 0 or end.t == CLEAN:
            return transfer(prediction, end), prediction
        fresh_variance = eta**2 * float(schedule.transition(start.t, end.t).variance_small)
        kept = max(end.noise**2 - fresh_variance, 0.0) ** 0.5
        fresh = noise.normal(interval.index, "step").to(x_t.dtype)
        return end.signal * prediction.x_0 + kept * prediction.eps + fresh_variance**0.5 * fresh, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def ddim_invert(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    *,
    timesteps: Sequence[float] | None = None,
    iterations: int = 3,
) -> Iterator[SampleStep]:
    """Encode clean data as noise: run `ddim` at eta = 0 backwards (Song et al. 2021, Sec. 4.3).

    From s up to t, x_t solves x_s = signal_s x_0-hat(x_t) + noise_s eps-hat(x_t), the step that `ddim` takes down. It
    is found by fixed-point iteration from the last eps. One iteration is the usual first-order inversion; more make
    the round trip exact, wherever the iteration contracts (small steps; not the point masses of a finite set).

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_0: [B, ...], clean data.
        timesteps: those of the sampler to invert, strictly decreasing; none visits all T. They are walked upwards.
        iterations: evaluations of the denoiser a step, from 1.

    Yields:
        A step for every time, from the smallest: t is where it came from (-1 at first), s > t where it went, x is
        x_s, and the prediction is the last one made at s. The last x is x_T.

    Raises:
        SamplingError: for no iterations, or timesteps that are empty, not strictly decreasing or off the schedule.
    """
    if iterations < 1:
        raise SamplingError(f"{iterations} iterations; expected at least 1")
    times = checked_timesteps(timesteps, schedule)
    return _inversion(Evaluator(denoiser), x_0, levels_of(schedule, [CLEAN, *reversed(times)]), iterations)


@torch.no_grad()
def _inversion(evaluate: Evaluator, x: Tensor, levels: Sequence[Level], iterations: int) -> Iterator[SampleStep]:
    eps = torch.zeros_like(x)
    for index, (start, end) in enumerate(pairwise(levels)):
        clean = (x - start.noise * eps) / start.signal
        for _ in range(iterations):
            prediction = evaluate(end.signal * clean + end.noise * eps, end.t)
            eps = prediction.eps
            clean = (x - start.noise * eps) / start.signal
        x = end.signal * clean + end.noise * eps
        yield SampleStep(index, len(levels) - 1, start.t, end.t, x, prediction)
