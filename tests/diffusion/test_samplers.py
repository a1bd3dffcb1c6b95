"""Samplers against oracles: points and Gaussians exactly, mixtures to the sampling error; and their contract."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scripted_noise import ScriptedNoise
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.analytic import GaussianDenoiser, MixtureDenoiser, PointDenoiser, finite_set_denoiser
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, SampleStep, ddim, ddpm, spaced_timesteps
from ddpm.diffusion.samplers.timesteps import Spacing
from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, make_schedule
from ddpm.errors import SamplingError

Sampler = Callable[..., Iterator[SampleStep]]
SPACINGS = get_args(Spacing)
VARIANTS: dict[str, Sampler] = {
    "ddpm fixed_large": partial(ddpm, variance="fixed_large"),
    "ddpm fixed_small": partial(ddpm, variance="fixed_small"),
    "ddim eta 0": partial(ddim, eta=0.0),
    "ddim eta 0.5": partial(ddim, eta=0.5),
    "ddim eta 1": partial(ddim, eta=1.0),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
by_property = settings(max_examples=200, deadline=None, derandomize=True)


def source(seed: int, count: int, *shape: int) -> NoiseSource:
    return NoiseSource(seed, range(count), shape, dtype=torch.float64)


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def last(steps: Iterator[SampleStep]) -> Tensor:
    *_, final = steps
    return final.x


# Oracle 1: a point ---------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_point_is_found_in_any_number_of_steps(variant: str, spacing: Spacing) -> None:
    schedule, point = make_schedule("cosine", 12), torch.tensor([0.3, -0.9], dtype=torch.float64)
    noise = source(0, 4, 2)
    for num_steps in range(1, 13):
        steps = VARIANTS[variant](
            PointDenoiser(schedule, point),
            schedule,
            noise.normal(0, "x_T"),
            noise,
            timesteps=spaced_timesteps(num_steps, 12, spacing),
        )
        assert largest(last(steps) - point) < 1e-14


@every_variant
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_a_point_is_found_on_every_schedule(variant: str, schedule_name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(schedule_name, 50, zero_terminal_snr=zero_terminal_snr)
    point, noise = torch.tensor([0.3, -0.9], dtype=torch.float64), source(0, 3, 2)
    steps = list(VARIANTS[variant](PointDenoiser(schedule, point), schedule, noise.normal(0, "x_T"), noise))
    assert len(steps) == 50
    assert largest(steps[-1].x - point) < 1e-14
    assert all(bool(step.x.isfinite().all()) for step in steps)


@every_variant
def test_a_point_is_found_between_the_training_times(variant: str) -> None:
    schedule, point = make_schedule(), torch.tensor([0.3, -0.9], dtype=torch.float64)
    noise = source(0, 3, 2)
    times = [998.5, 700.25, 31.125, 0.5]
    steps = list(
        VARIANTS[variant](PointDenoiser(schedule, point), schedule, noise.normal(0, "x_T"), noise, timesteps=times)
    )
    assert largest(steps[-1].x - point) < 1e-14
    assert [(step.t, step.s) for step in steps] == [(998.5, 700.25), (700.25, 31.125), (31.125, 0.5), (0.5, -1)]


# Oracle 2: a Gaussian, where every sampler is an affine map plus noise ---------------------------------------------

MEAN = np.array([0.4, -0.2])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


def gaussian(schedule: NoiseSchedule) -> GaussianDenoiser:
    return GaussianDenoiser(schedule, torch.tensor(MEAN), torch.tensor(COVARIANCE))


def moments_of(sampler: Sampler, schedule: NoiseSchedule, timesteps: list[float]) -> Moments:
    """Mean and covariance of the sampler's output, exactly: run it on basis vectors.

    Row 0 has x_T = 0 and no noise; rows 1 and 2 have unit vectors as x_T; each further row has one unit vector as the
    noise of one step. The output's rows less row 0 are the columns of the affine map, and of each noise's map.
    """
    rows = 3 + 2 * len(timesteps)
    x_T = torch.zeros(rows, 2, dtype=torch.float64)
    x_T[1:3] = torch.eye(2)

    def script(draw: int) -> Tensor:
        z = torch.zeros_like(x_T)
        z[3 + 2 * draw : 5 + 2 * draw] = torch.eye(2)
        return z

    x = last(sampler(gaussian(schedule), schedule, x_T, ScriptedNoise(script), timesteps=timesteps)).numpy()
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


def recursion(variant: str, schedule: NoiseSchedule, timesteps: list[float]) -> Moments:
    """The same, from Ho et al. Eq. 7 and Song et al. Eq. 12, on the mean and covariance of x_t alone."""
    alpha_bars = np.append(np.cumprod(1 - schedule.betas.numpy()), 1.0)  # the last is clean data, s = -1
    mean, covariance = np.zeros(2), np.eye(2)
    for t, s in zip(timesteps, [*timesteps[1:], -1], strict=True):
        bar_t, bar_s = alpha_bars[int(t)], alpha_bars[int(s)]
        beta = 1 - bar_t / bar_s
        small = (1 - bar_s) / (1 - bar_t) * beta
        gain = bar_t**0.5 * COVARIANCE @ np.linalg.inv(bar_t * COVARIANCE + (1 - bar_t) * np.eye(2))
        if variant.startswith("ddpm"):
            x_0_weight = bar_s**0.5 * beta / (1 - bar_t)
            x_t_weight = (bar_t / bar_s) ** 0.5 * (1 - bar_s) / (1 - bar_t)
            fresh = beta if variant.endswith("large") else small
        else:
            fresh = float(variant.split()[-1]) ** 2 * small
            x_t_weight = max(1 - bar_s - fresh, 0) ** 0.5 / (1 - bar_t) ** 0.5
            x_0_weight = bar_s**0.5 - x_t_weight * bar_t**0.5
        matrix = x_0_weight * gain + x_t_weight * np.eye(2)
        mean = matrix @ mean + x_0_weight * (MEAN - bar_t**0.5 * gain @ MEAN)
        covariance = matrix @ covariance @ matrix.T + (fresh if s >= 0 else 0) * np.eye(2)
    return mean, covariance


@every_variant
@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 77, 120])
def test_gaussian_moments_are_those_of_the_recursion(variant: str, schedule_name: str, num_steps: int) -> None:
    schedule = make_schedule(schedule_name, 120)
    for spacing in SPACINGS:
        timesteps = spaced_timesteps(num_steps, 120, spacing)
        mean, covariance = moments_of(VARIANTS[variant], schedule, timesteps)
        expected_mean, expected_covariance = recursion(variant, schedule, timesteps)
        assert np.abs(mean - expected_mean).max() < 1e-8
        assert np.abs(covariance - expected_covariance).max() < 1e-8


@every_variant
@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
def test_gaussian_moments_tend_to_the_datas(variant: str, schedule_name: str) -> None:
    """With four times the steps, on a schedule four times as long, the error falls at least to a third or so."""
    errors = []
    for num_steps in (20, 80, 320):
        schedule = make_schedule(schedule_name, 2 * num_steps)
        mean, covariance = moments_of(VARIANTS[variant], schedule, spaced_timesteps(num_steps, 2 * num_steps))
        errors.append(max(np.abs(mean - MEAN).max(), np.abs(covariance - COVARIANCE).max()))
    assert errors[0] > 2.5 * errors[1] > 2.5**2 * errors[2]
    assert errors[2] < 0.02


def test_ddim_in_one_step_returns_the_expectation() -> None:
    """Few steps are not exact, not even with the exact denoiser: E[x_0 | x_T] is nearly the mean of the data."""
    schedule = make_schedule()
    mean, covariance = moments_of(ddim, schedule, [999.0])
    gain = float(schedule.alphas_cumprod[-1]) ** 0.5 * COVARIANCE  # its denominator is 1 to within alpha-bar_T
    assert np.abs(mean - MEAN).max() < 1e-4
    assert np.abs(covariance - gain @ gain.T).max() < 1e-8


# Oracle 3: a mixture, in distribution --------------------------------------------------------------------------------

WEIGHTS, SPREADS = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.01, 0.02, 0.04]).double()
CENTRES = torch.tensor([[-0.7, -0.5], [0.8, 0.0], [0.0, 0.8]]).double()
COUNT = 2000


def true_samples(seed: int) -> Tensor:
    z = source(seed, 1, COUNT, 3).normal(0, "truth")[0]
    component = torch.searchsorted(WEIGHTS.cumsum(0), torch.special.ndtr(z[:, 0])).clamp(max=2)
    return CENTRES[component] + SPREADS[component].sqrt().unsqueeze(1) * z[:, 1:]


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|: 0 only for equal distributions (Szekely & Rizzo 2013)."""
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


