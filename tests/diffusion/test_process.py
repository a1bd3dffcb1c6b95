"""The forward process, its posterior, and the conversions between eps, x_0, v, mu and score."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.denoiser import (
    Parameterization,
    Prediction,
    clipped,
    dynamically_thresholded,
    network_denoiser,
    to_prediction,
)
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.objectives import target
from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, from_function, make_schedule
from ddpm.errors import ConfigError

T = 1000
EVERY_T = torch.arange(T)
SCHEDULES_AND_SNR = [(name, zero) for name in SCHEDULES for zero in (False, True)]
PARAMETERIZATIONS = get_args(Parameterization)
every_schedule = pytest.mark.parametrize(("name", "zero_terminal_snr"), SCHEDULES_AND_SNR)
by_property = settings(max_examples=150, deadline=None, derandomize=True)


def draw(seed: int, *shape: int) -> Tensor:
    return NoiseSource(seed, range(shape[0]), shape[1:], dtype=torch.float64).normal(0, "test")


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.fixture
def schedule() -> NoiseSchedule:
    return make_schedule("linear")


@pytest.fixture
def batch(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, eps, x_t and t: one row for every timestep."""
    x_0, eps = draw(1, T, 2, 3), draw(2, T, 2, 3)
    return x_0, eps, process.q_sample(x_0, EVERY_T, eps, schedule), EVERY_T


# Conversions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_right_output_gives_the_truth_back_at_every_t(name: str, parameterization: Parameterization) -> None:
    """x_0 from eps is lost to rounding as 1 / sqrt(alpha-bar), up to 2e4 (cosine); x_0 from mu as 1 / x_0_weight."""
    schedule = make_schedule(name)
    x_0, eps = draw(1, T, 2, 3), draw(2, T, 2, 3)
    x_t = process.q_sample(x_0, EVERY_T, eps, schedule)
    output = target(x_0, eps, x_t, EVERY_T, schedule, parameterization)
    prediction = to_prediction(output, x_t, EVERY_T, schedule, parameterization)
    signal = schedule.signal_and_noise(EVERY_T)[0]
    growth = {
        "eps": 1 / signal,
        "mu": 1 / schedule.transition(EVERY_T, EVERY_T - 1).x_0_weight,
        "x_0": torch.ones(T),
        "v": torch.ones(T),
    }[parameterization].reshape(T, 1, 1)
    assert largest((prediction.x_0 - x_0) / growth) < 2e-14
    assert largest(prediction.eps - eps) < 1e-9


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_round_trips_hold_to_nine_digits_on_the_linear_schedule(
    schedule: NoiseSchedule, batch: tuple[Tensor, ...], parameterization: Parameterization
) -> None:
    x_0, eps, x_t, t = batch
    output = target(x_0, eps, x_t, t, schedule, parameterization)
    prediction = to_prediction(output, x_t, t, schedule, parameterization)
    assert largest(prediction.x_0 - x_0) < 1e-9
    assert largest(prediction.eps - eps) < 1e-9
    again = target(prediction.x_0, prediction.eps, x_t, t, schedule, parameterization)
    assert largest(again - output) < 1e-9


def test_score_and_eps_are_each_other(schedule: NoiseSchedule, batch: tuple[Tensor, ...]) -> None:
    x_0, eps, x_t, t = batch
    score = process.score_from_eps(eps, t, schedule)
    assert largest(process.eps_from_score(score, t, schedule) - eps) < 1e-14
    alpha_bar = schedule.alphas_cumprod.reshape(T, 1, 1)
    gradient_of_log_q = -(x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar)
    assert largest((score - gradient_of_log_q) / gradient_of_log_q.abs().amax((1, 2), keepdim=True)) < 1e-9


