"""Exact denoisers of distributions whose E[x_0 | x_t] is known: the oracles of the tests.

Each is a `Denoiser` over flattened data of D dimensions, in the dtype of x_t; give float64 for exact results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.process import eps_from_x_0
from ddpm.diffusion.schedules import NoiseSchedule


@dataclass(frozen=True, eq=False)
class ExactDenoiser(ABC):
    """Base: turns E[x_0 | x_t] into a `Prediction`."""

    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Return the exact expected x_0 and eps; `previous` is not needed."""
        signal, noise = self.schedule.signal_and_noise(t)
        flat = x_t.flatten(1)
        columns = (c.to(flat).expand(len(flat)).unsqueeze(1) for c in (signal, noise))
        x_0 = self.expected_x_0(flat, *columns).reshape(x_t.shape)
        return Prediction(x_0, eps_from_x_0(x_0, x_t, t, self.schedule))

    @abstractmethod
    def expected_x_0(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return E[x_0 | x_t] [B, D] for x_t [B, D] and sqrt(alpha-bar), sqrt(1 - alpha-bar) [B, 1]."""


@dataclass(frozen=True, eq=False)
class PointDenoiser(ExactDenoiser):
    """All mass on one `point` [D]."""

    point: Tensor

    def expected_x_0(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return the point."""
        return self.point.to(x_t).expand_as(x_t)


@dataclass(frozen=True, eq=False)
class GaussianDenoiser(ExactDenoiser):
    """x_0 ~ N(mean [D], covariance [D, D])."""

    mean: Tensor
    covariance: Tensor

    def expected_x_0(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return mean + signal C (signal^2 C + noise^2 I)^-1 (x_t - signal mean)."""
        values, vectors = torch.linalg.eigh(self.covariance.to(x_t))
        gain = signal * values / (signal.square() * values + noise.square())  # [B, D]
        mean = self.mean.to(x_t)
        x_0: Tensor = mean + (gain * ((x_t - signal * mean) @ vectors)) @ vectors.T
        return x_0


@dataclass(frozen=True, eq=False)
class MixtureDenoiser(ExactDenoiser):
    """x_0 ~ sum_k weights[k] N(means[k] [D], variances[k] I); a variance of 0 is a point."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_density(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return log(weight_k q_k(x_t)) [B, K] for each component, without the constant in 2 pi."""
        spread = signal.square() * self.variances.to(x_t) + noise.square()  # [B, K]
        distance = (x_t.unsqueeze(1) - signal.unsqueeze(2) * self.means.to(x_t)).square().sum(2)
        return self.weights.to(x_t).log() - 0.5 * (distance / spread + x_t.shape[1] * spread.log())

    def expected_x_0(self, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return the components' expectations, weighted by their posterior probabilities."""
        posterior = self.log_density(x_t, signal, noise).softmax(1).unsqueeze(2)
        variances, means = self.variances.to(x_t), self.means.to(x_t)
        gain = signal * variances / (signal.square() * variances + noise.square())
        per_component = means + gain.unsqueeze(2) * (x_t.unsqueeze(1) - signal.unsqueeze(2) * means)
        return (posterior * per_component).sum(1)


def finite_set_denoiser(schedule: NoiseSchedule, points: Tensor) -> MixtureDenoiser:
    """Return the exact denoiser of an equally weighted set of points [K, D]: what a network that memorises learns."""
    count = len(points)
    return MixtureDenoiser(
        schedule, weights=torch.full((count,), 1 / count), means=points, variances=torch.zeros(count)
    )