@pytest.fixture(scope="module")
def sampling_error() -> float:
    """The largest energy distance between two true samples, of twenty."""
    return max(energy_distance(true_samples(0), true_samples(seed)) for seed in range(1, 21))


@every_variant
def test_a_mixture_is_sampled_to_the_sampling_error(variant: str, sampling_error: float) -> None:
    schedule = make_schedule("cosine")
    denoiser = MixtureDenoiser(schedule, WEIGHTS, CENTRES, SPREADS)
    numbers = source(1, 1, COUNT, 2)
    noise = ScriptedNoise(lambda draw: numbers.normal(draw, "step")[0])

    def distance(num_steps: int) -> float:
        times = spaced_timesteps(num_steps, 1000)
        x = last(VARIANTS[variant](denoiser, schedule, numbers.normal(0, "x_T")[0], noise, timesteps=times))
        return energy_distance(true_samples(0), x)

    assert distance(3) > 10 * sampling_error
    assert distance(150) < sampling_error


def test_a_finite_set_is_given_back_and_nothing_else() -> None:
    """What a network that memorises learns: every sample is one of the points."""
    schedule, points = make_schedule("cosine"), source(0, 5, 3).normal(0, "points")
    noise = source(1, 64, 3)
    x = last(ddpm(finite_set_denoiser(schedule, points), schedule, noise.normal(0, "x_T"), noise))
    nearest = torch.cdist(x, points).min(1)
    assert float(nearest.values.max()) < 1e-3
    assert len(nearest.indices.unique()) == len(points)