def test_v_is_the_velocity_of_the_angle(schedule: NoiseSchedule) -> None:
    """With cos(phi) = sqrt(alpha-bar), x = cos(phi) x_0 + sin(phi) eps and v = dx / dphi (Salimans & Ho, App. D)."""
    x_0, eps, h = draw(1, T, 3), draw(2, T, 3), 1e-5
    phi = torch.acos(schedule.alphas_cumprod.sqrt()).unsqueeze(1)
    velocity = ((phi + h).cos() * x_0 + (phi + h).sin() * eps - (phi - h).cos() * x_0 - (phi - h).sin() * eps) / (2 * h)
    assert largest(process.v_from_x_0_eps(x_0, eps, EVERY_T, schedule) - velocity) < 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
def test_mu_is_one_thing_from_eps_and_from_x_0(name: str) -> None:
    schedule = make_schedule(name)
    eps, x_t = draw(1, T, 4), draw(2, T, 4)
    x_0 = process.x_0_from_eps(eps, x_t, EVERY_T, schedule)
    mu = process.mu_from_eps(eps, x_t, EVERY_T, schedule)
    assert largest((mu - process.mu_from_x_0(x_0, x_t, EVERY_T, schedule)) / (1 + mu.abs())) < 1e-11


def test_errors_in_mu_grow_as_the_docstring_says(schedule: NoiseSchedule, batch: tuple[Tensor, ...]) -> None:
    x_0, _, x_t, t = batch
    mu = process.mu_from_x_0(x_0, x_t, t, schedule)
    growth = (process.x_0_from_mu(mu + 1e-3, x_t, t, schedule) - x_0) / 1e-3
    assert 7_000 < float(growth.max()) < 8_000
    growth_in_eps = growth * (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)).sqrt().reshape(T, 1, 1)
    assert 45 < float(growth_in_eps[1:].min()) < float(growth_in_eps.max()) < 160


@pytest.mark.parametrize("parameterization", ["x_0", "v", "mu"])
def test_round_trips_hold_where_there_is_no_signal(parameterization: Parameterization) -> None:
    schedule = make_schedule("cosine", 50, zero_terminal_snr=True)
    t = torch.arange(50)
    x_0, eps = draw(1, 50, 3), draw(2, 50, 3)
    x_t = process.q_sample(x_0, t, eps, schedule)
    assert torch.equal(x_t[-1], eps[-1])
    prediction = to_prediction(target(x_0, eps, x_t, t, schedule, parameterization), x_t, t, schedule, parameterization)
    assert largest(prediction.x_0 - x_0) < 1e-9
    assert largest(prediction.eps - eps) < 1e-9


def test_eps_is_refused_where_there_is_no_signal() -> None:
    schedule = make_schedule("linear", zero_terminal_snr=True)
    x = draw(1, 2, 3)
    for t in (T - 1, torch.tensor([3, T - 1])):
        for convert in (process.x_0_from_eps, process.mu_from_eps):
            with pytest.raises(ConfigError, match="eps says nothing of x_0; predict v or x_0"):
                convert(x, x, t, schedule)
    assert bool(process.x_0_from_eps(x, x, T - 2, schedule).isfinite().all())


