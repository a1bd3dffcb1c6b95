"""Denoising diffusion implicit models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.step import CLEAN, AfterStep, SampleStep, walk
from ddpm.diffusion.schedules import NoiseSchedule, Transition, expand_like
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

    def rule(index: int, x_t: Tensor, prediction: Prediction, transition: Transition, s: float) -> Tensor:
        signal, deviation = schedule.signal_and_noise(s)
        fresh_variance = eta**2 * transition.variance_small
        kept = (deviation.square() - fresh_variance).clamp(min=0).sqrt()
        x_s = expand_like(signal, x_t) * prediction.x_0 + expand_like(kept, x_t) * prediction.eps
        if eta == 0 or s == CLEAN:
            return x_s
        fresh = noise.normal(index, "step").to(x_s.dtype)
        return x_s + expand_like(fresh_variance.sqrt(), x_t) * fresh

    return walk(rule, denoiser, schedule, x_T, timesteps, after_step)