# Identities ----------------------------------------------------------------------------------------------------------


def wild_denoiser(schedule: NoiseSchedule) -> Denoiser:
    """Far from any truth and not linear: an identity has to hold for it too."""

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        x_0 = torch.sin(3 * x_t) + 0.1 * t.reshape(-1, 1) / len(schedule)
        return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule))

    return denoise


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_ddim_at_eta_1_is_ddpm_with_the_small_variance(num_steps: int, zero_terminal_snr: bool) -> None:
    schedule = make_schedule("linear", 100, zero_terminal_snr=zero_terminal_snr)
    noise, times = source(0, 8, 3), spaced_timesteps(num_steps, 100)
    common = (wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise)
    pairs = zip(
        ddim(*common, timesteps=times, eta=1.0),
        ddpm(*common, timesteps=times, variance="fixed_small"),
        strict=True,
    )
    assert max(largest(a.x - b.x) for a, b in pairs) < 1e-10


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_variance_spans_the_two_fixed_ones(fraction: float, fixed: str) -> None:
    schedule, noise = make_schedule("cosine", 50), source(0, 8, 3)

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        plain = wild_denoiser(schedule)(x_t, t)
        return Prediction(plain.x_0, plain.eps, torch.full_like(x_t, fraction))

    common = (denoiser, schedule, noise.normal(0, "x_T"), noise)
    pairs = zip(ddpm(*common, variance="learned"), ddpm(*common, variance=fixed), strict=True)
    assert max(largest(a.x - b.x) for a, b in pairs) < 1e-10


def test_learned_variance_is_between_in_the_logarithm() -> None:
    """One step with z = 1 from a fraction of 1/4: sigma^2 = beta^(1/4) beta-tilde^(3/4)."""
    schedule = make_schedule("linear", 100)
    x = torch.zeros(1, 1, dtype=torch.float64)

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        return Prediction(x_t, x_t, torch.full_like(x_t, 0.25))

    noise = ScriptedNoise(lambda draw: torch.ones_like(x))
    step = next(ddpm(denoiser, schedule, x, noise, timesteps=[60, 59], variance="learned"))
    transition = schedule.transition(60, 59)
    expected = transition.variance_large**0.25 * transition.variance_small**0.75
    assert float(step.x.square()) == pytest.approx(float(expected), rel=1e-12)


# The contract of all samplers ----------------------------------------------------------------------------------------


@every_sampler
def test_arguments_are_the_same_in_every_sampler(name: str) -> None:
    parameters = inspect.signature(SAMPLERS[name]).parameters
    assert list(parameters)[:4] == ["denoiser", "schedule", "x_T", "noise"]
    assert {"timesteps", "after_step"} <= set(parameters)
    keywords = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert all(p.default is not p.empty for p in keywords)


