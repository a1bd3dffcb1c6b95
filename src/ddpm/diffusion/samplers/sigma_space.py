"""Euler's and Heun's methods in sigma, with churn (Karras et al. 2022, Alg. 2), on the discrete model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError


def euler(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by Euler's method in sigma (Karras et al. 2022, Alg. 2 without lines 7 and 8): `ddim` with churn.

    x_s / signal_s = x / signal + (sigma_s - sigma) eps-hat, from a sigma raised by churn.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: what churn adds; not used without.
        timesteps: strictly decreasing; none visits all T.
        churn: S_churn, from 0. In each step sigma is first raised by the factor 1 + min(churn / steps, sqrt(2) - 1),
            as far as the schedule reaches, with fresh noise.
        churn_range: S_tmin and S_tmax, the sigmas between which there is churn.
        churn_noise: S_noise, the deviation of the fresh noise.
        after_step: may change x_s.

    Raises:
        SamplingError: for a churn that is negative or not finite, or timesteps that are empty, not strictly decreasing
            or off the schedule.
    """
    added = _Churn.checked(schedule, noise, churn, churn_range, churn_noise)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        x, start = added.raised(x_t, interval)
        prediction = evaluate(x, start.t)
        return transfer(prediction, interval.end), prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def heun(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by Heun's method in sigma (Karras et al. 2022, Alg. 1 and 2): two evaluations a step, one in the last.

    x_s / signal_s = x / signal + (sigma_s - sigma) (eps-hat(x, sigma) + eps-hat(Euler's x_s, sigma_s)) / 2, from a
    sigma raised by churn.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: what churn adds; not used without.
        timesteps: strictly decreasing; none visits all T.
        churn: S_churn, from 0. In each step sigma is first raised by the factor 1 + min(churn / steps, sqrt(2) - 1),
            as far as the schedule reaches, with fresh noise.
        churn_range: S_tmin and S_tmax, the sigmas between which there is churn.
        churn_noise: S_noise, the deviation of the fresh noise.
        after_step: may change x_s.

    Raises:
        SamplingError: for a churn that is negative or not finite, or timesteps that are empty, not strictly decreasing
            or off the schedule.
    """
    added = _Churn.checked(schedule, noise, churn, churn_range, churn_noise)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        x, start = added.raised(x_t, interval)
        end = interval.end
        prediction = evaluate(x, start.t)
        x_s = transfer(prediction, end)
        if end.t == CLEAN or start.signal == 0:
            return x_s, prediction
        change = evaluate(x_s, end.t).eps - prediction.eps
        return x_s + 0.5 * (end.noise - end.signal * start.sigma) * change, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


@dataclass(frozen=True, slots=True)
class _Churn:
    """Karras et al. 2022, Alg. 2, lines 4 to 6."""

    schedule: NoiseSchedule
    noise: NoiseSource
    amount: float
    sigma_range: tuple[float, float]
    deviation: float
    largest: Level

    @staticmethod
    def checked(
        schedule: NoiseSchedule,
        noise: NoiseSource,
        amount: float,
        sigma_range: tuple[float, float],
        deviation: float,
    ) -> _Churn:
        if not 0 <= amount < math.inf:
            raise SamplingError(f"churn is {amount}; expected a number from 0 (none)")
        if not 0 <= sigma_range[0] <= sigma_range[1]:
            raise SamplingError(f"churn_range is {sigma_range}; expected two sigmas from 0, the smaller first")
        if not 0 <= deviation < math.inf:
            raise SamplingError(f"churn_noise is {deviation}; expected a deviation from 0, near 1")
        (largest,) = levels_of(schedule, [len(schedule) - 1])
        return _Churn(schedule, noise, amount, sigma_range, deviation, largest)

    def raised(self, x_t: Tensor, interval: Interval) -> tuple[Tensor, Level]:
        """Return x at a higher sigma, and its level; the level of x_t itself where there is no churn."""
        start, num_steps = interval.start, interval.index + interval.remaining
        factor = 1 + min(self.amount / num_steps, math.sqrt(2) - 1)
        sigma = min(start.sigma * factor, self.largest.sigma)
        low, high = self.sigma_range
        if not (low <= start.sigma <= high and start.sigma < sigma < math.inf):
            return x_t, start
        (level,) = levels_of(self.schedule, [float(self.schedule.t_of(-2 * math.log(sigma)))])
        z = self.noise.normal(interval.index, "churn").to(x_t.dtype)
        added = level.signal * math.sqrt(max(level.sigma**2 - start.sigma**2, 0.0)) * self.deviation
        return level.signal / start.signal * x_t + added * z, level
