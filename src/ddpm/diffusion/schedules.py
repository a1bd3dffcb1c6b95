"""Noise schedules: beta_t, and all that follows from it, in float64.

Time is 0-based: ``t = 0`` is the paper's t = 1, ``t = T - 1`` the paper's t = T, and ``t = -1`` clean data. Between the
points of the training grid, log SNR is linear in t. Schedules live on the CPU; coefficients travel to the device of
the tensor that they multiply, so a loop over time never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ddpm.errors import ConfigError, SamplingError, nearest

VarianceKind = Literal["fixed_large", "fixed_small"]


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Return a coefficient ([] or [B]) in the dtype and on the device of `x` [B, ...], ready to multiply it."""
    cast = coefficient.to(dtype=x.dtype).to(x.device, non_blocking=True)
    return cast if cast.ndim == 0 else cast.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, slots=True)
class Transition:
    """The Gaussian q(x_s | x_t, x_0) for two times s < t (Ho et al. 2020, Eq. 6-7, for any pair).

    Attributes:
        x_0_weight: float64 [] or [B], the weight of x_0 in the mean.
        x_t_weight: float64 [] or [B], the weight of x_t in the mean.
        variance_small: float64, the posterior variance (beta-tilde); 0 where s is clean data.
        variance_large: float64, the variance of q(x_t | x_s) (beta).
        log_variance_small: float64, log of `variance_small`, with the first step's 0 replaced by the next one's value,
            as Ho et al. do: -inf has no use in a learned variance.
    """

    x_0_weight: Tensor
    x_t_weight: Tensor
    variance_small: Tensor
    variance_large: Tensor
    log_variance_small: Tensor

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """Return mu-tilde(x_t, x_0) [B, ...] (Eq. 7)."""
        return expand_like(self.x_0_weight, x_0) * x_0 + expand_like(self.x_t_weight, x_t) * x_t

    def variance(self, kind: VarianceKind) -> Tensor:
        """Return the reverse variance sigma^2 (float64, [] or [B]): beta or beta-tilde (Sec. 3.2)."""
        if kind not in ("fixed_large", "fixed_small"):
            raise ConfigError(f"variance is '{kind}'; expected 'fixed_large' or 'fixed_small'")
        return self.variance_large if kind == "fixed_large" else self.variance_small

    def learned_log_variance(self, fraction: Tensor) -> Tensor:
        """Return log sigma^2 [B, ...] between the two (Nichol & Dhariwal 2021, Eq. 15), from a fraction in [0, 1]."""
        large = expand_like(self.variance_large.log(), fraction)
        small = expand_like(self.log_variance_small, fraction)
        return fraction * large + (1 - fraction) * small


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A noise schedule: the betas, and every quantity that follows from them.

    Attributes:
        betas: float64 [T], each in (0, 1); only the last may be 1 (zero terminal SNR).
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = self.betas
        if betas.ndim != 1 or len(betas) < 2:
            raise ConfigError(f"betas have shape {tuple(betas.shape)}; expected one dimension and at least 2 timesteps")
        if betas.dtype != torch.float64 or betas.device.type != "cpu":
            raise ConfigError(f"betas are {betas.dtype} on {betas.device}; expected torch.float64 on the CPU")
        inside = (betas > 0) & (betas < 1)
        inside[-1] |= betas[-1] == 1
        if not bool(inside.all()):
            t = int((~inside).nonzero()[0])
            raise ConfigError(
                f"beta_{t} is {float(betas[t]):g}; every beta must lie strictly between 0 and 1 (the last may be 1). "
                "A linear schedule needs more timesteps; 'cosine' works with few"
            )

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas(self) -> Tensor:
        """1 - betas, float64 [T]."""
        return 1 - self.betas

    @cached_property
    def _log_alphas_cumprod(self) -> Tensor:
        return torch.log1p(-self.betas).cumsum(0)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha-bar_t, the product of all alphas up to t (Ho et al. 2020, Eq. 4), float64 [T]."""
        return self._log_alphas_cumprod.exp()

    @cached_property
    def _log_snr_table(self) -> Tensor:
        return self._log_alphas_cumprod - torch.log(-torch.expm1(self._log_alphas_cumprod))

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether x_T is pure noise."""
        return float(self.betas[-1]) == 1.0

    def log_snr(self, t: Tensor | float) -> Tensor:
        """Return log(alpha-bar / (1 - alpha-bar)) at `t`.

        Args:
            t: float or integer, [] or [B], in [0, T - 1], or -1 for clean data. Linear between the grid's points; the
                last interval of a schedule with zero terminal SNR, where log SNR is -inf at the end, is linear in
                sqrt(alpha-bar) instead.

        Returns:
            float64 of the shape of `t`; +inf at -1, -inf where there is no signal.

        Raises:
            SamplingError: if `t` lies outside.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        last = len(self) - 1
        if not bool((((t >= 0) & (t <= last)) | (t == -1)).all()):
            raise SamplingError(f"time {t.tolist()} lies off the schedule; expected 0 to {last}, or -1 for clean data")
        low = t.floor().clamp(0, last).long()
        high = (low + 1).clamp(max=last)
        weight = t - low
        start, end = self._log_snr_table[low], self._log_snr_table[high]
        value = start + weight * torch.where(weight == 0, 0.0, end - start)
        if self.has_zero_terminal_snr:
            signal = (1 - weight) * torch.sigmoid(start).sqrt()
            fading = torch.log(signal.square()) - torch.log1p(-signal.square())
            value = torch.where(torch.isinf(end) & (weight > 0), fading, value)
        return torch.where(t == -1, math.inf, value)

    def t_of(self, log_snr: Tensor | float) -> Tensor:
        """Return the time with this log SNR, float64: inverts `log_snr`; clamped to [0, T - 1]; +inf gives -1."""
        value = torch.as_tensor(log_snr, dtype=torch.float64, device="cpu")
        table = self._log_snr_table
        last = len(self) - 1
        high = torch.searchsorted(-table, -value).clamp(1, last)
        low = high - 1
        weight = ((value - table[low]) / (table[high] - table[low])).clamp(0, 1)
        if self.has_zero_terminal_snr:
            fading = 1 - torch.sigmoid(value).sqrt() / torch.sigmoid(table[low]).sqrt()
            weight = torch.where(torch.isinf(table[high]), fading.clamp(0, 1), weight)
        return torch.where(torch.isposinf(value), -1.0, low + weight)

    def signal_and_noise(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t), float64 of the shape of `t`; their squares sum to 1."""
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def transition(self, t: Tensor | float, s: Tensor | float) -> Transition:
        """Return q(x_s | x_t, x_0) for two times s < t, [] or [B] each; s = -1 is clean data.

        Raises:
            SamplingError: if s is not before t.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        s = torch.as_tensor(s, dtype=torch.float64, device="cpu")
        if not bool((s < t).all()):
            raise SamplingError(f"a reverse step from t = {t.tolist()} to s = {s.tolist()}; s must be before t")
        log_snr_t, log_snr_s = self.log_snr(t), self.log_snr(s)
        log_ratio = logsigmoid(log_snr_t) - logsigmoid(log_snr_s)  # of alpha-bar_t to alpha-bar_s
        variance_large = -torch.expm1(log_ratio)
        noise_t, noise_s = torch.sigmoid(-log_snr_t), torch.sigmoid(-log_snr_s)
        variance_small = variance_large * noise_s / noise_t
        return Transition(
            x_0_weight=torch.sigmoid(log_snr_s).sqrt() * variance_large / noise_t,
            x_t_weight=(0.5 * log_ratio).exp() * noise_s / noise_t,
            variance_small=variance_small,
            variance_large=variance_large,
            log_variance_small=torch.where(variance_small > 0, variance_small, self._first_positive_variance).log(),
        )

    @cached_property
    def _first_positive_variance(self) -> Tensor:
        return self.betas[1] * self.betas[0] / -torch.expm1(self._log_alphas_cumprod[1])

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """Return the schedule shifted and scaled so that alpha-bar_T = 0 (Lin et al. 2023, Alg. 1)."""
        signal = self.alphas_cumprod.sqrt()
        rescaled = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        return from_alphas_cumprod(rescaled.square())


def linear_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return betas evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020, Sec. 4), float64 [T].

    The two ends are those of T = 1000; for another T they are scaled by 1000 / T, so that x_T keeps its SNR.
    """
    scale = 1000 / num_timesteps
    return torch.linspace(scale * beta_start, scale * beta_end, num_timesteps, dtype=torch.float64)


