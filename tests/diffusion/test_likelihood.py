"""Every term of the variational bound against its closed form, and the discretised decoder against exact masses."""

import math
from statistics import NormalDist

import mpmath
import pytest
import torch
from scipy import integrate, stats
from scripted_noise import ScriptedNoise
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.likelihood import (
    Bound,
    bits_per_dim,
    decoder_term,
    discretised_gaussian_log_likelihood,
    gaussian_kl,
    level_terms,
    prior_term,
    stratified_times,
    time_strata,
    transition_term,
    variational_bound,
)
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers.ancestral import ReverseVariance
from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, make_schedule
from ddpm.errors import ConfigError

MEAN, VARIANCE = 0.2, 0.3


def draw(seed: int, *shape: int) -> Tensor:
    return NoiseSource(seed, range(shape[0]), shape[1:], dtype=torch.float64).normal(0, "test")


def gaussian(dimensions: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of independent dimensions."""
    return torch.full((dimensions,), MEAN, dtype=torch.float64), VARIANCE * torch.eye(dimensions, dtype=torch.float64)


def every_schedule(num_timesteps: int) -> list[NoiseSchedule]:
    return [make_schedule(n, num_timesteps, zero_terminal_snr=z) for n in SCHEDULES for z in (False, True)]


# The KL of two Gaussians -------------------------------------------------------------------------------------------


def test_gaussian_kl_is_torchs() -> None:
    mean_1, log_variance_1, mean_2, log_variance_2 = (3 * draw(seed, 100, 5) for seed in range(4))
    ours = gaussian_kl(mean_1, log_variance_1, mean_2, log_variance_2)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_1, (0.5 * log_variance_1).exp()),
        torch.distributions.Normal(mean_2, (0.5 * log_variance_2).exp()),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gaussian_kl_of_equal_variances_is_the_distance_of_means() -> None:
    mean_1, mean_2 = draw(1, 50), draw(2, 50)
    log_variance = 5 * draw(3, 50)
    ours = gaussian_kl(mean_1, log_variance, mean_2, log_variance)
    torch.testing.assert_close(ours, (mean_1 - mean_2).square() / (2 * log_variance.exp()), rtol=1e-13, atol=0)


def test_gaussian_kl_keeps_its_digits_where_it_is_tiny() -> None:
    """For variances e^d apart it is (e^d - 1 - d) / 2 = d^2 / 4 + d^3 / 12 + ..: 2.5e-17 at d = 1e-8."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(gaussian_kl(zero, zero + 1e-4, zero, zero)) == pytest.approx(1e-8 / 4 + 1e-12 / 12, rel=1e-7)


# L_T, L_{t-1}, L_0 on Gaussian data, where all is known --------------------------------------------------------------


def corners() -> tuple[Tensor, Tensor]:
    """x_0 = mean +- deviation with eps = +-1: the average over these four of a quadratic form is its expectation."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    return MEAN + VARIANCE**0.5 * signs[:, :1], signs[:, 1:]


def bound_at_corners(schedule: NoiseSchedule, variance: ReverseVariance = "fixed_small") -> Bound:
    x_0, eps = corners()
    denoiser = GaussianDenoiser(schedule, *gaussian(1))
    noise: NoiseSource = ScriptedNoise(lambda draw: eps)  # type: ignore[assignment]
    return variational_bound(denoiser, schedule, x_0, noise, levels=256, variance=variance)


@pytest.mark.parametrize("schedule", every_schedule(100))
def test_every_term_is_its_closed_form_for_each_sample(schedule: NoiseSchedule) -> None:
    """L_T = (abar x_0^2 + (1 - abar) - 1 - log(1 - abar)) / 2, and L_{t-1} = (mu~ - mu)^2 / (2 beta~)."""
    bound = bound_at_corners(schedule)
    x_0, eps = (corner.squeeze(1) for corner in corners())
    bar = (1 - schedule.betas).cumprod(0)
    prior = (bar[-1] * x_0**2 - bar[-1] - torch.log1p(-bar[-1])) / 2
    assert float((bound.prior - prior).abs().max()) < 1e-12
    assert bound.transitions.shape == (4, 99)
    for t in range(1, 100):
        beta, noise = float(schedule.betas[t]), float(1 - bar[t])
        x_t = bar[t] ** 0.5 * x_0 + noise**0.5 * eps
        x_0_hat = MEAN + bar[t] ** 0.5 * VARIANCE / (bar[t] * VARIANCE + noise) * (x_t - bar[t] ** 0.5 * MEAN)
        beta_tilde = (1 - bar[t - 1]) / noise * beta
        shift = bar[t - 1] ** 0.5 * beta / noise * (x_0 - x_0_hat)
        assert float((bound.transitions[:, t - 1] - shift**2 / (2 * beta_tilde)).abs().max()) < 1e-8


@pytest.mark.parametrize("schedule", every_schedule(100))
def test_expected_terms_are_the_loss_of_snr_times_the_error_left(schedule: NoiseSchedule) -> None:
    """E[L_{t-1}] = (SNR(t - 1) - SNR(t)) / 2 Var[x_0 | x_t], with Var[x_0 | x_t] = 1 / (1 / c + SNR(t))."""
    bound = bound_at_corners(schedule)
    bar = (1 - schedule.betas).cumprod(0)
    snr = bar / (1 - bar)
    expected = (snr[:-1] - snr[1:]) / 2 / (1 / VARIANCE + snr[1:])
    assert float((bound.transitions.mean(0) - expected).abs().max()) < 1e-8
    prior = (bar[-1] * (MEAN**2 + VARIANCE) - bar[-1] - torch.log1p(-bar[-1])) / 2
    assert float((bound.prior.mean() - prior).abs()) < 1e-12


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_decoder_is_the_mass_of_a_bin(variance: ReverseVariance) -> None:
    """p(x_0 | x_1) is N(x_0-hat, sigma_1^2), integrated over the bin of x_0; sigma_1^2 is beta_1, or beta~_2."""
    schedule = make_schedule("linear", 100)
    bound = bound_at_corners(schedule, variance)
    x_0, eps = (corner.squeeze(1) for corner in corners())
    bar = (1 - schedule.betas).cumprod(0)
    beta_tilde_2 = (1 - bar[0]) / (1 - bar[1]) * schedule.betas[1]
    sigma = float(schedule.betas[0] if variance == "fixed_large" else beta_tilde_2) ** 0.5
    for i in range(4):
        x_1 = bar[0] ** 0.5 * x_0[i] + (1 - bar[0]) ** 0.5 * eps[i]
        gain = bar[0] ** 0.5 * VARIANCE / (bar[0] * VARIANCE + 1 - bar[0])
        normal = NormalDist(float(MEAN + gain * (x_1 - bar[0] ** 0.5 * MEAN)), sigma)
        mass = integrate.quad(normal.pdf, float(x_0[i]) - 1 / 255, float(x_0[i]) + 1 / 255, epsabs=0, epsrel=1e-12)[0]
        assert float(bound.decoder[i]) == pytest.approx(-math.log(mass), abs=1e-9)


def test_a_perfect_prediction_costs_only_the_ends() -> None:
    """Its bound is L_T + L_0: every term between is 0."""
    schedule = make_schedule("linear", 50)
    x_0, t = draw(1, 49, 2), torch.arange(1, 50)
    x_t = process.q_sample(x_0, t, draw(2, 49, 2), schedule)
    perfect = Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule))
    assert transition_term(x_0, x_t, t, perfect, schedule).tolist() == [0.0] * 49


def test_terms_add_up_and_dimensions_do() -> None:
    """A picture of independent pixels costs the sum of them: every term sums over the dimensions of a sample."""
    schedule = make_schedule("cosine", 20)
    denoiser = GaussianDenoiser(schedule, *gaussian(12))
    x_0 = draw(1, 3, 3, 2, 2).clamp(-1, 1)
    eps = draw(2, 20, 3, 3, 2, 2)
    noise: NoiseSource = ScriptedNoise(lambda draw: eps[draw])  # type: ignore[assignment]
    whole = variational_bound(denoiser, schedule, x_0, noise, levels=256)
    pixel = GaussianDenoiser(schedule, *gaussian(1))
    alone: NoiseSource = ScriptedNoise(lambda draw: eps[draw].reshape(36, 1))  # type: ignore[assignment]
    parts = variational_bound(pixel, schedule, x_0.reshape(36, 1), alone, levels=256)
    by_hand = parts.prior + sum(parts.transitions[:, t] for t in range(19)) + parts.decoder
    torch.testing.assert_close(parts.total, by_hand, rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.total, by_hand.reshape(3, 12).sum(1), rtol=1e-12, atol=0)


def test_the_estimate_draws_one_noise_for_every_t() -> None:
    schedule, noise = make_schedule("cosine", 20), ScriptedNoise(lambda draw: torch.ones(2, 1, dtype=torch.float64))
    denoiser = GaussianDenoiser(schedule, torch.zeros(1), torch.eye(1))
    variational_bound(denoiser, schedule, torch.zeros(2, 1).double(), noise, levels=3)  # type: ignore[arg-type]
    assert noise.draws == list(range(20))


@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
def test_float32_terms_agree_with_float64(schedule_name: str) -> None:
    schedule = make_schedule(schedule_name, 200)
    denoiser = GaussianDenoiser(schedule, *gaussian(5))
    x_0 = (0.5 * draw(1, 8, 5)).clamp(-1, 1)
    noise = NoiseSource(0, range(8), (5,))
    exact, single = (variational_bound(denoiser, schedule, x, noise, levels=256) for x in (x_0, x_0.float()))
    torch.testing.assert_close(single.prior, exact.prior, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(single.transitions, exact.transitions, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(single.decoder, exact.decoder, rtol=1e-3, atol=1e-3)
    assert single.total.dtype == torch.float64


def test_the_prior_keeps_its_digits_in_float32() -> None:
    """For x_0 = 0, L_T = -(abar + log(1 - abar)) / 2 = abar^2 / 4 + ..: 4e-10 nats a dimension, linear."""
    schedule = make_schedule("linear")
    bar = float(schedule.alphas_cumprod[-1])
    expected = bar**2 / 4 + bar**3 / 6
    assert float(prior_term(torch.zeros(1, 1).double(), schedule)) == pytest.approx(expected, rel=1e-6)
    assert float(prior_term(torch.zeros(1, 1), schedule)) == pytest.approx(expected, rel=1e-3)


def test_the_prior_is_nothing_where_no_signal_is_left() -> None:
    schedule = make_schedule("linear", zero_terminal_snr=True)
    assert prior_term(draw(1, 4, 3), schedule).tolist() == [0.0] * 4


# Learned variance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_variance_spans_the_two_fixed_ones(fraction: float, fixed: ReverseVariance) -> None:
    schedule = make_schedule("cosine", 20)
    x_0, x_t = draw(1, 19, 3), draw(2, 19, 3)
    t = torch.arange(1, 20)
    plain = Prediction(0.5 * x_0, x_t)
    learned = Prediction(0.5 * x_0, x_t, torch.full_like(x_0, fraction))
    torch.testing.assert_close(
        transition_term(x_0, x_t, t, learned, schedule, "learned"),
        transition_term(x_0, x_t, t, plain, schedule, fixed),
        rtol=1e-10,
        atol=1e-14,
    )
    torch.testing.assert_close(
        decoder_term(x_0, x_t, learned, schedule, 256, "learned"),
        decoder_term(x_0, x_t, plain, schedule, 256, fixed),
        rtol=1e-10,
        atol=0,
    )


def test_unknown_or_missing_variances_are_refused() -> None:
    schedule, x = make_schedule("cosine", 20), draw(1, 2, 3)
    prediction = Prediction(x, x)
    for term in (
        lambda kind: transition_term(x, x, torch.tensor([3, 4]), prediction, schedule, kind),
        lambda kind: decoder_term(x, x, prediction, schedule, 256, kind),
    ):
        with pytest.raises(ConfigError, match="'fixed_smal'; did you mean 'fixed_small'"):
            term("fixed_smal")
        with pytest.raises(ConfigError, match="variance 'learned', but this denoiser's variance is fixed"):
            term("learned")


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_with_a_learned_variance_the_kl_is_that_of_two_gaussians(fraction: float) -> None:
    """sigma^2 = beta^f beta~^(1 - f), and KL = (log(sigma^2 / beta~) - 1 + (beta~ + shift^2) / sigma^2) / 2."""
    schedule = make_schedule("linear", 100)
    bar = (1 - schedule.betas).cumprod(0)
    x_0, x_t, t = draw(1, 99, 1), draw(2, 99, 1), torch.arange(1, 100)
    prediction = Prediction(0.5 * x_0, x_t, torch.full_like(x_0, fraction))
    small = (1 - bar[:-1]) / (1 - bar[1:]) * schedule.betas[1:]
    variance = schedule.betas[1:] ** fraction * small ** (1 - fraction)
    shift = bar[:-1].sqrt() * schedule.betas[1:] / (1 - bar[1:]) * 0.5 * x_0.squeeze(1)
    expected = 0.5 * ((variance / small).log() - 1 + (small + shift**2) / variance)
    ours = transition_term(x_0, x_t, t, prediction, schedule, "learned")
    assert float((ours - expected).abs().max()) < 1e-8


# Strata of times -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", every_schedule(60))
@pytest.mark.parametrize("count", [1, 2, 7, 58, 59])
def test_strata_partition_the_times_in_order(schedule: NoiseSchedule, count: int) -> None:
    strata = time_strata(schedule, count)
    assert len(strata) == count
    assert min(map(len, strata)) >= 1
    assert [t for times in strata for t in times] == list(range(1, 60))


def test_strata_share_the_bound_of_normal_data() -> None:
    """-log(1 - abar) falls by about as much in each; the first step alone makes it fall by more."""
    schedule = make_schedule("linear", 1000)
    information = -torch.log(1 - schedule.alphas_cumprod)
    strata = time_strata(schedule, 50)
    falls = [float(information[times[0] - 1] - information[times[-1]]) for times in strata]
    shared = [fall for fall, times in zip(falls, strata, strict=True) if len(times) > 3]
    assert max(shared) < 1.6 * min(shared)
    assert strata[0] == range(1, 2)


@pytest.mark.parametrize("count", [0, 50])
def test_no_or_too_many_strata_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} strata of the times 1 to 49; expected 1 to 49"):
        time_strata(make_schedule("cosine", 50), count)


def test_the_part_of_a_stratum_is_on_average_the_sum_over_it() -> None:
    """Over all the times that it may draw: an identity, without statistics."""
    schedule = make_schedule("cosine", 20)
    x_0, eps = corners()
    noise: NoiseSource = ScriptedNoise(lambda draw: eps)  # type: ignore[assignment]
    denoiser = GaussianDenoiser(schedule, *gaussian(1))
    every = variational_bound(denoiser, schedule, x_0, noise, levels=256)
    strata = time_strata(schedule, 4)
    for k, stratum in enumerate(strata):
        columns = []
        for t in stratum:
            times = torch.tensor([[t if j == k else strata[j][0] for j in range(4)]]).expand(4, 4)
            parts = list(level_terms(denoiser, schedule, x_0, noise, levels=256, strata=strata, times=times))
            assert torch.equal(parts[0].nats, every.decoder)
            columns.append(parts[k + 1].nats)
        summed = every.transitions[:, stratum[0] - 1 : stratum[-1]].sum(1)
        torch.testing.assert_close(torch.stack(columns).mean(0), summed, rtol=1e-12, atol=0)


def test_times_are_uniform_in_their_strata_and_independent() -> None:
    strata = (range(1, 2), range(2, 5), range(5, 20))
    times = stratified_times(strata, 3, range(3000))
    for column, stratum in zip(times.unbind(1), strata, strict=True):
        counts = torch.bincount(column, minlength=20)[stratum[0] : stratum[-1] + 1]
        assert int(counts.sum()) == 3000
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3 or len(stratum) == 1
    assert abs(float(torch.corrcoef(times[:, 1:].double().T)[0, 1])) < 4 / 3000**0.5
    assert torch.equal(stratified_times(strata, 3, [7, 5]), times[[7, 5]])
    assert not torch.equal(stratified_times(strata, 3, range(3000), 1), times)


def test_the_distortion_is_the_error_left() -> None:
    """On Gaussian data it is Var[x_0 | x_t] = 1 / (1 / c + SNR(t)), on average over the corners."""
    schedule = make_schedule("linear", 100)
    x_0, eps = corners()
    noise: NoiseSource = ScriptedNoise(lambda draw: eps)  # type: ignore[assignment]
    denoiser = GaussianDenoiser(schedule, *gaussian(1))
    times = torch.arange(1, 100).expand(4, -1)
    parts = level_terms(denoiser, schedule, x_0, noise, levels=256, strata=time_strata(schedule, 99), times=times)
    left = torch.stack([part.squared_error.mean() for part in parts])
    bar = (1 - schedule.betas).cumprod(0)
    assert float((left - 1 / (1 / VARIANCE + bar / (1 - bar))).abs().max()) < 1e-12


# The discretised decoder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 65536])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_masses_of_all_levels_sum_to_one(levels: int, dtype: torch.dtype) -> None:
    values = torch.linspace(-1, 1, levels, dtype=torch.float64).to(dtype)
    for mean in (-1.5, -1.0, -0.003, 0.0, 0.4, 1.0, 7.0):
        for deviation in (0.01, 0.3, 2.0):
            log_mass = discretised_gaussian_log_likelihood(
                values, torch.full_like(values, mean), torch.full_like(values, 2 * math.log(deviation)), levels
            )
            total = float(log_mass.double().exp().sum())
            assert total == pytest.approx(1, abs=1e-11 if dtype == torch.float64 else 2e-2 if levels > 256 else 1e-4)


def exact_log_mass(x_0: float, mean: float, deviation: float, levels: int) -> float:
    """The log of the bin's mass to 60 digits."""
    half = mpmath.mpf(1) / (levels - 1)
    with mpmath.workdps(60):
        ends = [-mpmath.inf if x_0 == -1 else x_0 - half, mpmath.inf if x_0 == 1 else x_0 + half]
        low, high = ((end - mpmath.mpf(mean)) / (deviation * mpmath.sqrt(2)) for end in ends)
        if low + high < 0:
            low, high = -high, -low  # erfc keeps its digits in the upper tail only
        return float(mpmath.log((mpmath.erfc(low) - mpmath.erfc(high)) / 2))


@pytest.mark.parametrize("mean", [-30.0, -3.0, -1.0, -0.1, 0.0, 0.6, 1.0, 1.5, 30.0])
@pytest.mark.parametrize("deviation", [1e-3, 0.01, 1.0, 50.0])
@pytest.mark.parametrize("levels", [2, 17, 257, 65537])
def test_every_mass_is_precise_into_the_far_tails(mean: float, deviation: float, levels: int) -> None:
    """As far as 30,000 deviations, where a mass is e^-450,000,000; and for bins of a millionth of a deviation."""
    for x_0 in (-1.0, 0.0 if levels > 2 else 1.0, 0.75 if levels > 2 else 1.0, 1.0):
        given = [torch.tensor([v], dtype=torch.float64) for v in (x_0, mean, 2 * math.log(deviation))]
        ours = float(discretised_gaussian_log_likelihood(*given, levels))
        assert ours == pytest.approx(exact_log_mass(x_0, mean, deviation, levels), rel=1e-8, abs=1e-12)


def test_the_mass_is_scipys() -> None:
    x_0, mean, deviation = 3 / 255, 0.02, 0.05
    given = [torch.tensor([v], dtype=torch.float64) for v in (x_0, mean, 2 * math.log(deviation))]
    mass = stats.norm.cdf(x_0 + 1 / 255, mean, deviation) - stats.norm.cdf(x_0 - 1 / 255, mean, deviation)
    assert float(discretised_gaussian_log_likelihood(*given, 256)) == pytest.approx(math.log(mass), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_decoder_can_be_trained_through(dtype: torch.dtype) -> None:
    """At every level and however wrong the mean, gradients are finite and pull the mean towards x_0."""
    x_0 = torch.linspace(-1, 1, 256, dtype=torch.float64).to(dtype).repeat(5)
    off = torch.tensor([-3, -0.02, 0.0, 0.02, 3], dtype=dtype).repeat_interleave(256)
    mean = (x_0 + off).requires_grad_()
    log_variance = torch.full_like(x_0, math.log(1e-4)).requires_grad_()
    discretised_gaussian_log_likelihood(x_0, mean, log_variance, 256).sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert bool(mean.grad.isfinite().all())
    assert bool(log_variance.grad.isfinite().all())
    inner, far = x_0.abs() < 1, off.abs() > 1
    assert bool((mean.grad[inner & far] * off[inner & far] < 0).all())


def test_less_than_two_levels_are_refused() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=r"levels is 1; .* at least 2"):
        discretised_gaussian_log_likelihood(x, x, x, 1)


# Bits ----------------------------------------------------------------------------------------------------------------


def test_bits_per_dim_of_a_uniform_byte_is_eight() -> None:
    assert float(bits_per_dim(torch.tensor(3072 * math.log(256), dtype=torch.float64), 3072)) == pytest.approx(
        8, rel=1e-14
    )
