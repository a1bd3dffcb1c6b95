"""DEIS: an exponential integrator that puts a polynomial in t through eps (Zhang & Chen 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.multistep import check_order, multistep, polynomial_weights
from ddpm.diffusion.samplers.step import AfterStep, Level, SampleStep, walk
from ddpm.diffusion.schedules import NoiseSchedule

_PLACES, _MASSES = np.polynomial.legendre.leggauss(12)


def deis(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    timesteps: Sequence[float] | None = None,
    order: int = 3,
    after_step: AfterStep | None = None,
) -> Iterator[SampleStep]:
    """Sample by tAB-DEIS (Zhang & Chen 2023, Eq. 14 and 15): one evaluation a step.

    x_s = (signal_s / signal_t) x_t + signal_s * the integral of p(t) d sigma, p the polynomial in t through the last
    `order` eps. Order 1 is `ddim`.

    Args:
        denoiser: predicts x_0 and eps.
        schedule: the noise schedule of training.
        x_T: [B, ...], standard normal noise.
        noise: not used.
        timesteps: strictly decreasing; none visits all T.
        order: 1 to 3 (tAB0 to tAB2).
        after_step: may change x_s.

    Raises:
        SamplingError: for an unknown order, or timesteps that are empty, not strictly decreasing or off the schedule.
    """
    check_order(order, 3)

    def weigh(levels: Sequence[Level], end: Level) -> list[float]:
        if len(levels) == 1:
            return [0.0]
        start = levels[0]
        nodes = [(level.t - start.t) / (end.t - start.t) for level in levels]
        moments = _moments(schedule, start, end, len(levels))
        return [end.signal * weight for weight in polynomial_weights(nodes, moments)]

    return walk(multistep("eps", order, weigh), denoiser, schedule, x_T, timesteps, after_step)


def _moments(schedule: NoiseSchedule, start: Level, end: Level, count: int) -> list[float]:
    """Return the integrals of u^k d sigma from start to end, u = 0 to 1 linear in t.

    By parts, sigma(end) less the integral of k u^(k-1) sigma du. sigma has a kink at every training time, so each
    piece between two has its own quadrature.
    """
    inside = np.arange(np.floor(start.t), end.t, -1)
    edges = np.unique([start.t, *inside[inside < start.t], end.t])
    half = np.diff(edges) / 2
    times = ((edges[1:] + edges[:-1]) / 2)[:, None] + half[:, None] * _PLACES
    sigma = torch.exp(-0.5 * schedule.log_snr(torch.from_numpy(times))).numpy()
    u = (times - start.t) / (end.t - start.t)
    du = half[:, None] * _MASSES / (start.t - end.t)
    by_parts = [end.sigma - float((k * u ** (k - 1) * sigma * du).sum()) for k in range(1, count)]
    return [end.sigma - start.sigma, *by_parts]
