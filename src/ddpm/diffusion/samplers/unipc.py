"""UniPC: a predictor and a corrector from the same evaluations (Zhao et al. 2023)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.multistep import add_changes, check_order, exponential_weights, usable
from ddpm.diffusion.samplers.step import AfterStep, Evaluator, Interval, Level, SampleStep, transfer, walk
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError, nearest

Variant = Literal["bh1", "bh2"]


@dataclass(frozen=True, slots=True)
class _Made:
    """The step before: what it would be at order 1, what it predicted, and from which values of x_0."""

    base: Tensor
    predicted: Tensor
    used: list[tuple[Level, Tensor]]


def unipc(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    order: int = 2,
    variant: Variant = "bh1",
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by UniPC-p with x_0 prediction (Zhao et al. 2023, Alg. 5 to 8): order p + 1 from one evaluation a step.

    The step to s (UniP-p, Alg. 6) ends at a predicted x_s. The evaluation at x_s, which the next step needs anyway,
    first corrects it (UniC-p, Alg. 5), and the next step starts from there. Both integrate the polynomial through the
    last x_0 exactly, except that with a single free weight it is 1/2, times B(h) = h (bh1) or e^h - 1 (bh2) (Sec. 3.1).

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T.
        order: p, 1 to 3.
        variant: "bh1", the better one in few steps on a trained network (docs/samplers.md has figures), or "bh2".
        after_step: may change x_s. Where it does, x_s is no longer what was predicted, and is not corrected.

    Raises:
        SamplingError: for an unknown order or variant, or timesteps that are empty, not strictly decreasing or off the
            schedule.
    """
    check_order(order, 3)
    known = get_args(Variant)
    if variant not in known:
        raise SamplingError(f"unknown variant '{variant}'{nearest(variant, known)}; known are {', '.join(known)}")
    past: deque[tuple[Level, Tensor]] = deque(maxlen=order)
    made: _Made | None = None

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        nonlocal made
        start, end = interval.start, interval.end
        prediction = believed = evaluate(x_t, start.t)
        if made is not None and _same(made.predicted, x_t):
            x_t = _corrected(made, start, prediction.x_0, variant)
            # x_0 is kept from the predicted x_t: another evaluation there is what the method saves.
            believed = Prediction(prediction.x_0, (x_t - start.signal * prediction.x_0) / start.noise)
        past.appendleft((start, prediction.x_0))
        used = usable(past, min(order, interval.remaining), end)
        base = transfer(believed, end)
        x_s = add_changes(base, _weights([level for level, _ in used], end, variant), used)
        made = _Made(base, x_s, used)
        return x_s, prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)  # the second waits for the device, but only where there is an `after_step`


def _corrected(made: _Made, level: Level, x_0: Tensor, variant: Variant) -> Tensor:
    """Return x at `level` by the polynomial that also goes through the x_0 found there."""
    if not math.isfinite(made.used[0][0].half_log_snr):
        return made.predicted
    values = [*made.used, (level, x_0)]
    return add_changes(made.base, _weights([place for place, _ in values], level, variant), values)


def _weights(levels: Sequence[Level], end: Level, variant: Variant) -> list[float]:
    """Return the weights of x_0 in x_s; with two levels, 1/2 B(h) (Zhao et al. 2023, Sec. 3.1) for the exact one."""
    if len(levels) != 2:
        return exponential_weights(levels, end)
    start, other = levels[0].half_log_snr, levels[1].half_log_snr
    h = end.half_log_snr - start
    scale = h if variant == "bh1" else -math.expm1(-h)
    weight = 0.5 * end.signal * scale * h / (other - start)
    return [-weight, weight]
