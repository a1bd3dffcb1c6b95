"""What every sampler yields, and the loop that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.samplers.timesteps import CLEAN, step_pairs
from ddpm.diffusion.schedules import NoiseSchedule, Transition

AfterStep = Callable[[Tensor, Tensor], Tensor]
"""``(x_s [B, ...], s []) -> x_s``: editing acts here."""


@dataclass(frozen=True, slots=True)
class SampleStep:
    """One step of a sampler, after it was made.

    Attributes:
        index: 0 for the first step.
        num_steps: how many there will be.
        t: the time stepped from.
        s: the time stepped to; -1 is clean data.
        x: [B, ...], x_s.
        prediction: what the denoiser believed at t.
    """

    index: int
    num_steps: int
    t: float
    s: float
    x: Tensor
    prediction: Prediction


StepRule = Callable[[int, Tensor, Prediction, Transition, float], Tensor]
"""``(index, x_t, prediction, transition, s) -> x_s``: what tells one single-step sampler from another."""


def walk(
    rule: StepRule,
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Sequence[float] | None,
    after_step: AfterStep | None,
) -> Iterator[SampleStep]:
    """Walk from x_T to clean data by a single-step rule, yielding after each step.

    Raises:
        SamplingError: for timesteps that cannot be walked, at once and not at the first step.
    """
    return _steps(rule, denoiser, schedule, x_T, step_pairs(timesteps, schedule), after_step)


@torch.no_grad()
def _steps(
    rule: StepRule,
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    pairs: Sequence[tuple[float, float]],
    after_step: AfterStep | None,
) -> Iterator[SampleStep]:
    prediction: Prediction | None = None
    for index, (t, s) in enumerate(pairs):
        times = torch.full((len(x),), t, dtype=torch.float64)
        prediction = denoiser(x, times, prediction)
        x = rule(index, x, prediction, schedule.transition(t, s), s)
        if after_step is not None:
            x = after_step(x, torch.tensor(s, dtype=torch.float64))
        yield SampleStep(index, len(pairs), t, s, x, prediction)


__all__ = ["CLEAN", "AfterStep", "SampleStep", "StepRule", "walk"]
