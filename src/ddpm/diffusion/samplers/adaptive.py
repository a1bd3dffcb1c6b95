"""A sampler that chooses its own steps: an embedded pair with error control, for each picture by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.step import CLEAN, AfterStep, Evaluator, Interval, SampleStep, transfer, walk
from ddpm.diffusion.schedules import NoiseSchedule, expand_like
from ddpm.errors import SamplingError

_FIRST_STEP = 0.5  # in lambda
_LARGEST_STEP = 1.0  # the midpoint must not miss where x_0 begins to depend on x: the error would be seen too late
_SAFETY = 0.9
_LEAST_CHANGE, _MOST_CHANGE = 0.2, 5.0
_NO_SIGNAL = -10.0  # lambda below which x_t says nothing of x_0: crossed in a single step, from -inf too
_SMALLEST_STEP = 1e-7


def adaptive(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    tolerance: float = 0.05,
    absolute_tolerance: float = 0.01,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by DPM-Solver++ of orders 1 and 2 with error control (Lu et al. 2022a, App. C and Alg. 3, for x_0).

    Each attempt makes `ddim`'s step and the midpoint step 2S. The error is the root mean square of their difference
    over max(absolute_tolerance, tolerance * max(|x_s|, |x_t|)); where it is at most 1 the second is kept, else the step
    shrinks. The next step is 0.9 h error^(-0.7 / 2) error-before^(0.4 / 2) (proportional-integral control).

    How many attempts there will be is not known; the yielded steps are. `timesteps` are places that every picture
    passes: between two of them each takes the steps it needs, with its own t, so that it does not depend on its batch.
    After the last place it goes on to t = 0, and to x_0-hat there. One timestep, T - 1, leaves all to the control.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T, which leaves nothing to choose.
        tolerance: largest error of a step relative to x, above 0.
        absolute_tolerance: largest error of a step where x is small, above 0; 1/127.5 is a level of 8-bit pictures.
        after_step: may change x_s, at the places in `timesteps` and at the end.

    Raises:
        SamplingError: for a tolerance that is not positive, or timesteps that are empty, not strictly decreasing or off
            the schedule; and while sampling, if the error does not become finite and small.
    """
    for name, value in (("tolerance", tolerance), ("absolute_tolerance", absolute_tolerance)):
        if not 0 < value < torch.inf:
            raise SamplingError(f"{name} is {value}; expected a number above 0")
    control = _Control(
        schedule,
        tolerance,
        absolute_tolerance,
        step=torch.full((len(x_T),), _FIRST_STEP, dtype=torch.float64),
        error=torch.ones(len(x_T), dtype=torch.float64),
    )

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        start, end = interval.start, interval.end
        prediction = evaluate(x_t, start.t)
        target = 0.5 * float(schedule.log_snr(max(end.t, 0.0)))
        x_s = control.travel(x_t, prediction, evaluate, start.half_log_snr, target)
        if end.t != CLEAN:
            return x_s, prediction
        return transfer(prediction if start.t == 0 else evaluate(x_s, 0.0), end), prediction

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)


@dataclass(slots=True)
class _Control:
    """The step that each picture will try next, float64 [B], in lambda, and the error of its last one."""

    schedule: NoiseSchedule
    tolerance: float
    absolute_tolerance: float
    step: Tensor
    error: Tensor

    def travel(self, x: Tensor, prediction: Prediction, evaluate: Evaluator, start: float, target: float) -> Tensor:
        """Return x [B, ...] at lambda = target, from x and its prediction at lambda = start."""
        place = torch.full((len(x),), start, dtype=torch.float64)
        while bool((place < target).any()):
            end = torch.where(place < _NO_SIGNAL, _NO_SIGNAL, place + self.step).clamp(max=target)
            x_s, error = self._attempt(x, prediction, evaluate, place, end)
            kept = self._judge(place, end, error)
            x = torch.where(_like(kept, x), x_s, x)
            place = torch.where(kept, end, place)
            onward = kept & (place < target)
            if bool(onward.any()):
                # The whole batch again, for conditions are bound to it; those that wait or tried in vain keep theirs.
                fresh = evaluate(x, self.schedule.t_of(2 * place))
                prediction = _merged(_like(onward, x), fresh, prediction)
            evaluate.remember(prediction)
        return x

    def _attempt(
        self, x: Tensor, prediction: Prediction, evaluate: Evaluator, place: Tensor, end: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the midpoint step from `place` to `end`, both [B], and its error [B]; 0 where there is no signal."""
        free = place < _NO_SIGNAL
        middle = torch.where(free, end, (place + end) / 2)
        halfway = evaluate(_transfer(prediction, middle, x), self.schedule.t_of(2 * middle))
        low = _transfer(prediction, end, x)
        weight = torch.where(free, 0.0, -torch.sigmoid(2 * end).sqrt() * torch.expm1(place - end))
        change = expand_like(weight, x) * (halfway.x_0 - prediction.x_0)
        scale = (self.tolerance * torch.maximum(low.abs(), x.abs())).clamp(min=self.absolute_tolerance)
        error = (change / scale).double().square().flatten(1).mean(1).sqrt().cpu()
        return low + change, error.nan_to_num(nan=torch.inf)

    def _judge(self, place: Tensor, end: Tensor, error: Tensor) -> Tensor:
        """Return which attempts are kept [B], and choose every picture's next step."""
        moving = (place < end) & (place >= _NO_SIGNAL)
        kept = (error <= 1) & (place < end)
        made = end - place
        bounded = error.clamp(min=1e-6)
        factor = _SAFETY * bounded ** (-0.7 / 2) * torch.where(kept, self.error, 1.0) ** (0.4 / 2)
        step = made * factor.clamp(_LEAST_CHANGE, _MOST_CHANGE)
        step = torch.where(
            kept, torch.maximum(step, torch.where(made < self.step, self.step, 0.0)), step.minimum(_SAFETY * made)
        )
        self.step = torch.where(moving, step, self.step).clamp(max=_LARGEST_STEP)
        self.error = torch.where(moving & kept, bounded, self.error)
        if bool((self.step < _SMALLEST_STEP).any()):
            raise SamplingError(
                "the error of a step stays above the tolerance, however small the step: what the network returns is "
                "not finite or not smooth; use another sampler"
            )
        return kept


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def _transfer(prediction: Prediction, half_log_snr: Tensor, x: Tensor) -> Tensor:
    """Return `transfer` to a level for each picture, [B]."""
    signal, noise = torch.sigmoid(2 * half_log_snr).sqrt(), torch.sigmoid(-2 * half_log_snr).sqrt()
    return expand_like(signal, x) * prediction.x_0 + expand_like(noise, x) * prediction.eps


def _merged(mask: Tensor, fresh: Prediction, old: Prediction) -> Prediction:
    """Return the fresh prediction where the mask says so; a learned variance has no use here."""
    return Prediction(torch.where(mask, fresh.x_0, old.x_0), torch.where(mask, fresh.eps, old.eps))
