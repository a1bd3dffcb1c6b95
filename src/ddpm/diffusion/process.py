"""The forward process and its posterior, and every conversion between what a network may predict.

Equation numbers are those of Ho et al. 2020 unless another source is named. All tensors are [B, ...]; t is [] or [B].
The invariant behind every conversion: x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps.
"""

from __future__ import annotations

from torch import Tensor

from ddpm.diffusion.schedules import NoiseSchedule, expand_like
from ddpm.errors import ConfigError

Time = Tensor | float


def _coefficients(t: Time, schedule: NoiseSchedule, like: Tensor) -> tuple[Tensor, Tensor]:
    signal, noise = schedule.signal_and_noise(t)
    return expand_like(signal, like), expand_like(noise, like)


def _require_signal(t: Time, schedule: NoiseSchedule) -> None:
    if bool(schedule.log_snr(t).isneginf().any()):
        raise ConfigError(
            "at zero signal-to-noise ratio eps says nothing of x_0; predict v or x_0, or start below the last timestep"
        )


def q_sample(x_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return x_t ~ q(x_t | x_0) for the noise `eps` (Eq. 4)."""
    signal, noise = _coefficients(t, schedule, x_0)
    return signal * x_0 + noise * eps


def q_step(x_s: Tensor, s: Time, t: Time, eps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return x_t ~ q(x_t | x_s) for two times s < t (Eq. 2 where s = t - 1; s = -1 is clean data)."""
    variance = schedule.transition(t, s).variance_large
    return expand_like((1 - variance).sqrt(), x_s) * x_s + expand_like(variance.sqrt(), x_s) * eps


def q_posterior(x_0: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Return mean [B, ...] and variance ([] or [B], float64) of q(x_{t-1} | x_t, x_0) (Eq. 6-7)."""
    transition = schedule.transition(t, previous_time(t))
    return transition.mean(x_0, x_t), transition.variance_small


def previous_time(t: Time) -> Time:
    """Return t - 1, the time before `t` on the training grid; clean data (-1) where that falls below 0."""
    if isinstance(t, Tensor):
        return (t - 1).clamp(min=-1).where(t >= 1, -1)
    return t - 1 if t >= 1 else -1


def x_0_from_eps(eps: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return x_0 = (x_t - sqrt(1 - alpha-bar) eps) / sqrt(alpha-bar) (Eq. 15).

    Raises:
        ConfigError: at zero SNR, where eps says nothing of x_0.
    """
    _require_signal(t, schedule)
    signal, noise = _coefficients(t, schedule, x_t)
    return (x_t - noise * eps) / signal


def eps_from_x_0(x_0: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return eps = (x_t - sqrt(alpha-bar) x_0) / sqrt(1 - alpha-bar) (Eq. 4 solved for eps)."""
    signal, noise = _coefficients(t, schedule, x_t)
    return (x_t - signal * x_0) / noise


def v_from_x_0_eps(x_0: Tensor, eps: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return v = sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x_0 (Salimans & Ho 2022, App. D)."""
    signal, noise = _coefficients(t, schedule, x_0)
    return signal * eps - noise * x_0


def x_0_from_v(v: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return x_0 = sqrt(alpha-bar) x_t - sqrt(1 - alpha-bar) v (Salimans & Ho 2022, App. D)."""
    signal, noise = _coefficients(t, schedule, x_t)
    return signal * x_t - noise * v


def eps_from_v(v: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return eps = sqrt(1 - alpha-bar) x_t + sqrt(alpha-bar) v (Salimans & Ho 2022, App. D)."""
    signal, noise = _coefficients(t, schedule, x_t)
    return noise * x_t + signal * v


def mu_from_x_0(x_0: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return mu, the mean of q(x_{t-1} | x_t, x_0) (Eq. 7)."""
    return q_posterior(x_0, x_t, t, schedule)[0]


def mu_from_eps(eps: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return mu = (x_t - beta / sqrt(1 - alpha-bar) eps) / sqrt(alpha) (Eq. 11).

    Raises:
        ConfigError: at zero SNR, where eps says nothing of mu.
    """
    _require_signal(t, schedule)
    beta = schedule.transition(t, previous_time(t)).variance_large
    noise = schedule.signal_and_noise(t)[1]
    return (x_t - expand_like(beta / noise, x_t) * eps) / expand_like((1 - beta).sqrt(), x_t)


def x_0_from_mu(mu: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return the x_0 whose posterior mean is `mu` (Eq. 7 solved for x_0).

    Ill-conditioned: an error in mu grows by 1 / x_0_weight, up to 8,000 times at the end of the linear schedule.
    """
    transition = schedule.transition(t, previous_time(t))
    return (mu - expand_like(transition.x_t_weight, x_t) * x_t) / expand_like(transition.x_0_weight, x_t)


def score_from_eps(eps: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return grad log q(x_t) = -eps / sqrt(1 - alpha-bar) (Song et al. 2021, Sec. 3; for E[eps | x_t])."""
    return -eps / expand_like(schedule.signal_and_noise(t)[1], eps)


def eps_from_score(score: Tensor, t: Time, schedule: NoiseSchedule) -> Tensor:
    """Return eps = -sqrt(1 - alpha-bar) grad log q(x_t): the inverse of `score_from_eps`."""
    return -score * expand_like(schedule.signal_and_noise(t)[1], score)