def test_an_unknown_parameterization_is_answered_with_the_nearest_known(schedule: NoiseSchedule) -> None:
    x = draw(1, 2, 3)
    with pytest.raises(ConfigError, match="'x0'; did you mean 'x_0'"):
        to_prediction(x, x, torch.tensor(3), schedule, "x0")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'epsilon'; did you mean 'eps'"):
        target(x, x, x, torch.tensor(3), schedule, "epsilon")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pictures_keep_their_dtype_and_coefficients_broadcast(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    x = draw(1, 4, 3, 2, 2).to(dtype)
    t = torch.tensor([0, 10, 500, 999])
    together = process.q_sample(x, t, x, schedule)
    assert together.dtype == dtype
    one_by_one = [process.q_sample(x[i : i + 1], float(t[i]), x[i : i + 1], schedule) for i in range(4)]
    assert torch.equal(together, torch.cat(one_by_one))


# The invariant of a Prediction -------------------------------------------------------------------------------------


def assert_invariant(prediction: Prediction, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> None:
    """x_t = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) eps, relative to what is added up."""
    again = process.q_sample(prediction.x_0, t, prediction.eps, schedule)
    assert largest((again - x_t) / (1 + x_t.abs())) < 1e-12


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@every_schedule
def test_every_output_is_a_consistent_prediction(
    name: str, zero_terminal_snr: bool, parameterization: Parameterization
) -> None:
    """Whatever the network says, right or wrong."""
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    t = EVERY_T[: T - 1] if parameterization == "eps" else EVERY_T
    output, x_t = draw(1, len(t), 2, 2), draw(2, len(t), 2, 2)
    assert_invariant(to_prediction(output, x_t, t, schedule, parameterization), x_t, t, schedule)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_clipping_keeps_predictions_consistent(schedule: NoiseSchedule, parameterization: Parameterization) -> None:
    denoiser = network_denoiser(lambda x, t: 3 * x, schedule, parameterization)
    x_t = draw(2, T, 2, 2)
    assert largest(denoiser(x_t, EVERY_T).x_0) > 1
    clip = clipped(denoiser, schedule, -0.5, 0.75)(x_t, EVERY_T)
    assert_invariant(clip, x_t, EVERY_T, schedule)
    assert (float(clip.x_0.min()), float(clip.x_0.max())) == (-0.5, 0.75)
    dynamic = dynamically_thresholded(denoiser, schedule, quantile=0.9)(x_t, EVERY_T)
    assert_invariant(dynamic, x_t, EVERY_T, schedule)
    assert largest(dynamic.x_0) == 1


def test_clipping_leaves_what_is_in_range(schedule: NoiseSchedule) -> None:
    x_0 = draw(1, 8, 5).clamp(-1, 1)
    t = torch.arange(8)

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule), variance_fraction=0 * x_0)

    for wrapped in (clipped(denoiser, schedule), dynamically_thresholded(denoiser, schedule)):
        prediction = wrapped(draw(2, 8, 5), t)
        assert torch.equal(prediction.x_0, x_0)
        assert prediction.variance_fraction is not None


def test_dynamic_threshold_is_a_quantile_of_each_picture(schedule: NoiseSchedule) -> None:
    """Imagen: s = max(1, quantile of |x_0|); x_0 clamped to [-s, s], over s. Of 0 .. 10 the median is 5."""
    x_0 = torch.stack([torch.arange(11), -torch.arange(11) / 10]).double()
    t = torch.tensor([10, 20])
    denoiser = network_denoiser(lambda x, t: x_0, schedule, "x_0")
    prediction = dynamically_thresholded(denoiser, schedule, quantile=0.5)(draw(1, 2, 11), t)
    torch.testing.assert_close(prediction.x_0, torch.stack([x_0[0].clamp(max=5) / 5, x_0[1]]), rtol=0, atol=1e-15)


# The forward process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_iterated_steps_have_the_coefficients_of_the_closed_form(name: str) -> None:
    """Row 0 carries x_0 = 1 and no noise; row k carries the unit noise of step k alone: their weights in x_t."""
    schedule = make_schedule(name, 200)
    x = torch.zeros(201, 1, dtype=torch.float64)
    x[0] = 1
    for t in range(200):
        only_this_noise = torch.zeros_like(x)
        only_this_noise[t + 1] = 1
        x = process.q_step(x, t - 1, t, only_this_noise, schedule)
        signal, noise = schedule.signal_and_noise(t)
        assert float(x[0]) == pytest.approx(float(signal), rel=1e-11)
        assert float(x[1:].square().sum()) == pytest.approx(float(noise.square()), rel=1e-11)


def test_iterated_steps_have_the_moments_of_the_closed_form() -> None:
    schedule, count = make_schedule("cosine", 20), 200_000
    noise = NoiseSource(0, [0], (count,), dtype=torch.float64)
    x = torch.full((1, count), 0.8, dtype=torch.float64)
    for t in range(20):
        x = process.q_step(x, t - 1, t, noise.normal(t, "step"), schedule)
        alpha_bar = float(schedule.alphas_cumprod[t])
        deviation = math.sqrt(1 - alpha_bar)
        assert float(x.mean()) == pytest.approx(0.8 * math.sqrt(alpha_bar), abs=5 * deviation / math.sqrt(count))
        assert float(x.var()) == pytest.approx(deviation**2, rel=5 * math.sqrt(2 / count))


