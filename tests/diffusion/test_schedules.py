"""Every named schedule against its definition, and the contract that all schedules keep."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.diffusion.schedules import (
    SCHEDULES,
    NoiseSchedule,
    cosine_betas,
    from_alphas_cumprod,
    from_function,
    linear_betas,
    make_schedule,
    sigmoid_betas,
)
from ddpm.errors import ConfigError, SamplingError

T = 1000
ALL = [(name, zero) for name in SCHEDULES for zero in (False, True)]
every_schedule = pytest.mark.parametrize(("name", "zero_terminal_snr"), ALL)
by_property = settings(max_examples=150, deadline=None, derandomize=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def betas_of(alpha_bar: list[float]) -> list[float]:
    """The betas of T + 1 alpha-bars, the first of which is clean data."""
    return [min(1 - after / before, 0.999) for before, after in pairwise(alpha_bar)]


def cosine_alpha_bar(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


# Written from the papers, with t = 1 .. T: nothing is shared with the code under test.
DEFINITIONS = {
    "linear": [1e-4 + (t - 1) / (T - 1) * (0.02 - 1e-4) for t in range(1, T + 1)],
    "quadratic": [(1e-2 + (t - 1) / (T - 1) * (0.02**0.5 - 1e-2)) ** 2 for t in range(1, T + 1)],
    "exponential": [1e-4 * 200 ** ((t - 1) / (T - 1)) for t in range(1, T + 1)],
    "constant": [0.01] * T,
    "cosine": betas_of([cosine_alpha_bar(t / T) / cosine_alpha_bar(0) for t in range(T + 1)]),
    "sigmoid": betas_of([(sigmoid(3) - sigmoid(6 * t / T - 3)) / (sigmoid(3) - sigmoid(-3)) for t in range(T + 1)]),
}


def test_every_named_schedule_has_its_definition_here() -> None:
    assert set(DEFINITIONS) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_betas_follow_their_definition(name: str) -> None:
    expected = torch.tensor(DEFINITIONS[name], dtype=torch.float64)
    torch.testing.assert_close(make_schedule(name).betas, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["linear", "quadratic", "exponential"])
@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
def test_rising_schedules_end_where_they_should(name: str, num_timesteps: int) -> None:
    betas = make_schedule(name, num_timesteps).betas
    scale = 1000 / num_timesteps
    assert float(betas[0]) == pytest.approx(scale * 1e-4, rel=1e-12)
    assert float(betas[-1]) == pytest.approx(scale * 0.02, rel=1e-12)
    assert bool((betas.diff() > 0).all())


@pytest.mark.parametrize("num_timesteps", [50, 100, 250, 4000])
def test_scaled_betas_keep_the_signal_left_in_x_T(num_timesteps: int) -> None:
    """-log alpha-bar_T is the sum of -log(1 - beta), near the sum of beta, which the scaling keeps."""
    at_1000, here = (-math.log(make_schedule("linear", n).alphas_cumprod[-1]) for n in (1000, num_timesteps))
    assert at_1000 - 0.1 < here < 1.3 * at_1000


def test_linear_spacing_is_the_papers_at_any_given_ends() -> None:
    betas = linear_betas(1000, beta_start=1e-3, beta_end=3e-3)
    torch.testing.assert_close(betas.diff(), torch.full((999,), 2e-3 / 999, dtype=torch.float64), rtol=1e-9, atol=0)


def test_shapes_of_alpha_bar_obey_their_parameters() -> None:
    """Cosine with offset .1; sigmoid from 0 to 3 at temperature .5, which is sigmoid(0) to sigmoid(6)."""
    f = [math.cos((t / 50 + 0.1) / 1.1 * math.pi / 2) ** 2 for t in range(51)]
    torch.testing.assert_close(cosine_betas(50, offset=0.1), torch.tensor(betas_of(f), dtype=torch.float64))
    g = [sigmoid(6) - sigmoid(6 * t / 50) for t in range(51)]
    expected = torch.tensor(betas_of(g), dtype=torch.float64)
    torch.testing.assert_close(sigmoid_betas(50, start=0.0, end=3.0, tau=0.5), expected)


def test_cosine_keeps_more_signal_than_linear_half_way() -> None:
    """Paper's t = 500: cos^2((.5 + .008) / 1.008 pi / 2) / cos^2(.008 / 1.008 pi / 2) = .494; linear has .0786."""
    assert float(make_schedule("cosine").alphas_cumprod[499]) == pytest.approx(0.494, abs=5e-4)
    assert float(make_schedule("linear").alphas_cumprod[499]) == pytest.approx(0.0786, abs=5e-5)