def quadratic_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return betas whose square roots are evenly spaced ("scaled linear"; Rombach et al. 2022), float64 [T]."""
    scale = 1000 / num_timesteps
    roots = torch.linspace((scale * beta_start) ** 0.5, (scale * beta_end) ** 0.5, num_timesteps, dtype=torch.float64)
    return roots.square()


def exponential_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return betas whose logarithms are evenly spaced: each is a fixed multiple of the one before, float64 [T]."""
    scale = 1000 / num_timesteps
    logs = torch.linspace(math.log(scale * beta_start), math.log(scale * beta_end), num_timesteps, dtype=torch.float64)
    return logs.exp()


def constant_betas(num_timesteps: int, beta: float = 0.01) -> Tensor:
    """Return T equal betas; `beta` is that of T = 1000, scaled by 1000 / T otherwise, float64 [T]."""
    return torch.full((num_timesteps,), beta * 1000 / num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Return the betas of a squared-cosine alpha-bar (Nichol & Dhariwal 2021, Eq. 17), float64 [T].

    alpha-bar_t = f(t) / f(0) with f(t) = cos^2((t / T + s) / (1 + s) * pi / 2); betas are clipped at `max_beta`.
    """
    time = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    f = torch.cos((time + offset) / (1 + offset) * math.pi / 2).square()
    betas: Tensor = 1 - f[1:] / f[:-1]
    return betas.clamp(max=max_beta)


def sigmoid_betas(
    num_timesteps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Tensor:
    """Return the betas of a sigmoid-shaped alpha-bar (Jabri et al. 2022, Sec. 2.2), float64 [T]."""
    time = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau], dtype=torch.float64))
    alphas_cumprod = (high - torch.sigmoid((time * (end - start) + start) / tau)) / (high - low)
    betas: Tensor = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return betas.clamp(max=max_beta)


def from_alphas_cumprod(alphas_cumprod: Tensor) -> NoiseSchedule:
    """Return the schedule with these alpha-bars, float64 [T], strictly decreasing; the last may be 0."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return NoiseSchedule(1 - alphas_cumprod / before)


def from_function(beta: Callable[[float], float], num_timesteps: int = 1000) -> NoiseSchedule:
    """Return the schedule of any user function: ``beta(u)`` for u = t / (T - 1) in [0, 1].

    Raises:
        ConfigError: for fewer than 2 timesteps, or a beta outside (0, 1).
    """
    _require_two(num_timesteps)
    values = [float(beta(t / (num_timesteps - 1))) for t in range(num_timesteps)]
    return NoiseSchedule(torch.tensor(values, dtype=torch.float64))


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "exponential": exponential_betas,
    "quadratic": quadratic_betas,
    "sigmoid": sigmoid_betas,
    "constant": constant_betas,
}
"""Every named schedule, as a function of T that returns its betas."""


def make_schedule(name: str = "linear", num_timesteps: int = 1000, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Return a named schedule.

    Raises:
        ConfigError: for an unknown name, or too few timesteps for it.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"unknown schedule '{name}'{nearest(name, SCHEDULES)}; known are {', '.join(SCHEDULES)}")
    _require_two(num_timesteps)
    schedule = NoiseSchedule(SCHEDULES[name](num_timesteps))
    if zero_terminal_snr:
        return schedule.with_zero_terminal_snr()
    if schedule.has_zero_terminal_snr:
        raise ConfigError(
            f"beta_{num_timesteps - 1} of '{name}' with {num_timesteps} timesteps is 1: nothing of x_0 is left in x_T; "
            "give it more timesteps, or ask for zero_terminal_snr"
        )
    return schedule


def _require_two(num_timesteps: int) -> None:
    if num_timesteps < 2:
        raise ConfigError(f"num_timesteps is {num_timesteps}; a schedule needs at least 2")