def test_one_step_is_the_papers_equation_2(schedule: NoiseSchedule) -> None:
    x, eps = draw(1, T, 3), draw(2, T, 3)
    beta = schedule.betas.unsqueeze(1)
    x_t = process.q_step(x, EVERY_T - 1, EVERY_T, eps, schedule)
    assert largest(x_t - ((1 - beta).sqrt() * x + beta.sqrt() * eps)) < 1e-13


@by_property
@given(name=st.sampled_from(list(SCHEDULES)), times=st.sets(st.floats(0, T - 1), min_size=3, max_size=3))
def test_two_steps_are_one(name: str, times: set[float]) -> None:
    """q(x_t | x_r) = int q(x_t | x_s) q(x_s | x_r) dx_s, for any r < s < t, on the grid or off it."""
    schedule = make_schedule(name)
    r, s, t = sorted(times)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)

    def weights(earlier: float, later: float) -> tuple[float, float]:
        x_weight = process.q_step(one, earlier, later, zero, schedule)
        return float(x_weight), float(process.q_step(zero, earlier, later, one, schedule))

    (rs, rs_noise), (st_, st_noise), (rt, rt_noise) = weights(r, s), weights(s, t), weights(r, t)
    assert rs * st_ == pytest.approx(rt, rel=1e-9)
    assert (st_ * rs_noise) ** 2 + st_noise**2 == pytest.approx(rt_noise**2, rel=1e-9, abs=1e-14)


# The posterior -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_completes_the_square(name: str) -> None:
    """q(x_s) q(x_t | x_s) has precision 1 / (1 - abar_s) + alpha / beta, and the mean that weighs both terms by it."""
    schedule = make_schedule(name)
    t = torch.arange(1, T)
    x_0, x_t = draw(1, T - 1, 2), draw(2, T - 1, 2)
    alpha_bar = (1 - schedule.betas).cumprod(0)
    beta, before = schedule.betas[1:].unsqueeze(1), alpha_bar[:-1].unsqueeze(1)
    precision = 1 / (1 - before) + (1 - beta) / beta
    mean = (before.sqrt() * x_0 / (1 - before) + (1 - beta).sqrt() * x_t / beta) / precision
    ours, variance = process.q_posterior(x_0, x_t, t, schedule)
    assert largest(ours - mean) < 1e-10
    assert largest(variance * precision.squeeze(1) - 1) < 1e-10


@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (60, 59), (99, 98), (99, 0), (70, 20), (50.5, 10.25)])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_posterior_is_bayes_rule_on_a_grid(name: str, t: float, s: float) -> None:
    """q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0), normalised by numbers alone."""
    schedule, x_0, x_t = make_schedule(name, 100), 0.7, -0.3
    alpha_bar_t, alpha_bar_s = (float(schedule.signal_and_noise(u)[0]) ** 2 for u in (t, s))
    alpha = alpha_bar_t / alpha_bar_s
    transition = schedule.transition(t, s)
    centre = float(transition.x_0_weight) * x_0 + float(transition.x_t_weight) * x_t
    x_s = np.linspace(-12, 12, 4001) * float(transition.variance_small) ** 0.5 + centre
    log_density = -((x_t - alpha**0.5 * x_s) ** 2) / (1 - alpha) - (x_s - alpha_bar_s**0.5 * x_0) ** 2 / (
        1 - alpha_bar_s
    )
    density = np.exp(0.5 * (log_density - log_density.max()))
    density /= density.sum()
    mean = (density * x_s).sum()
    assert centre == pytest.approx(mean, abs=1e-9)
    assert float(transition.variance_small) == pytest.approx((density * (x_s - mean) ** 2).sum(), rel=1e-8)


