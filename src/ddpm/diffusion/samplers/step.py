"""What every sampler yields, and the loop that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.samplers.timesteps import CLEAN, checked_timesteps
from ddpm.diffusion.schedules import NoiseSchedule

AfterStep = Callable[[Tensor, Tensor], Tensor]
"""``(x_s [B, ...], s []) -> x_s``: editing acts here. It returns a new tensor, and leaves its argument as it was."""


@dataclass(frozen=True, slots=True)
class SampleStep:
    """One step of a sampler, after it was made.

    Attributes:
        index: 0 for the first step.
        num_steps: how many there will be.
        t: the time stepped from.
        s: the time stepped to; -1 is clean data.
        x: [B, ...], x_s.
        prediction: what the denoiser believed first in this step: at t, unless churn moved it.
    """

    index: int
    num_steps: int
    t: float
    s: float
    x: Tensor
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level: x_t = signal x_0 + noise eps.

    Attributes:
        t: its time; -1 is clean data.
        signal: sqrt(alpha-bar).
        noise: sqrt(1 - alpha-bar).
        half_log_snr: log(signal / noise), the lambda of DPM-Solver; inf for clean data, -inf where no signal is left.
    """

    t: float
    signal: float
    noise: float
    half_log_snr: float

    @property
    def sigma(self) -> float:
        """Noise / signal, the noise level of x / signal (Karras et al. 2022); inf where no signal is left."""
        return self.noise / self.signal if self.signal else torch.inf


@dataclass(frozen=True, slots=True)
class Interval:
    """A step to make, from `start` to `end`; `remaining` counts it and those after it."""

    index: int
    remaining: int
    start: Level
    end: Level


class Evaluator:
    """A denoiser that hands its last prediction on to the next call, for self-conditioning."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._previous: Prediction | None = None

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Prediction:
        """Predict from x_t [B, ...] at one time for all, or float64 [B]."""
        times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, dtype=torch.float64)
        self._previous = self._denoiser(x_t, times, self._previous)
        return self._previous

    def remember(self, prediction: Prediction) -> None:
        """Hand this prediction on to the next call, in place of the last one."""
        self._previous = prediction


Rule = Callable[[Interval, Tensor, Evaluator], tuple[Tensor, Prediction]]
"""``(interval, x_t, evaluate) -> (x_s, prediction at t)``: what tells one sampler from another."""


def levels_of(schedule: NoiseSchedule, times: Sequence[float]) -> list[Level]:
    """Return the noise levels at these times."""
    t = torch.tensor(times, dtype=torch.float64)
    signal, noise = schedule.signal_and_noise(t)
    half_log_snr = 0.5 * schedule.log_snr(t)
    return [Level(*row) for row in torch.stack([t, signal, noise, half_log_snr], dim=1).tolist()]


def transfer(prediction: Prediction, end: Level) -> Tensor:
    """Return x_s if x_0 and eps stayed what they are: DDIM's step (Song et al. 2021, Eq. 12), exactly x_0 at the end.

    Every deterministic sampler is this step plus weighted changes of x_0 or eps since.
    """
    return end.signal * prediction.x_0 + end.noise * prediction.eps


def walk(
    rule: Rule,
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Sequence[float] | None,
    after_step: AfterStep | None,
) -> Iterator[SampleStep]:
    """Walk from x_T to clean data by a rule, yielding after each step.

    Raises:
        SamplingError: for timesteps that cannot be walked, at once and not at the first step.
    """
    times = checked_timesteps(timesteps, schedule)
    return _steps(rule, Evaluator(denoiser), x_T, levels_of(schedule, [*times, CLEAN]), after_step)


@torch.no_grad()
def _steps(
    rule: Rule, evaluate: Evaluator, x: Tensor, levels: Sequence[Level], after_step: AfterStep | None
) -> Iterator[SampleStep]:
    num_steps = len(levels) - 1
    for index, (start, end) in enumerate(pairwise(levels)):
        x, prediction = rule(Interval(index, num_steps - index, start, end), x, evaluate)
        if after_step is not None:
            x = after_step(x, torch.tensor(end.t, dtype=torch.float64))
        yield SampleStep(index, num_steps, start.t, end.t, x, prediction)


__all__ = [
    "CLEAN",
    "AfterStep",
    "Evaluator",
    "Interval",
    "Level",
    "Rule",
    "SampleStep",
    "levels_of",
    "transfer",
    "walk",
]
