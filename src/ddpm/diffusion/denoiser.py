"""A denoiser: what every sampler sees. Networks, guidance and clipping are composed into one before sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.diffusion import process
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import ConfigError, nearest

Parameterization = Literal["eps", "x_0", "v", "mu"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is believed of x_0 and eps, given x_t: x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps, always.

    Attributes:
        x_0: [B, ...], the expected clean data.
        eps: [B, ...], the expected noise.
        variance_fraction: [B, ...], the learned variance's place between beta-tilde (0) and beta (1) in the logarithm
            (Nichol & Dhariwal 2021, Eq. 15); nothing keeps it from leaving [0, 1]. None where the variance is fixed.
    """

    x_0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None


class Denoiser(Protocol):
    """The contract between networks and samplers."""

    def __call__(self, x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Predict x_0 and eps from x_t [B, ...] at times t (float64 [B]); `previous` is for self-conditioning."""
        ...


class ConditionalDenoiser(Protocol):
    """What guidance is made of: a denoiser whose condition is still open."""

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, previous: Prediction | None = None
    ) -> Prediction:
        """Predict x_0 and eps from x_t [B, ...] at times t (float64 [B]) and conditions of B pictures."""
        ...


def to_prediction(
    output: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization
) -> Prediction:
    """Return the prediction that a network's output stands for.

    Args:
        output: [B, C, ...], in the meaning of `parameterization`; or [B, 2 C, ...], then the variance (`split_output`).
        x_t: [B, C, ...], what the network saw.
        t: [B] or [], when.
        schedule: the schedule that it was trained with.
        parameterization: "eps", "x_0", "v" or "mu" (the mean of q(x_{t-1} | x_t, x_0)).

    Raises:
        ConfigError: for an unknown parameterization, or an output that is neither as large as x_t nor twice.
    """
    output, fraction = split_output(output, x_t)
    if parameterization == "eps":
        return Prediction(process.x_0_from_eps(output, x_t, t, schedule), output, fraction)
    if parameterization == "v":
        x_0, eps = process.x_0_from_v(output, x_t, t, schedule), process.eps_from_v(output, x_t, t, schedule)
        return Prediction(x_0, eps, fraction)
    if parameterization == "x_0":
        x_0 = output
    elif parameterization == "mu":
        x_0 = process.x_0_from_mu(output, x_t, t, schedule)
    else:
        raise unknown_parameterization(parameterization)
    return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule), fraction)


def split_output(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a network says of the mean, and of the variance if it says anything of it, both [B, C, ...].

    The second half v of 2 C channels lies in about [-1, 1]; the fraction is (v + 1) / 2, as in the code of Nichol &
    Dhariwal 2021. A new network, which returns zeros, begins in the middle between the two fixed variances.

    Raises:
        ConfigError: for an output of another shape.
    """
    if output.shape == x_t.shape:
        return output, None
    if output.shape != (len(x_t), 2 * x_t.shape[1], *x_t.shape[2:]):
        raise ConfigError(
            f"the network's output is {list(output.shape)} for x_t of {list(x_t.shape)}; expected the same shape, or "
            "twice the channels where the variance is learned"
        )
    mean, variance = output.chunk(2, dim=1)
    return mean, (variance + 1) / 2


def unknown_parameterization(name: str) -> ConfigError:
    """Return the error that refuses a parameterization by its name."""
    known = get_args(Parameterization)
    return ConfigError(f"unknown parameterization '{name}'{nearest(name, known)}; known are {', '.join(known)}")


def with_estimate(x_t: Tensor, x_0: Tensor | None, x_0_range: tuple[float, float] | None) -> Tensor:
    """Return what a self-conditioned network reads: x_t, then its estimate of x_0 (Chen et al. 2022).

    Args:
        x_t: [B, C, ...].
        x_0: [B, C, ...], the estimate of the step before; none: zeros.
        x_0_range: of the data, to which the estimate is clamped: at low SNR it can be hundreds of times larger.

    Returns:
        [B, 2 C, ...].
    """
    if x_0 is None:
        return torch.cat([x_t, torch.zeros_like(x_t)], dim=1)
    return torch.cat([x_t, x_0 if x_0_range is None else x_0.clamp(*x_0_range)], dim=1)


def network_denoiser(
    network: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    *,
    self_conditioning: bool = False,
    x_0_range: tuple[float, float] | None = None,
) -> Denoiser:
    """Return the denoiser of a network; conditions are bound before.

    Args:
        network: ``(input, t [B]) -> output [B, C or 2 C, ...]``; its input is x_t [B, C, ...], or with
            self-conditioning [B, 2 C, ...] of `with_estimate`.
        schedule: the schedule that it was trained with.
        parameterization: what it outputs.
        self_conditioning: whether it reads the prediction of the step before.
        x_0_range: of the data, for self-conditioning.
    """

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        seen = with_estimate(x_t, previous.x_0 if previous else None, x_0_range) if self_conditioning else x_t
        output = network(seen, t.to(x_t.device, torch.float32)).to(x_t.dtype)
        return to_prediction(output, x_t, t, schedule, parameterization)

    return denoise


def conditional_denoiser(
    network: Callable[[Tensor, Tensor, Condition | None], Tensor],
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    *,
    self_conditioning: bool = False,
    x_0_range: tuple[float, float] | None = None,
) -> ConditionalDenoiser:
    """Return the conditional denoiser of a network ``(input, t, condition) -> output``; see `network_denoiser`."""

    def denoise(x_t: Tensor, t: Tensor, condition: Condition | None, previous: Prediction | None = None) -> Prediction:
        denoiser = network_denoiser(
            lambda seen, times: network(seen, times, condition),
            schedule,
            parameterization,
            self_conditioning=self_conditioning,
            x_0_range=x_0_range,
        )
        return denoiser(x_t, t, previous)

    return denoise


def bound(denoiser: ConditionalDenoiser, condition: Condition | None) -> Denoiser:
    """Return the denoiser of pictures with these conditions."""

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        return denoiser(x_t, t, condition, previous)

    return denoise


def clipped(denoiser: Denoiser, schedule: NoiseSchedule, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Return the denoiser with x_0 clamped to [low, high], and eps made consistent with it.

    Always the outermost wrapper: guidance moves x_0 out of the range of the data, so it must come before.
    """

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        prediction = denoiser(x_t, t, previous)
        x_0 = prediction.x_0.clamp(low, high)
        return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule), prediction.variance_fraction)

    return denoise


def dynamically_thresholded(
    denoiser: Denoiser, schedule: NoiseSchedule, quantile: float = 0.995, largest: float = 1.0
) -> Denoiser:
    """Return the denoiser with each picture's x_0 clamped at a quantile of its own |x_0| and scaled back into range.

    Saharia et al. 2022 (Imagen), Sec. 2.3. Like `clipped`, the outermost wrapper, and in its place.
    """

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        prediction = denoiser(x_t, t, previous)
        threshold = torch.quantile(prediction.x_0.abs().flatten(1), quantile, dim=1).clamp(min=largest)
        threshold = threshold.reshape(-1, *[1] * (x_t.ndim - 1))
        x_0 = prediction.x_0.clamp(-threshold, threshold) * (largest / threshold)
        return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule), prediction.variance_fraction)

    return denoise
