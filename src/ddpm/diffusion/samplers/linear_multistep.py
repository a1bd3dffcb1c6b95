"""Classical linear multistep methods: PNDM on the training times, LMS in sigma."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.multistep import check_order, multistep, polynomial_weights
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

_ADAMS_BASHFORTH = (55 / 24, -59 / 24, 37 / 24, -9 / 24)


def lms(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    order: int = 4,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by Adams and Bashforth's method in sigma (Crowson 2022; rho-AB of Zhang & Chen 2023, Sec. 4).

    x_s / signal_s = x_t / signal_t + the integral of p(sigma) d sigma, p the polynomial in sigma through the last
    `order` eps. Order 1 is `ddim`.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T.
        order: 1 to 4.
        after_step: may change x_s.

    Raises:
        SamplingError: for an unknown order, or timesteps that are empty, not strictly decreasing or off the schedule.
    """
    check_order(order, 4)
    return walk(multistep("eps", order, _weights_in_sigma), denoiser, schedule, x_T, timesteps, after_step)


def _weights_in_sigma(levels: Sequence[Level], end: Level) -> list[float]:
    length = end.sigma - levels[0].sigma
    nodes = [(level.sigma - levels[0].sigma) / length for level in levels]
    if len(levels) == 1:
        return [0.0]
    return polynomial_weights(nodes, [end.signal * length / (k + 1) for k in range(len(nodes))])


def pndm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by F-PNDM (Liu et al. 2022, Alg. 2): three Runge-Kutta steps of four evaluations, then one a step.

    x_s is `ddim`'s step with eps' = (55 eps - 59 eps-1 + 37 eps-2 - 9 eps-3) / 24 (Eq. 12), and in the first three
    steps with eps' = (eps1 + 2 eps2 + 2 eps3 + eps4) / 6 (Eq. 13). The weights are those of even steps in t.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing, best evenly spaced; none visits all T.
        after_step: may change x_s.

    Raises:
        SamplingError: if the timesteps are empty, not strictly decreasing or off the schedule.
    """
    past: deque[Tensor] = deque(maxlen=4)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        prediction = evaluate(x_t, start.t)
        if end.t == CLEAN or start.signal == 0:
            return transfer(prediction, end), prediction
        past.appendleft(prediction.eps)
        if len(past) == len(_ADAMS_BASHFORTH):
            eps = sum(
                (w * old for w, old in zip(_ADAMS_BASHFORTH[1:], list(past)[1:], strict=True)),
                start=_ADAMS_BASHFORTH[0] * past[0],
            )
        else:
            eps = _runge_kutta_eps(schedule, interval, x_t, prediction.eps, evaluate)
        return _moved(x_t, start, end, eps), prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def _moved(x_t: Tensor, start: Level, end: Level, eps: Tensor) -> Tensor:
    """Return `ddim`'s step with this eps (Liu et al. 2022, Eq. 11)."""
    return end.signal / start.signal * x_t + (end.noise - end.signal * start.sigma) * eps


def _runge_kutta_eps(
    schedule: NoiseSchedule, interval: Interval, x_t: Tensor, eps: Tensor, evaluate: Evaluator
) -> Tensor:
    """Return eps averaged over the step by the four stages of Liu et al. 2022, Eq. 13."""
    start, end = interval.start, interval.end
    (middle,) = levels_of(schedule, [(start.t + end.t) / 2])
    second = evaluate(_moved(x_t, start, middle, eps), middle.t).eps
    third = evaluate(_moved(x_t, start, middle, second), middle.t).eps
    fourth = evaluate(_moved(x_t, start, end, third), end.t).eps
    return (eps + 2 * second + 2 * third + fourth) / 6