def test_linear_schedule_destroys_along_an_s_curve() -> None:
    """Errata E17: the noise variance 1 - alpha-bar at the paper's t = 100, 200, .. 1000."""
    table = [0.103, 0.341, 0.604, 0.805, 0.921, 0.974, 0.993, 0.9985, 0.9997, 1.0]
    variance = 1 - make_schedule("linear").alphas_cumprod[99::100]
    torch.testing.assert_close(variance, torch.tensor(table, dtype=torch.float64), rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
@pytest.mark.parametrize("num_timesteps", [2, 3, 10])
def test_few_timesteps_suit_the_schedules_of_alpha_bar(name: str, num_timesteps: int) -> None:
    betas = make_schedule(name, num_timesteps).betas
    assert len(betas) == num_timesteps
    assert float(betas[-1]) == 0.999


# The contract of all schedules ------------------------------------------------------------------------------------


@every_schedule
def test_betas_are_probabilities_in_float64(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    assert schedule.betas.dtype == torch.float64
    assert len(schedule) == T == len(schedule.betas)
    assert bool((schedule.betas > 0).all())
    assert bool((schedule.betas[:-1] < 1).all())
    assert (float(schedule.betas[-1]) == 1) is zero_terminal_snr is schedule.has_zero_terminal_snr


@every_schedule
def test_alphas_cumprod_is_the_cumulative_product(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    torch.testing.assert_close(schedule.alphas_cumprod, (1 - schedule.betas).cumprod(0), rtol=1e-11, atol=0)
    assert bool((schedule.alphas_cumprod.diff() < 0).all())


@every_schedule
def test_signal_and_noise_are_the_roots_of_alpha_bar(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    signal, noise = schedule.signal_and_noise(torch.arange(T))
    torch.testing.assert_close(signal.square(), schedule.alphas_cumprod, rtol=1e-11, atol=0)
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(T, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_noise_is_as_precise_as_beta(name: str) -> None:
    """1 - alpha-bar_0 = beta_0. In float32 tables the subtraction costs four digits; here it costs none."""
    schedule = make_schedule(name)
    assert float(schedule.signal_and_noise(0)[1].square()) == pytest.approx(float(schedule.betas[0]), rel=1e-14)


@every_schedule
def test_log_snr_on_the_grid(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    log_snr = schedule.log_snr(torch.arange(T))
    expected = torch.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))
    torch.testing.assert_close(log_snr, expected, rtol=1e-9, atol=1e-11)
    assert float(schedule.log_snr(-1)) == math.inf
    assert (float(schedule.log_snr(T - 1)) == -math.inf) is zero_terminal_snr


@by_property
@given(which=st.sampled_from(ALL), t=st.floats(0, T - 1))
def test_t_of_inverts_log_snr_on_and_off_the_grid(which: tuple[str, bool], t: float) -> None:
    schedule = make_schedule(which[0], zero_terminal_snr=which[1])
    assert float(schedule.t_of(schedule.log_snr(t))) == pytest.approx(t, abs=1e-8)


@by_property
@given(which=st.sampled_from(ALL), t=st.floats(0, T - 1), later=st.floats(1e-6, T - 1))
def test_log_snr_falls_with_time(which: tuple[str, bool], t: float, later: float) -> None:
    schedule = make_schedule(which[0], zero_terminal_snr=which[1])
    t, after = sorted((t, min(t + later, T - 1.0)))
    if after - t > 1e-6:
        assert float(schedule.log_snr(t)) > float(schedule.log_snr(after))


@by_property
@given(name=st.sampled_from(list(SCHEDULES)), t=st.integers(0, T - 2), weight=st.floats(0, 1))
def test_log_snr_is_linear_between_the_grids_points(name: str, t: int, weight: float) -> None:
    schedule = make_schedule(name)
    start, end = schedule.log_snr(torch.tensor([t, t + 1]))
    assert float(schedule.log_snr(t + weight)) == pytest.approx(float((1 - weight) * start + weight * end), abs=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_signal_fades_linearly_where_it_ends_in_nothing(name: str) -> None:
    schedule = make_schedule(name, zero_terminal_snr=True)
    signal = schedule.signal_and_noise(torch.tensor([T - 2, T - 1.75, T - 1.5, T - 1]))[0]
    torch.testing.assert_close(
        signal, signal[0] * torch.tensor([1, 0.75, 0.5, 0], dtype=torch.float64), rtol=1e-11, atol=0
    )


@every_schedule
def test_clean_data_and_the_ends_are_times_too(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(name, zero_terminal_snr=zero_terminal_snr)
    wanted = torch.tensor([-1.0, 0.0, T - 1.0], dtype=torch.float64)
    assert torch.equal(schedule.t_of(schedule.log_snr(wanted)), wanted)
    assert float(schedule.t_of(1e3)) == 0  # cleaner than t = 0, yet not clean
    assert float(schedule.t_of(-math.inf)) == T - 1
    signal, noise = schedule.signal_and_noise(-1)
    assert (float(signal), float(noise)) == (1, 0)


def assert_steps_are_distributions(schedule: NoiseSchedule) -> None:
    t = torch.arange(len(schedule))
    step = schedule.transition(t, t - 1)
    for value in (step.x_0_weight, step.x_t_weight, step.variance_large, step.log_variance_small):
        assert bool(value.isfinite().all())
    assert float(step.variance_small[0]) == 0
    assert bool((step.variance_small[1:] > 0).all())
    assert bool((step.variance_small <= step.variance_large).all())
    torch.testing.assert_close(step.variance_large, schedule.betas, rtol=1e-9, atol=0)


@every_schedule
def test_every_step_back_is_a_distribution(name: str, zero_terminal_snr: bool) -> None:
    assert_steps_are_distributions(make_schedule(name, zero_terminal_snr=zero_terminal_snr))


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("num_timesteps", [2, 3, 10])
def test_every_step_back_is_a_distribution_with_few_timesteps(num_timesteps: int, zero_terminal_snr: bool) -> None:
    assert_steps_are_distributions(make_schedule("cosine", num_timesteps, zero_terminal_snr=zero_terminal_snr))


def test_times_are_scalars_or_batches_of_any_number_type() -> None:
    schedule = make_schedule()
    for t in (7, 7.0, torch.tensor(7), torch.tensor(7, dtype=torch.int32), torch.tensor(7, dtype=torch.float32)):
        assert torch.equal(schedule.log_snr(t), schedule.log_snr(7))
        assert schedule.transition(t, 6).x_0_weight.shape == ()
    batch = schedule.transition(torch.tensor([7, 9]), torch.tensor([6, -1]))
    assert batch.variance_large.dtype == torch.float64
    assert torch.equal(batch.variance_large[0], schedule.transition(7, 6).variance_large)
    assert float(batch.variance_small[1]) == 0


# Zero terminal SNR -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al(name: str) -> None:
    before, after = make_schedule(name), make_schedule(name, zero_terminal_snr=True)
    root = before.alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    expected = ((root - last) * first / (first - last)).square()
    torch.testing.assert_close(after.alphas_cumprod, expected, rtol=1e-9, atol=1e-18)
    assert float(after.alphas_cumprod[-1]) == 0
    assert float(after.alphas_cumprod[0]) == pytest.approx(float(before.alphas_cumprod[0]), rel=1e-14)


def test_zero_terminal_snr_twice_is_once() -> None:
    once = make_schedule("linear", zero_terminal_snr=True)
    torch.testing.assert_close(once.with_zero_terminal_snr().betas, once.betas, rtol=1e-9, atol=0)


# User schedules ----------------------------------------------------------------------------------------------------


def test_any_function_is_a_schedule() -> None:
    schedule = from_function(lambda u: 1e-4 + u * (0.02 - 1e-4), 1000)
    torch.testing.assert_close(schedule.betas, make_schedule("linear").betas, rtol=1e-12, atol=0)


def test_any_falling_alpha_bar_is_a_schedule() -> None:
    schedule = from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.1, 0.0], dtype=torch.float64))
    expected = torch.tensor([0.1, 4 / 9, 0.8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.betas, expected, rtol=1e-14, atol=0)


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_timesteps", [2, 10, 19, 20])
@pytest.mark.parametrize("name", ["linear", "quadratic", "exponential"])
def test_too_few_timesteps_are_refused_by_the_beta_they_give(name: str, num_timesteps: int) -> None:
    """beta_T = 20 / T reaches 1 at T = 20, where every trace of x_0 is lost at the last step."""
    with pytest.raises(ConfigError, match=r"beta_\d+.* is [\d.]+.*more timesteps"):
        make_schedule(name, num_timesteps)
    assert make_schedule(name, 21).betas[-1] < 1


@pytest.mark.parametrize("num_timesteps", [1, 0, -3])
def test_less_than_two_timesteps_are_no_schedule(num_timesteps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_timesteps is {num_timesteps}; .* at least 2"):
        make_schedule("cosine", num_timesteps)
    with pytest.raises(ConfigError, match=f"num_timesteps is {num_timesteps}; .* at least 2"):
        from_function(lambda u: 0.1, num_timesteps)


def test_an_unknown_name_is_answered_with_the_nearest_known() -> None:
    with pytest.raises(ConfigError, match=r"'consine'; did you mean 'cosine'\?.*known are linear, cosine"):
        make_schedule("consine")


@pytest.mark.parametrize(
    ("betas", "complaint"),
    [
        ([0.1, 0.0, 0.1], "beta_1 is 0;"),
        ([0.1, 1.0, 0.1], "beta_1 is 1;"),
        ([-0.1, 0.1], "beta_0 is -0.1;"),
        ([0.1, 1.5], "beta_1 is 1.5;"),
        ([0.1, math.nan], "beta_1 is nan;"),
        ([0.1], "at least 2 timesteps"),
        ([[0.1, 0.2]], "one dimension"),
    ],
)
def test_betas_that_are_no_probabilities_are_refused(betas: list[float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        NoiseSchedule(torch.tensor(betas, dtype=torch.float64))


def test_betas_in_float32_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"torch\.float32.*expected torch\.float64"):
        NoiseSchedule(torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("t", [-0.5, -2, T - 0.5, T, math.nan, math.inf])
def test_times_off_the_schedule_are_refused(t: float) -> None:
    with pytest.raises(SamplingError, match="off the schedule; expected 0 to 999, or -1"):
        make_schedule().log_snr(t)


@pytest.mark.parametrize(("t", "s"), [(5, 5), (5, 6), (-1, -1)])
def test_a_transition_goes_back_in_time(t: int, s: int) -> None:
    with pytest.raises(SamplingError, match="s must be before t"):
        make_schedule().transition(t, s)


def test_an_unknown_variance_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fixed_medium'; expected 'fixed_large' or 'fixed_small'"):
        make_schedule().transition(5, 4).variance("fixed_medium")  # type: ignore[arg-type]
