"""Samplers against oracles: a point exactly, mixtures to the sampling error."""

from typing import get_args

import pytest
import torch
from sampler_cases import DRAWS_NOTHING, VARIANTS, CountedNoise, every_variant, largest, last, source
from torch import Tensor

from ddpm.diffusion.analytic import MixtureDenoiser, PointDenoiser, finite_set_denoiser
from ddpm.diffusion.samplers import SAMPLERS, Spacing, adaptive, ddpm, spaced_timesteps
from ddpm.diffusion.schedules import SCHEDULES, make_schedule


@every_variant
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_a_point_is_found_in_any_number_of_steps(variant: str, spacing: Spacing) -> None:
    schedule, point = make_schedule("cosine", 12), torch.tensor([0.3, -0.9], dtype=torch.float64)
    noise = source(0, 4, 2)
    for num_steps in range(1, 13):
        steps = VARIANTS[variant](
            PointDenoiser(schedule, point),
            schedule,
            noise.normal(0, "x_T"),
            noise,
            timesteps=spaced_timesteps(num_steps, schedule, spacing),
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
    noise = CountedNoise(lambda call: numbers.normal(call, "step")[0])

    spacing = SAMPLERS[variant.split()[0]].spacing

    def distance(num_steps: int) -> float:
        times = spaced_timesteps(num_steps, schedule, spacing)
        sampler = VARIANTS[variant]
        x = last(sampler(denoiser, schedule, numbers.normal(0, "x_T")[0], noise, timesteps=times))
        return energy_distance(true_samples(0), x)

    assert distance(2) > 10 * sampling_error
    limit = 4 if variant == "langevin" else 1  # langevin's own, of its step size
    assert distance(60 if variant in DRAWS_NOTHING else 150) < limit * sampling_error


def test_adaptive_samples_a_mixture_to_the_sampling_error(sampling_error: float) -> None:
    schedule = make_schedule("cosine")
    denoiser = MixtureDenoiser(schedule, WEIGHTS, CENTRES, SPREADS)
    numbers = source(1, 1, COUNT, 2)
    (step,) = adaptive(denoiser, schedule, numbers.normal(0, "x_T")[0], numbers, timesteps=[999])
    assert energy_distance(true_samples(0), step.x) < sampling_error


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("times", [[49], [49, 20, 3.5], [30, 0]])
def test_adaptive_finds_a_point_and_needs_no_second_try(times: list[float], zero_terminal_snr: bool) -> None:
    schedule = make_schedule("cosine", 50, zero_terminal_snr=zero_terminal_snr)
    point, noise = torch.tensor([0.3, -0.9], dtype=torch.float64), source(0, 3, 2)
    steps = list(adaptive(PointDenoiser(schedule, point), schedule, noise.normal(0, "x_T"), noise, timesteps=times))
    assert largest(steps[-1].x - point) < 1e-14
    assert len(steps) == steps[0].num_steps == len(times)


def test_a_finite_set_is_given_back_and_nothing_else() -> None:
    """What a network that memorises learns: every sample is one of the points."""
    schedule, points = make_schedule("cosine"), source(0, 5, 3).normal(0, "points")
    noise = source(1, 64, 3)
    x = last(ddpm(finite_set_denoiser(schedule, points), schedule, noise.normal(0, "x_T"), noise))
    nearest = torch.cdist(x, points).min(1)
    assert float(nearest.values.max()) < 1e-3
    assert len(nearest.indices.unique()) == len(points)
