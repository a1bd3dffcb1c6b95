from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ddpm.diffusion import make_schedule
from ddpm.diffusion.analytic import GaussianDenoiser, MixtureDenoiser
from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.ode_likelihood import ode_log_likelihood
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import ConfigError

MEAN = torch.tensor([0.2, -0.1, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.1]], dtype=torch.float64)
IDENTITY = torch.eye(3, dtype=torch.float64)


def source(n: int, *shape: int) -> NoiseSource:
    return NoiseSource(3, range(n), shape, dtype=torch.float64)


def points(n: int = 6) -> Tensor:
    return source(n, 3).normal(0, "test points")


def density_of_the_linear_map(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """The ODE stretches each axis of the covariance by the ratio of its marginal deviations, about the mean.

    So x_T - sqrt(abar_T) m = A (x - sqrt(abar_0) m), and log p(x_0) = log N(x_T; 0, I) + log det A + D/2 log abar_0.
    """
    bar_0, bar_T = schedule.alphas_cumprod[[0, -1]]
    values, vectors = torch.linalg.eigh(COVARIANCE)
    stretch = ((bar_T * values + 1 - bar_T) / (bar_0 * values + 1 - bar_0)).sqrt()
    x_T = bar_T.sqrt() * MEAN + (bar_0.sqrt() * (x_0 - MEAN) @ vectors * stretch) @ vectors.T
    return MultivariateNormal(0 * MEAN, IDENTITY).log_prob(x_T) + stretch.log().sum() + 1.5 * bar_0.log()


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_density_of_gaussian_data_is_that_of_the_linear_map(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, 1000, zero_terminal_snr=zero_terminal_snr)
    denoiser = GaussianDenoiser(schedule, MEAN, COVARIANCE)
    likelihood = ode_log_likelihood(denoiser, schedule, points(), source(6, 3))
    assert float((likelihood.log_density - density_of_the_linear_map(schedule, points())).abs().max()) < 1e-6
    assert likelihood.divergence_error.tolist() == [0.0] * 6


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_with_zero_terminal_snr_it_is_the_density_of_the_data_at_code_time_0(name: str) -> None:
    """Then q(x_T) is N(0, I) itself, so nothing is left but sigma_0 at the other end: x_0 + sigma_0 eps."""
    schedule = make_schedule(name, 1000, zero_terminal_snr=True)
    bar = schedule.alphas_cumprod[0]
    exact = MultivariateNormal(MEAN, COVARIANCE + (1 - bar) / bar * IDENTITY).log_prob(points())
    denoiser = GaussianDenoiser(schedule, MEAN, COVARIANCE)
    likelihood = ode_log_likelihood(denoiser, schedule, points(), source(6, 3))
    assert float((likelihood.log_density - exact).abs().max()) < 1e-6


@pytest.mark.parametrize(("name", "zero_terminal_snr"), [("linear", False), ("cosine", True)])
def test_the_error_is_of_the_fourth_order(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, 1000, zero_terminal_snr=zero_terminal_snr)
    denoiser, exact = GaussianDenoiser(schedule, MEAN, COVARIANCE), density_of_the_linear_map(schedule, points())
    errors = [
        float((ode_log_likelihood(denoiser, schedule, points(), source(6, 3), steps=k).log_density - exact).abs().max())
        for k in (20, 40)
    ]
    assert 12 < errors[0] / errors[1] < 28


def test_the_density_of_a_mixture_is_exact_too() -> None:
    """A field that is not linear: 0.7 N(-0.6, 0.02) + 0.3 N(0.5, 0.1), blurred by sigma_0."""
    schedule = make_schedule("cosine", 500, zero_terminal_snr=True)
    bar = float(schedule.alphas_cumprod[0])
    weights, means, variances = torch.tensor([[0.7, 0.3], [-0.6, 0.5], [0.02, 0.1]], dtype=torch.float64)
    denoiser = MixtureDenoiser(schedule, weights, means.unsqueeze(1), variances)
    x_0 = torch.linspace(-1, 1, 9, dtype=torch.float64)
    total = variances + (1 - bar) / bar
    density = (weights * torch.exp(-0.5 * (x_0.unsqueeze(1) - means) ** 2 / total) / (2 * math.pi * total).sqrt()).sum(
        1
    )
    likelihood = ode_log_likelihood(denoiser, schedule, x_0.unsqueeze(1), source(9, 1), steps=150)
    assert float((likelihood.log_density - density.log()).abs().max()) < 1e-6


class CurvedDenoiser:
    """A field that no data have: its Jacobian is neither symmetric nor constant."""

    def __call__(self, x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        x_0 = torch.sin(x_t.roll(1, -1)) + 0.2 * x_t
        return Prediction(x_0, 0.5 * torch.tanh(x_t.flip(-1)) + 0.8 * x_t)


def test_any_field_is_integrated_to_a_density() -> None:
    """Its mass is 1, whatever the denoiser: here over a grid in the plane."""
    schedule = make_schedule("linear", 100)
    side = torch.linspace(-6, 6, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    likelihood = ode_log_likelihood(CurvedDenoiser(), schedule, grid, source(len(grid), 2), steps=20)
    mass = float(likelihood.log_density.exp().sum() * (side[1] - side[0]) ** 2)
    assert mass == pytest.approx(1, abs=1e-3)


def test_probes_are_unbiased_and_their_error_is_honest() -> None:
    """200 copies of a point with 4 probes each: off by as much as they say, and by chance only."""
    schedule = make_schedule("linear", 100)
    x_0 = points(1).expand(200, 3)
    exact = ode_log_likelihood(CurvedDenoiser(), schedule, x_0[:1], source(1, 3), steps=10).log_density
    probed = ode_log_likelihood(CurvedDenoiser(), schedule, x_0, source(200, 3), steps=10, probes=4)
    off = probed.log_density - exact
    assert float(off.std()) > 0.01
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(200)
    assert float(probed.divergence_error.square().mean().sqrt()) == pytest.approx(float(off.std()), rel=0.2)


def test_beyond_64_dimensions_probes_are_taken() -> None:
    schedule = make_schedule("cosine", 20)
    for dimensions, sure in ((64, True), (65, False)):
        denoiser = GaussianDenoiser(
            schedule, torch.zeros(dimensions), torch.ones(dimensions, dimensions) + torch.eye(dimensions)
        )
        x_0 = source(2, dimensions).normal(0, "test")
        likelihood = ode_log_likelihood(denoiser, schedule, x_0, source(2, dimensions), steps=2)
        assert (float(likelihood.divergence_error.max()) == 0.0) is sure


def test_every_step_is_told() -> None:
    schedule, told = make_schedule("cosine", 20), []
    denoiser = GaussianDenoiser(schedule, MEAN, COVARIANCE)
    ode_log_likelihood(denoiser, schedule, points(), source(6, 3), steps=7, on_step=lambda: told.append(1))
    assert len(told) == 7


def test_what_it_cannot_do_is_refused() -> None:
    schedule = make_schedule("cosine", 20)
    denoiser = GaussianDenoiser(schedule, MEAN, COVARIANCE)
    with pytest.raises(ConfigError, match=r"x_0 is torch\.float32; .* torch\.float64"):
        ode_log_likelihood(denoiser, schedule, points().float(), source(6, 3))
    with pytest.raises(ConfigError, match="0 steps of the integrator"):
        ode_log_likelihood(denoiser, schedule, points(), source(6, 3), steps=0)
    with pytest.raises(ConfigError, match="1 probes of the divergence; at least 2"):
        ode_log_likelihood(denoiser, schedule, points(), source(6, 3), probes=1)
