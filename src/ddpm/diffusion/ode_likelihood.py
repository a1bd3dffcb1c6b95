"""The exact density of what the probability-flow ODE generates (Song et al. 2021, Sec. 4.3 and App. D.2).

With phi = atan(noise / signal), x_t = cos(phi) x_0 + sin(phi) eps, and the ODE of the marginals is dx / dphi = v
(Salimans & Ho 2022, App. D): bounded at every noise level, zero terminal SNR included. Along it,
d log p / dphi = -div v.

What is exact. The model is: draw x_T ~ N(0, I), follow the ODE from t = T - 1 to t = 0, divide by sqrt(alpha-bar_0).
Its density is what `ode_log_likelihood` returns, up to the error of the integrator (fourth order: 16 times less for
twice the steps) and, with probes, of the divergence. Three differences to the data remain, and they are the model's:

- x_T is compared with N(0, I), although q(x_T) keeps a signal of sqrt(alpha-bar_T) unless the terminal SNR is zero.
- Code time 0 is not clean: with a perfect denoiser the density is that of x_0 + sigma_0 eps, sigma_0^2 = (1 -
  alpha-bar_0) / alpha-bar_0 (0.01^2 for the linear schedule at T = 1000), not that of x_0.
- The field v is what the denoiser says, the gradient of a log density only if that is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.schedules import NoiseSchedule, expand_like
from ddpm.errors import ConfigError

MOST_EXACT = 64
"""Most dimensions for which the divergence is exact if nothing else is asked for: it costs a gradient a dimension."""

PROBES = 2
"""Random directions a sample beyond that; with fewer, the error of the divergence could not be told."""

STEPS = 100
"""Steps of the integrator, four denoiser calls each."""


@dataclass(frozen=True, slots=True)
class OdeLikelihood:
    """The density of samples under the probability-flow ODE.

    Attributes:
        log_density: [B], log p(x_0) in nats, of the values as they are given.
        divergence_error: [B], standard error of `log_density` from random probes; 0 where the divergence is exact.
        latent: [B, ...], x_T, where the ODE ends.
    """

    log_density: Tensor
    divergence_error: Tensor
    latent: Tensor


def ode_log_likelihood(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    noise: NoiseSource,
    *,
    steps: int = STEPS,
    probes: int | None = None,
    on_step: Callable[[], object] | None = None,
) -> OdeLikelihood:
    """Return the density of `x_0` under the ODE of a denoiser.

    Classical Runge-Kutta in u = log tan(phi / 2), which resolves small noise by ratios and large noise evenly.

    Args:
        denoiser: the model, differentiable in x_t; clipping is part of it.
        schedule: the noise schedule.
        x_0: [B, ...], float64.
        noise: gives the Rademacher directions: the signs of draw k of the purpose "divergence".
        steps: of the integrator.
        probes: directions of Hutchinson's estimate of the divergence, at least 2; none: exact up to 64 dimensions,
            else 2. A direction is kept along the whole trajectory, so the estimate of log p has no bias.
        on_step: called after each step.

    Raises:
        ConfigError: for x_0 that is not float64, no steps, or a single probe.
    """
    if x_0.dtype != torch.float64:
        raise ConfigError(f"x_0 is {x_0.dtype}; the ODE's likelihood needs torch.float64")
    if steps < 1:
        raise ConfigError(f"{steps} steps of the integrator; expected at least 1")
    dimensions = math.prod(x_0.shape[1:])
    exact = probes is None and dimensions <= MOST_EXACT
    directions = (
        _unit_directions(x_0) if exact else _random_directions(x_0, noise, PROBES if probes is None else probes)
    )
    signal = float(schedule.signal_and_noise(0)[0])
    x_T, flow = _integrate(denoiser, schedule, signal * x_0, directions, steps, on_step)
    divergence = flow.sum(0) if exact else flow.mean(0)
    error = torch.zeros_like(divergence) if exact else flow.std(0) / math.sqrt(len(flow))
    log_prior = -0.5 * (x_T.square().flatten(1).sum(1) + dimensions * math.log(2 * math.pi))
    return OdeLikelihood(log_prior + divergence + dimensions * math.log(signal), error, x_T)


def _unit_directions(x: Tensor) -> Tensor:
    """Return the axes [D, B, ...]: over them, e^T J e sums to the divergence."""
    dimensions = math.prod(x.shape[1:])
    axes = torch.eye(dimensions, dtype=x.dtype, device=x.device).reshape(dimensions, 1, *x.shape[1:])
    return axes.expand(dimensions, *x.shape)


def _random_directions(x: Tensor, noise: NoiseSource, probes: int) -> Tensor:
    """Return signs [P, B, ...]: for each, E[e^T J e] is the divergence (Hutchinson 1989)."""
    if probes < 2:
        raise ConfigError(f"{probes} probes of the divergence; at least 2 are needed to know their error")
    one = torch.ones((), dtype=x.dtype, device=x.device)
    return torch.stack([torch.where(noise.normal(k, "divergence").to(x) < 0, -one, one) for k in range(probes)])


def _integrate(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    directions: Tensor,
    steps: int,
    on_step: Callable[[], object] | None,
) -> tuple[Tensor, Tensor]:
    """Return x at t = T - 1, and the integral of e^T (dv / dx) e over phi for each direction, [P, B]."""
    ends = [schedule.signal_and_noise(t) for t in (0, len(schedule) - 1)]
    start, end = (math.log(math.tan(0.5 * math.atan2(float(noise), float(signal)))) for signal, noise in ends)
    h = (end - start) / steps
    flow = torch.zeros(directions.shape[:2], dtype=x.dtype, device=x.device)
    for k in range(steps):
        u = start + k * h
        v_1, f_1 = _field(denoiser, schedule, x, u, directions)
        v_2, f_2 = _field(denoiser, schedule, x + 0.5 * h * v_1, u + 0.5 * h, directions)
        v_3, f_3 = _field(denoiser, schedule, x + 0.5 * h * v_2, u + 0.5 * h, directions)
        v_4, f_4 = _field(denoiser, schedule, x + h * v_3, u + h, directions)
        x = x + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
        flow = flow + h / 6 * (f_1 + 2 * f_2 + 2 * f_3 + f_4)
        if on_step is not None:
            on_step()
    return x, flow


def _field(
    denoiser: Denoiser, schedule: NoiseSchedule, x: Tensor, u: float, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return dx / du [B, ...] and e^T (d(dx / du) / dx) e [P, B]; sin phi = dphi / du = 1 / cosh u."""
    log_snr = 2 * math.log(math.sinh(max(-u, 1e-300)))  # u = 0 is pure noise; rounding may go a bit beyond
    t = schedule.t_of(log_snr).expand(len(x))
    signal, noise = (expand_like(c, x) for c in schedule.signal_and_noise(t))
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        prediction = denoiser(x, t)
        velocity = (signal * prediction.eps - noise * prediction.x_0) / math.cosh(u)
    # One direction at a time, for all samples: batched over directions, compiled kernels could not be differentiated.
    pulled = (torch.autograd.grad(velocity, x, e, retain_graph=True)[0] for e in directions)
    traces = [(row * e).flatten(1).sum(1) for row, e in zip(pulled, directions, strict=True)]
    return velocity.detach(), torch.stack(traces)
