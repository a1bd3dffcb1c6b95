"""Langevin dynamics: annealed on its own, or as the corrector after an ancestral step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    transfer,
    walk,
)
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError


def langevin(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    inner_steps: int = 5,
    step_size: float = 0.2,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by annealed Langevin dynamics (Song & Ermon 2019, Alg. 1; 2020, Alg. 1): walk the noise, not the flow.

    At each time x <- x + a score(x) + sqrt(2 a) z, `inner_steps` times, with score = -eps-hat / sqrt(1 - alpha-bar) and
    a = step_size (1 - alpha-bar), their alpha_i / 2; then x is rescaled to the next time. After the last time comes
    x_0-hat, which takes the last noise away.

    Its limit: a Gaussian's variance V comes out as V / (1 - a / (2 V)) at each time, so it is exact only as step_size
    tends to 0 with step_size * inner_steps large and times close together. It needs many more evaluations than the
    others, and is here for what it teaches.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: where z comes from.
        timesteps: strictly decreasing; none visits all T.
        inner_steps: Langevin steps at each time, from 1.
        step_size: above 0, below 2, where a step would overshoot a Gaussian of the noise's own width.
        after_step: may change x_s.

    Raises:
        SamplingError: for inner_steps or a step_size out of range, or timesteps that are empty, not strictly decreasing
            or off the schedule.
    """
    _check(inner_steps, "inner_steps", step_size)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        first: Prediction | None = None
        for k in range(inner_steps):
            prediction = evaluate(x_t, start.t)
            first = first or prediction
            z = noise.normal(interval.index * inner_steps + k, "langevin").to(x_t.dtype)
            x_t = _langevin_step(x_t, prediction, start, step_size, z)
        assert first is not None  # there is at least one inner step
        if end.t == CLEAN or start.signal == 0:
            return transfer(evaluate(x_t, start.t), end), first
        return end.signal / start.signal * x_t, first

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def predictor_corrector(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    corrector_steps: int = 1,
    snr: float = 0.16,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by predictor and corrector (Song et al. 2021, Alg. 3 and 5): an ancestral step, then Langevin steps at s.

    The predictor is `ddpm` with variance "fixed_small"; the corrector is x <- x + a score(x) + sqrt(2 a) z with a = 2
    snr^2 (1 - alpha-bar_s). Song et al. take a from the norms of z and of the score, averaged over the batch; here
    both are at their expectation, so that a picture does not depend on its batch. The last step is not corrected.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: where z comes from.
        timesteps: strictly decreasing; none visits all T.
        corrector_steps: Langevin steps a step, from 1.
        snr: r, the corrector's ratio of signal to noise, above 0 and below 1.
        after_step: may change x_s.

    Raises:
        SamplingError: for corrector_steps or an snr out of range, or timesteps that are empty, not strictly decreasing
            or off the schedule.
    """
    if not 0 < snr < 1:
        raise SamplingError(f"snr is {snr}; expected above 0 and below 1, near 0.16")
    step_size = 2 * snr**2
    _check(corrector_steps, "corrector_steps", step_size)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        prediction = evaluate(x_t, start.t)
        transition = schedule.transition(start.t, end.t)
        x = transition.mean(prediction.x_0, x_t)
        if end.t == CLEAN:
            return x, prediction
        z = noise.normal(interval.index, "step").to(x_t.dtype)
        x = x + float(transition.variance_small) ** 0.5 * z
        for k in range(corrector_steps):
            z = noise.normal(interval.index * corrector_steps + k, "langevin").to(x_t.dtype)
            x = _langevin_step(x, evaluate(x, end.t), end, step_size, z)
        return x, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def _langevin_step(x: Tensor, prediction: Prediction, level: Level, step_size: float, z: Tensor) -> Tensor:
    """Return x + a score + sqrt(2 a) z, with a = step_size noise^2 and score = -eps / noise."""
    return x - step_size * level.noise * prediction.eps + math.sqrt(2 * step_size) * level.noise * z


def _check(count: int, name: str, step_size: float) -> None:
    if type(count) is not int or count < 1:
        raise SamplingError(f"{name} is {count}; expected at least 1")
    if not 0 < step_size < 2:
        raise SamplingError(f"step_size is {step_size}; expected above 0 and below 2")