@every_sampler
def test_steps_tell_where_they_are(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    steps = list(SAMPLERS[name](wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise, timesteps=[8, 3, 0]))
    assert [(s.index, s.num_steps, s.t, s.s) for s in steps] == [(0, 3, 8, 3), (1, 3, 3, 0), (2, 3, 0, -1)]
    every = list(SAMPLERS[name](wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise))
    assert [s.t for s in every] == list(range(9, -1, -1))


@every_variant
def test_a_step_is_yielded_after_its_update_with_the_prediction_made_before(variant: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    denoiser, x = wild_denoiser(schedule), noise.normal(0, "x_T")
    for step in VARIANTS[variant](denoiser, schedule, x, noise):
        expected = denoiser(x, torch.full((3,), step.t, dtype=torch.float64))
        assert torch.equal(step.prediction.x_0, expected.x_0)
        assert not torch.equal(step.x, x)
        x = step.x
    assert largest(x - expected.x_0) < 1e-15  # the last step returns the mean, which is x_0-hat


@every_variant
def test_nothing_that_was_given_or_yielded_is_changed_later(variant: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    x_T = noise.normal(0, "x_T")
    seen, copies = [x_T], [x_T.clone()]
    for step in VARIANTS[variant](wild_denoiser(schedule), schedule, x_T, noise):
        seen.append(step.x)
        copies.append(step.x.clone())
    assert all(torch.equal(x, copy) for x, copy in zip(seen, copies, strict=True))


@every_variant
@pytest.mark.parametrize("times", [[9, 4, 0], [9], [6, 2]])
def test_the_last_step_adds_no_noise(variant: str, times: list[int]) -> None:
    schedule = make_schedule("cosine", 10)
    noise = ScriptedNoise(lambda draw: torch.ones(3, 2, dtype=torch.float64))
    x_T = source(0, 3, 2).normal(0, "x_T")
    list(VARIANTS[variant](wild_denoiser(schedule), schedule, x_T, noise, timesteps=times))
    assert noise.draws == ([] if variant == "ddim eta 0" else list(range(len(times) - 1)))


@every_sampler
def test_after_step_has_the_last_word(name: str) -> None:
    """It sees x_s and s; what it returns is yielded and stepped on from."""
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    seen: list[float] = []

    def after_step(x_s: Tensor, s: Tensor) -> Tensor:
        seen.append(float(s))
        return torch.full_like(x_s, float(s))

    inputs: list[Tensor] = []

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        inputs.append(x_t)
        return wild_denoiser(schedule)(x_t, t)

    common = (denoiser, schedule, noise.normal(0, "x_T"), noise)
    steps = list(SAMPLERS[name](*common, timesteps=[9, 5, 1], after_step=after_step))
    assert seen == [5, 1, -1]
    assert [float(step.x.unique()) for step in steps] == [5, 1, -1]
    assert [float(x.unique()) for x in inputs[1:]] == [5, 1]


@every_sampler
def test_the_previous_prediction_is_handed_on(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    received: list[Prediction | None] = []

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        received.append(previous)
        return wild_denoiser(schedule)(x_t, t)

    steps = list(SAMPLERS[name](denoiser, schedule, noise.normal(0, "x_T"), noise, timesteps=[9, 5, 1]))
    assert received[0] is None
    assert [a is b.prediction for a, b in zip(received[1:], steps, strict=False)] == [True, True]


@every_sampler
def test_denoisers_get_one_time_a_picture(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        assert t.shape == (3,)
        assert t.dtype == torch.float64
        assert not torch.is_grad_enabled()
        with torch.enable_grad():  # a guidance wrapper does: inference mode would forbid it
            assert x_t.detach().requires_grad_().square().sum().requires_grad
        return wild_denoiser(schedule)(x_t, t)

    for _ in SAMPLERS[name](denoiser, schedule, noise.normal(0, "x_T"), noise):
        assert torch.is_grad_enabled()  # the caller's setting comes back between the steps


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_and_shape_are_those_of_x_T(variant: str, dtype: torch.dtype) -> None:
    schedule = make_schedule("cosine", 10)
    for noise_dtype in (torch.float32, torch.float64):
        noise = NoiseSource(0, range(2), (3, 4, 4), dtype=noise_dtype)
        x_T = noise.normal(0, "x_T").to(dtype)
        denoiser = PointDenoiser(schedule, torch.linspace(-1, 1, 48))
        for step in VARIANTS[variant](denoiser, schedule, x_T, noise):
            assert step.x.dtype == dtype
            assert step.x.shape == x_T.shape


@every_variant
def test_a_picture_is_the_same_in_every_batch(variant: str) -> None:
    schedule = make_schedule("cosine", 10)

    def sample(pictures: list[int]) -> Tensor:
        noise = NoiseSource(3, pictures, (2,), dtype=torch.float64)
        return last(VARIANTS[variant](wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise))

    together = sample([0, 1, 2, 3, 4])
    assert torch.equal(sample([3]), together[3:4])
    assert torch.equal(sample([4, 0]), together[[4, 0]])
    assert len(together.unique(dim=0)) == 5


@every_sampler
def test_a_step_is_computed_when_it_is_asked_for(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    calls: list[float] = []

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        calls.append(float(t[0]))
        return wild_denoiser(schedule)(x_t, t)

    steps = SAMPLERS[name](denoiser, schedule, noise.normal(0, "x_T"), noise)
    assert calls == []
    next(steps)
    next(steps)
    assert calls == [9, 8]


# Refusals ------------------------------------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize(
    ("timesteps", "complaint"),
    [
        ([], "no timesteps"),
        ([3, 5, 1], "strictly decreasing"),
        ([5, 5, 1], "strictly decreasing"),
        ([10, 5], "run from 10 to 5; expected them within 9 to 0"),
        ([5, -1], "run from 5 to -1; expected them within 9 to 0"),
        ([5, -0.5], "expected them within 9 to 0"),
    ],
)
def test_times_that_cannot_be_walked_are_refused_at_once(name: str, timesteps: list[float], complaint: str) -> None:
    """When the sampler is called, not at its first step."""
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    with pytest.raises(SamplingError, match=complaint):
        SAMPLERS[name](wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise, timesteps=timesteps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    with pytest.raises(SamplingError, match=f"eta is {eta}; expected 0"):
        ddim(wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise, eta=eta)


def test_unknown_variances_are_refused() -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    common = (wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise)
    with pytest.raises(SamplingError, match="'fixed_big'; did you mean 'fixed_"):
        ddpm(*common, variance="fixed_big")  # type: ignore[arg-type]
    with pytest.raises(SamplingError, match="this model's variance is fixed; use 'fixed_large'"):
        next(ddpm(*common, variance="learned"))


@pytest.mark.parametrize("num_steps", [0, -1, 101])
def test_numbers_of_steps_out_of_range_are_refused(num_steps: int) -> None:
    with pytest.raises(SamplingError, match=f"{num_steps} sampling steps; expected 1 to 100"):
        spaced_timesteps(num_steps, 100)


def test_an_unknown_spacing_is_answered_with_the_nearest_known() -> None:
    with pytest.raises(SamplingError, match="'trail'; did you mean 'trailing'"):
        spaced_timesteps(5, 100, "trail")  # type: ignore[arg-type]


# Spacings ------------------------------------------------------------------------------------------------------------


@by_property
@given(spacing=st.sampled_from(SPACINGS), num_timesteps=st.integers(2, 5000), data=st.data())
def test_times_are_distinct_whole_and_in_range(spacing: Spacing, num_timesteps: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(1, num_timesteps))
    times = spaced_timesteps(num_steps, num_timesteps, spacing)
    assert len(times) == num_steps
    assert all(t > s for t, s in pairwise(times))
    assert all(t == int(t) for t in times)
    assert 0 <= times[-1] <= times[0] <= num_timesteps - 1


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 17, 1000])
def test_as_many_steps_as_timesteps_visit_them_all(spacing: Spacing, num_timesteps: int) -> None:
    times = spaced_timesteps(num_timesteps, num_timesteps, spacing)
    assert times == list(range(num_timesteps - 1, -1, -1))


@by_property
@given(num_timesteps=st.integers(2, 5000), data=st.data())
def test_each_spacing_ends_where_it_says(num_timesteps: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(2, num_timesteps))
    trailing, leading, linspace, quadratic = (
        spaced_timesteps(num_steps, num_timesteps, s) for s in ("trailing", "leading", "linspace", "quadratic")
    )
    assert trailing[0] == linspace[0] == quadratic[0] == num_timesteps - 1
    assert leading[-1] == linspace[-1] == quadratic[-1] == 0
    assert abs(trailing[-1] - (num_timesteps / num_steps - 1)) <= 0.5
    assert abs(leading[0] - (num_timesteps - num_timesteps / num_steps)) <= 1
    for times in (trailing, leading, linspace):
        steps = -np.diff(times)
        assert steps.max() - steps.min() <= 2  # evenly spaced, up to rounding of both ends


def test_quadratic_times_are_squares_where_there_is_room() -> None:
    assert spaced_timesteps(5, 401, "quadratic") == [400, 225, 100, 25, 0]
