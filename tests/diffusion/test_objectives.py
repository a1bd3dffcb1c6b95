"""Training targets, and the weights that turn their errors into the terms of the bound."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Parameterization, Prediction
from ddpm.diffusion.likelihood import transition_term
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.objectives import bound_weight, snr, squared_error, target
from ddpm.diffusion.schedules import SCHEDULES, VarianceKind, make_schedule
from ddpm.errors import ConfigError

T = 1000
AFTER_THE_FIRST = torch.arange(1, T)
PARAMETERIZATIONS = get_args(Parameterization)


def draw(seed: int, *shape: int) -> Tensor:
    return NoiseSource(seed, range(shape[0]), shape[1:], dtype=torch.float64).normal(0, "test")


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_weighted_errors_are_the_bounds_term_in_every_parameterization(
    name: str, parameterization: Parameterization
) -> None:
    """One wrong x_0-hat, as an error of eps, x_0, v or mu: times its weight, each is the KL of the small variance."""
    schedule, t = make_schedule(name), AFTER_THE_FIRST
    x_0, eps, wrong_x_0 = draw(1, T - 1, 2, 2), draw(2, T - 1, 2, 2), draw(3, T - 1, 2, 2)
    x_t = process.q_sample(x_0, t, eps, schedule)
    wrong_eps = process.eps_from_x_0(wrong_x_0, x_t, t, schedule)
    error = target(wrong_x_0, wrong_eps, x_t, t, schedule, parameterization) - target(
        x_0, eps, x_t, t, schedule, parameterization
    )
    weighted = bound_weight(t, schedule, parameterization, "fixed_small") * error.square().flatten(1).sum(1)
    term = transition_term(x_0, x_t, t, Prediction(wrong_x_0, wrong_eps), schedule)
    torch.testing.assert_close(weighted, term, rtol=1e-6, atol=0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_with_the_large_variance_the_kl_has_a_constant_beside_the_error(parameterization: Parameterization) -> None:
    schedule, t = make_schedule("cosine"), AFTER_THE_FIRST
    x_0, eps, wrong_x_0 = draw(1, T - 1, 4), draw(2, T - 1, 4), draw(3, T - 1, 4)
    x_t = process.q_sample(x_0, t, eps, schedule)
    wrong_eps = process.eps_from_x_0(wrong_x_0, x_t, t, schedule)
    error = target(wrong_x_0, wrong_eps, x_t, t, schedule, parameterization) - target(
        x_0, eps, x_t, t, schedule, parameterization
    )
    weighted = bound_weight(t, schedule, parameterization, "fixed_large") * error.square().sum(1)
    ratio = schedule.transition(t, t - 1).variance_small / schedule.betas[1:]
    constant = 4 * 0.5 * (ratio - 1 - ratio.log())
    term = transition_term(x_0, x_t, t, Prediction(wrong_x_0, wrong_eps), schedule, "fixed_large")
    torch.testing.assert_close(weighted + constant, term, rtol=1e-6, atol=1e-12)


def test_the_papers_weights() -> None:
    """Ho et al., Eq. 8 and 12, from betas alone, for both variances."""
    schedule = make_schedule("linear")
    alphas_cumprod = (1 - schedule.betas).cumprod(0)
    beta, bar, before = schedule.betas[1:], alphas_cumprod[1:], alphas_cumprod[:-1]
    variances: dict[VarianceKind, Tensor] = {"fixed_large": beta, "fixed_small": (1 - before) / (1 - bar) * beta}
    for kind, variance in variances.items():
        expected = {
            "eps": beta**2 / (2 * variance * (1 - beta) * (1 - bar)),
            "x_0": before * beta**2 / (2 * variance * (1 - bar) ** 2),
            "v": before * beta**2 / (2 * variance * (1 - bar)),
            "mu": 1 / (2 * variance),
        }
        for parameterization in PARAMETERIZATIONS:
            ours = bound_weight(AFTER_THE_FIRST, schedule, parameterization, kind)
            torch.testing.assert_close(ours, expected[parameterization], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("t", "right", "latent_diffusions"), [(100, 0.0894, 0.429), (500, 4.70e-4, 0.0730), (1000, 4.1e-7, 0.00159)]
)
def test_the_weight_of_x_0_is_not_latent_diffusions(t: int, right: float, latent_diffusions: float) -> None:
    """Its code has .5 sqrt(abar) / (2 * 1 - abar), the parentheses of 2 (1 - abar) lost, for this same term."""
    schedule = make_schedule("linear")
    alpha_bar = float(schedule.alphas_cumprod[t - 1])
    assert 0.5 * alpha_bar**0.5 / (2 * 1 - alpha_bar) == pytest.approx(latent_diffusions, rel=2e-3)
    ours = float(bound_weight(torch.tensor([t - 1]), schedule, "x_0", "fixed_small"))
    assert ours == pytest.approx(right, rel=5e-3)


def test_the_weight_of_x_0_is_half_the_loss_of_snr() -> None:
    """Kingma et al. 2021, Eq. 13: L_{t-1} = (SNR(t - 1) - SNR(t)) / 2 ||x_0 - x_0-hat||^2."""
    schedule = make_schedule("cosine")
    ratio = snr(torch.arange(T), schedule)
    ours = bound_weight(AFTER_THE_FIRST, schedule, "x_0", "fixed_small")
    torch.testing.assert_close(ours, (ratio[:-1] - ratio[1:]) / 2, rtol=1e-9, atol=0)


def test_weights_at_the_ends_of_a_schedule() -> None:
    """Finite wherever the error says anything of x_0: eps says nothing at zero SNR, and the first step has no KL."""
    schedule = make_schedule("linear", zero_terminal_snr=True)
    end = torch.tensor([T - 1])
    # beta = 1 and 1 - alpha-bar = 1 there: x_0_weight^2 / (2 beta-tilde) is half the SNR of the step before.
    before = float(schedule.alphas_cumprod[-2])
    for parameterization in ("x_0", "v"):
        weight = float(bound_weight(end, schedule, parameterization, "fixed_small"))
        assert weight == pytest.approx(before / (2 * (1 - before)), rel=1e-9)
    assert float(bound_weight(end, schedule, "mu", "fixed_large")) == 0.5
    assert float(bound_weight(end, schedule, "eps", "fixed_large")) == float("inf")
    assert float(bound_weight(torch.tensor([0]), schedule, "x_0", "fixed_small")) == float("inf")


def test_unknown_names_are_refused() -> None:
    schedule, t = make_schedule("linear"), torch.tensor([5])
    with pytest.raises(ConfigError, match="'x0'; did you mean 'x_0'"):
        bound_weight(t, schedule, "x0", "fixed_small")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'learned'; expected 'fixed_large' or 'fixed_small'"):
        bound_weight(t, schedule, "eps", "learned")  # type: ignore[arg-type]


def test_the_target_is_what_the_parameterization_names() -> None:
    schedule, t = make_schedule("linear"), torch.tensor([0, 1, 500, 999])
    x_0, eps = draw(1, 4, 3), draw(2, 4, 3)
    x_t = process.q_sample(x_0, t, eps, schedule)
    targets = {p: target(x_0, eps, x_t, t, schedule, p) for p in PARAMETERIZATIONS}
    assert targets["eps"] is eps
    assert targets["x_0"] is x_0
    signal, noise = (c.unsqueeze(1) for c in schedule.signal_and_noise(t))
    torch.testing.assert_close(targets["v"], signal * eps - noise * x_0, rtol=0, atol=1e-15)
    torch.testing.assert_close(targets["mu"], process.q_posterior(x_0, x_t, t, schedule)[0], rtol=0, atol=0)


def test_squared_error_is_each_samples_mean() -> None:
    wanted = torch.zeros(2, 3, 2, 2)
    output = torch.zeros(2, 3, 2, 2)
    output[0, 0, 0, 0], output[1] = 6.0, 2.0
    assert squared_error(output, wanted).tolist() == [3.0, 4.0]  # 36 / 12 and 4


def test_squared_error_of_half_precision_is_taken_in_the_targets() -> None:
    """1 - 2^-9 is a bfloat16; squared in bfloat16 it would be 1."""
    output = torch.full((1, 4), 1 - 2**-9, dtype=torch.bfloat16) * 1
    error = squared_error(output, torch.zeros(1, 4))
    assert error.dtype == torch.float32
    assert float(error) == float(output[0, 0]) ** 2
