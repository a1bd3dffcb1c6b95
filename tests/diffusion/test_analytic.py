"""The oracles themselves: exact denoisers against Tweedie's formula on the density of x_t, and sums by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from ddpm.diffusion import process
from ddpm.diffusion.analytic import (
    ExactDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    PointDenoiser,
    finite_set_denoiser,
)
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.schedules import make_schedule

SCHEDULE = make_schedule("cosine", 100)
TIMES = torch.tensor([0, 1, 5, 20, 50, 80, 98, 99])
X_T = NoiseSource(0, range(8), (3,), dtype=torch.float64).normal(0, "x_t")

POINT = torch.tensor([0.5, -0.2, 0.9], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.4]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
MEANS = NoiseSource(1, range(4), (3,), dtype=torch.float64).normal(0, "means")
VARIANCES = torch.tensor([0.3, 0.01, 1.5, 0.0], dtype=torch.float64)

DENOISERS: dict[str, ExactDenoiser] = {
    "point": PointDenoiser(SCHEDULE, POINT),
    "gaussian": GaussianDenoiser(SCHEDULE, POINT, COVARIANCE),
    "mixture": MixtureDenoiser(SCHEDULE, WEIGHTS, MEANS, VARIANCES),
    "finite set": finite_set_denoiser(SCHEDULE, MEANS),
}
every_denoiser = pytest.mark.parametrize("name", DENOISERS)


def density_of_x_t(name: str, t: float) -> Any:
    """q(x_t): the data's density, shrunk by sqrt(alpha-bar) and blurred by 1 - alpha-bar, as torch states it."""
    signal, noise = SCHEDULE.signal_and_noise(t)
    blur = noise.square()
    if name == "point":
        return Independent(Normal(signal * POINT, noise.expand(3)), 1)
    if name == "gaussian":
        covariance = signal.square() * COVARIANCE + blur * torch.eye(3, dtype=torch.float64)
        return MultivariateNormal(signal * POINT, covariance)
    uniform, none = torch.full((4,), 0.25).double(), torch.zeros(4).double()
    weights, variances = (WEIGHTS, VARIANCES) if name == "mixture" else (uniform, none)
    deviation = (signal.square() * variances + blur).sqrt().unsqueeze(1).expand(4, 3)
    return MixtureSameFamily(Categorical(weights), Independent(Normal(signal * MEANS, deviation), 1))


@every_denoiser
def test_eps_is_the_score_of_the_density(name: str) -> None:
    """Tweedie: E[eps | x_t] = -sqrt(1 - alpha-bar) grad log q(x_t), by automatic differentiation of torch's density."""
    for t in TIMES.tolist():
        x_t = X_T.clone().requires_grad_()
        (score,) = torch.autograd.grad(density_of_x_t(name, t).log_prob(x_t).sum(), x_t)
        eps = DENOISERS[name](X_T, torch.full((8,), t)).eps
        torch.testing.assert_close(eps, process.eps_from_score(score, t, SCHEDULE), rtol=1e-9, atol=1e-9)


@every_denoiser
def test_predictions_are_consistent_and_each_pictures_own(name: str) -> None:
    """x_t = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) eps, with another t in each row, for pictures of any shape."""
    together = DENOISERS[name](X_T, TIMES)
    again = process.q_sample(together.x_0, TIMES, together.eps, SCHEDULE)
    torch.testing.assert_close(again, X_T, rtol=0, atol=1e-12)
    for i, t in enumerate(TIMES):
        alone = DENOISERS[name](X_T[i].reshape(1, 1, 3, 1), t)
        torch.testing.assert_close(alone.x_0.reshape(3), together.x_0[i], rtol=0, atol=1e-12)


@every_denoiser
def test_float32_stays_float32_and_close(name: str) -> None:
    single = DENOISERS[name](X_T.float(), TIMES)
    assert single.x_0.dtype == single.eps.dtype == torch.float32
    torch.testing.assert_close(single.x_0.double(), DENOISERS[name](X_T, TIMES).x_0, rtol=0, atol=1e-3)


@every_denoiser
def test_pure_noise_says_nothing_so_the_mean_is_expected(name: str) -> None:
    schedule = make_schedule("cosine", 100, zero_terminal_snr=True)
    means: dict[str, tuple[ExactDenoiser, Tensor]] = {
        "point": (PointDenoiser(schedule, POINT), POINT),
        "gaussian": (GaussianDenoiser(schedule, POINT, COVARIANCE), POINT),
        "mixture": (MixtureDenoiser(schedule, WEIGHTS, MEANS, VARIANCES), WEIGHTS @ MEANS),
        "finite set": (finite_set_denoiser(schedule, MEANS), MEANS.mean(0)),
    }
    denoiser, mean = means[name]
    prediction = denoiser(X_T, torch.full((8,), 99))
    torch.testing.assert_close(prediction.x_0, mean.expand(8, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction.eps, X_T, rtol=0, atol=0)


def test_a_finite_set_is_weighed_by_distance() -> None:
    """E[x_0 | x_t] = sum_k x_k w_k, with w_k ~ exp(-||x_t - sqrt(alpha-bar) x_k||^2 / (2 (1 - alpha-bar)))."""
    t = 40
    bar = float(SCHEDULE.alphas_cumprod[t])
    for x_t in X_T:
        weights = torch.stack([(-(x_t - bar**0.5 * x_k).square().sum() / (2 * (1 - bar))).exp() for x_k in MEANS])
        expected = (weights.unsqueeze(1) * MEANS).sum(0) / weights.sum()
        ours = finite_set_denoiser(SCHEDULE, MEANS)(x_t.unsqueeze(0), torch.tensor([t])).x_0[0]
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_a_gaussian_whose_data_lie_on_a_line_is_denoised_onto_it() -> None:
    """A singular covariance is no trouble: x_0-hat has no component off the line."""
    direction = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3
    denoiser = GaussianDenoiser(SCHEDULE, POINT, torch.outer(direction, direction))
    deviation = denoiser(X_T, TIMES).x_0 - POINT
    off_line = deviation - (deviation @ direction).unsqueeze(1) * direction
    assert float(off_line.abs().max()) < 1e-11