@by_property
@given(which=st.sampled_from(SCHEDULES_AND_SNR), times=st.sets(st.floats(0, T - 1), min_size=3, max_size=3))
def test_two_steps_back_are_one(which: tuple[str, bool], times: set[float]) -> None:
    """int q(x_r | x_s, x_0) q(x_s | x_t, x_0) dx_s = q(x_r | x_t, x_0), for any r < s < t."""
    schedule = make_schedule(which[0], zero_terminal_snr=which[1])
    r, s, t = sorted(times)
    first, second, both = schedule.transition(t, s), schedule.transition(s, r), schedule.transition(t, r)
    kept = float(second.x_t_weight)
    close = {"rel": 1e-6, "abs": 1e-11}
    assert kept * float(first.x_t_weight) == pytest.approx(float(both.x_t_weight), **close)
    x_0_weight = kept * float(first.x_0_weight) + float(second.x_0_weight)
    assert x_0_weight == pytest.approx(float(both.x_0_weight), **close)
    variance = kept**2 * float(first.variance_small) + float(second.variance_small)
    assert variance == pytest.approx(float(both.variance_small), **close)


@every_schedule
def test_posterior_over_q_of_x_t_is_q_of_x_s(name: str, zero_terminal_snr: bool) -> None:
    """Marginalising x_t out of q(x_s | x_t, x_0) q(x_t | x_0) leaves q(x_s | x_0): at the ends of a schedule too."""
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    for t, s in [(T - 1, T - 2), (T - 1, 0), (T - 1, -1), (1, 0), (0, -1), (400, 17)]:
        step = schedule.transition(t, s)
        (signal_t, noise_t), (signal_s, noise_s) = schedule.signal_and_noise(t), schedule.signal_and_noise(s)
        assert float(step.x_0_weight + step.x_t_weight * signal_t) == pytest.approx(float(signal_s), rel=1e-12)
        variance = (step.x_t_weight * noise_t).square() + step.variance_small
        assert float(variance) == pytest.approx(float(noise_s.square()), rel=1e-12)


def test_the_step_to_clean_data_is_x_0_itself(schedule: NoiseSchedule) -> None:
    x_0, x_t = draw(1, 2, 3), draw(2, 2, 3)
    for t in (0, 0.5, torch.tensor([0, 0.25])):
        mean, variance = process.q_posterior(x_0, x_t, t, schedule)
        assert largest(mean - x_0) < 1e-15
        assert float(variance.max()) == 0


@pytest.mark.parametrize(("t", "before"), [(5, 4), (1, 0), (0, -1), (0.5, -1), (1.5, 0.5)])
def test_the_time_before(t: float, before: float) -> None:
    assert process.previous_time(t) == before
    assert process.previous_time(torch.tensor([t])).tolist() == [before]


def test_learned_variance_lies_between_the_two_in_the_logarithm(schedule: NoiseSchedule) -> None:
    """Nichol & Dhariwal, Eq. 15; at the first step, where beta-tilde is 0, that of the second step stands in."""
    transition = schedule.transition(torch.tensor([0, 1, 700]), torch.tensor([-1, 0, 699]))
    for fraction in (0.0, 0.3, 1.0):
        learned = transition.learned_log_variance(torch.full((3, 2), fraction, dtype=torch.float64)).exp()
        small = transition.variance_small.clone()
        small[0] = small[1]
        expected = transition.variance_large**fraction * small ** (1 - fraction)
        torch.testing.assert_close(learned, expected.unsqueeze(1).expand(3, 2), rtol=1e-12, atol=0)


def test_a_tiny_schedule_works_too() -> None:
    schedule = from_function(lambda u: 0.2 + 0.6 * u, 2)
    transition = schedule.transition(1, 0)
    # alpha-bar = .8, .16: beta-tilde = .2 / .84 * .8, and the weights of x_0 and x_t sum on the signal to sqrt(.8).
    assert float(transition.variance_small) == pytest.approx(0.2 / 0.84 * 0.8, rel=1e-14)
    assert float(transition.x_0_weight) == pytest.approx(0.8**0.5 * 0.8 / 0.84, rel=1e-14)
    assert float(transition.x_t_weight) == pytest.approx(0.2**0.5 * 0.2 / 0.84, rel=1e-14)
