"""DPM-Solver++: exponential integrators in lambda = half log SNR that predict x_0 (Lu et al. 2022b)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.multistep import exponential_weights, multistep, usable
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


def dpm_solver_pp(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by DPM-Solver++(2M) (Lu et al. 2022b, Alg. 2): second order from one evaluation a step.

    x_s = (noise_s / noise_t) x_t + signal_s (1 - e^-h) D, D = x_0 + (x_0 - x_0-before) / (2 r), h the step in lambda
    and r the ratio of the step before to it.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T.
        after_step: may change x_s.

    Raises:
        SamplingError: if the timesteps are empty, not strictly decreasing or off the schedule.
    """
    return walk(multistep("x_0", 2, second_order_weights), denoiser, schedule, x_T, timesteps, after_step)


def second_order_weights(levels: Sequence[Level], end: Level) -> list[float]:
    """Return the weights of x_0 in x_s by the slope through two levels, with (1 - e^-h) / 2 for its exact weight."""
    if len(levels) == 1:
        return [0.0]
    start, before = levels
    h, h_before = end.half_log_snr - start.half_log_snr, start.half_log_snr - before.half_log_snr
    weight = end.signal * math.expm1(-h) * h / (2 * h_before)
    return [-weight, weight]


def dpm_solver_pp_3m(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by the third-order multistep form of DPM-Solver++ (Lu et al. 2022b, Eq. 9 with n = 3).

    x_s = (noise_s / noise_t) x_t + noise_s * the integral of e^lambda p(lambda), p the parabola through the last three
    x_0. The widespread code of this solver takes half of the parabola's second derivative, and so falls back to
    second order; the integral here is exact.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T.
        after_step: may change x_s.

    Raises:
        SamplingError: if the timesteps are empty, not strictly decreasing or off the schedule.
    """
    return walk(multistep("x_0", 3, exponential_weights), denoiser, schedule, x_T, timesteps, after_step)


def dpm_solver_pp_2s(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by DPM-Solver++(2S) (Lu et al. 2022b, Alg. 1) with r = 1/2: two evaluations a step, no memory.

    u lies halfway in lambda; x_s = (noise_s / noise_t) x_t + signal_s (1 - e^-h) x_0-hat(x_u, u), with x_u by `ddim`.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T.
        after_step: may change x_s.

    Raises:
        SamplingError: if the timesteps are empty, not strictly decreasing or off the schedule.
    """

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        prediction = evaluate(x_t, start.t)
        x_s = transfer(prediction, end)
        h = end.half_log_snr - start.half_log_snr
        if not math.isfinite(h):
            return x_s, prediction
        (halfway,) = levels_of(schedule, [float(schedule.t_of(start.half_log_snr + end.half_log_snr))])
        change = evaluate(transfer(prediction, halfway), halfway.t).x_0 - prediction.x_0
        return x_s - end.signal * math.expm1(-h) * change, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def dpm_solver_pp_sde(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by SDE-DPM-Solver++(2M) (Lu et al. 2022b, Eq. 19 and App. B): 2M for the reverse stochastic equation.

    x_s = (noise_s / noise_t) e^-h x_t + signal_s (1 - e^-2h) D + noise_s sqrt(1 - e^-2h) z, D as in `dpm_solver_pp`.
    With D = x_0 it is `ddpm` with variance "fixed_small".

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: where z comes from.
        timesteps: strictly decreasing; none visits all T.
        after_step: may change x_s.

    Raises:
        SamplingError: if the timesteps are empty, not strictly decreasing or off the schedule.
    """
    past: deque[tuple[Level, Tensor]] = deque(maxlen=2)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        prediction = evaluate(x_t, start.t)
        past.appendleft((start, prediction.x_0))
        if end.t == CLEAN:
            return prediction.x_0, prediction
        h = end.half_log_snr - start.half_log_snr
        kept, fresh = math.exp(-h), -math.expm1(-2 * h)
        x_s = end.signal * fresh * prediction.x_0 + end.noise / start.noise * kept * x_t
        used = usable(past, interval.remaining, end)
        if len(used) == 2:
            ratio = h / (start.half_log_snr - used[1][0].half_log_snr)
            x_s = x_s + end.signal * fresh * 0.5 * ratio * (prediction.x_0 - used[1][1])
        z = noise.normal(interval.index, "step").to(x_t.dtype)
        return x_s + end.noise * fresh**0.5 * z, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)
