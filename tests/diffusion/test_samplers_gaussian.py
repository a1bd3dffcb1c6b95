"""Gaussian data, where every fixed-step sampler is an affine map plus noise: exactly the recursion of its paper."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from gaussian_recursions import COVARIANCE, MEAN, RECURSIONS, World
from numpy.typing import NDArray
from sampler_cases import DRAWS_NOTHING, VARIANTS, CountedNoise, Sampler, every_variant, last, source
from torch import Tensor

from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.samplers import SAMPLERS, Spacing, adaptive, ddim, langevin, spaced_timesteps
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


def gaussian(schedule: NoiseSchedule) -> GaussianDenoiser:
    return GaussianDenoiser(schedule, torch.tensor(MEAN), torch.tensor(COVARIANCE))


def moments_of(sampler: Sampler, schedule: NoiseSchedule, timesteps: list[float]) -> Moments:
    """Mean and covariance of the sampler's output, exactly: run it on basis vectors.

    Row 0 has x_T = 0 and no noise; rows 1 and 2 have unit vectors as x_T; each further row has one unit vector as one
    draw of noise. The output's rows less row 0 are the columns of the affine map, and of each draw's map.
    """
    counting = CountedNoise(lambda call: torch.zeros(1, 2, dtype=torch.float64))
    list(sampler(gaussian(schedule), schedule, torch.zeros(1, 2, dtype=torch.float64), counting, timesteps=timesteps))
    assert len(set(counting.asked)) == len(counting.asked)  # no draw is used twice
    x_T = torch.zeros(3 + 2 * len(counting.asked), 2, dtype=torch.float64)
    x_T[1:3] = torch.eye(2)

    def script(call: int) -> Tensor:
        z = torch.zeros_like(x_T)
        z[3 + 2 * call : 5 + 2 * call] = torch.eye(2)
        return z

    x = last(sampler(gaussian(schedule), schedule, x_T, CountedNoise(script), timesteps=timesteps)).numpy()
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


@every_variant
@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 10, 60])
def test_moments_are_those_of_the_recursion(variant: str, schedule_name: str, num_steps: int) -> None:
    schedule = make_schedule(schedule_name, 60)
    spacings: list[Spacing] = ["trailing"] if num_steps == 60 else ["trailing", "leading", "karras"]
    for spacing in spacings:
        timesteps = spaced_timesteps(num_steps, schedule, spacing)
        mean, covariance = moments_of(VARIANTS[variant], schedule, timesteps)
        expected = RECURSIONS[variant](World(schedule, timesteps))
        scale = max(1.0, np.abs(expected).max())  # extrapolation over few uneven steps may blow up, in both alike
        assert np.abs(mean - expected[:, 0]).max() < 1e-8 * scale
        assert np.abs(covariance - expected[:, 1:] @ expected[:, 1:].T).max() < 1e-8 * scale**2


@every_variant
@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
def test_moments_tend_to_the_datas(variant: str, schedule_name: str) -> None:
    """With four times the steps, on a schedule four times as long, the error falls, down to a last percent or two."""
    errors = []
    for num_steps in (20, 80):
        schedule = make_schedule(schedule_name, 2 * num_steps)
        times = spaced_timesteps(num_steps, schedule, SAMPLERS[variant.split()[0]].spacing)
        mean, covariance = moments_of(VARIANTS[variant], schedule, times)
        errors.append(max(np.abs(mean - MEAN).max(), np.abs(covariance - COVARIANCE).max()))
    if variant == "langevin":  # its own limit: see below
        return
    assert errors[0] > 2 * errors[1] or errors[0] < 0.01
    assert errors[1] < (0.01 if variant in DRAWS_NOTHING - {"euler", "ddim eta 0"} else 0.07)


def test_langevins_limit_is_its_step_size() -> None:
    """At one level, many steps of a = step_size n^2 leave each variance V at V / (1 - a / (2 V)); means are exact."""
    schedule, (t, step_size) = make_schedule("linear", 100), (50.0, 0.2)
    signal, deviation = (float(c) for c in schedule.signal_and_noise(t))
    spread = signal**2 * COVARIANCE + deviation**2 * np.eye(2)
    kept = np.linalg.inv(np.eye(2) - step_size * deviation**2 / 2 * np.linalg.inv(spread)) @ spread
    gain = signal * COVARIANCE @ np.linalg.inv(spread)  # the last x_0-hat
    sampler = partial(langevin, inner_steps=150, step_size=step_size)
    mean, covariance = moments_of(sampler, schedule, [t])
    assert np.abs(mean - MEAN).max() < 1e-8
    assert np.abs(covariance - gain @ kept @ gain.T).max() < 1e-8


def test_adaptives_error_falls_with_its_tolerance_and_so_do_its_steps() -> None:
    """Against the exact flow to t = 0: x_s = b mu + sqrt((b^2 V + m^2) / (a^2 V + n^2)) (x_t - a mu) for each axis."""
    schedule, x_T = make_schedule(), source(0, 16, 2).normal(0, "x_T")
    errors, calls = [], []
    (a, b), (n, m) = (c.tolist() for c in schedule.signal_and_noise(torch.tensor([999.0, 0.0])))
    values, vectors = np.linalg.eigh(COVARIANCE)
    ratio = np.sqrt((b * b * values + m * m) / (a * a * values + n * n))
    x = b * MEAN + (x_T.numpy() - a * MEAN) @ (vectors * ratio) @ vectors.T
    exact = gaussian(schedule)(torch.from_numpy(x), torch.zeros(16, dtype=torch.float64)).x_0
    for tolerance in (0.1, 0.01, 0.001):
        counted = Counted(gaussian(schedule))
        sampler = adaptive(
            counted,
            schedule,
            x_T,
            source(0, 16, 2),
            timesteps=[999],
            tolerance=tolerance,
            absolute_tolerance=tolerance / 5,
        )
        (step,) = sampler
        errors.append(float((step.x - exact).abs().max()))
        calls.append(counted.calls)
    assert errors[0] < 0.1
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert calls[0] < calls[1] < calls[2] < 500


@dataclass
class Counted:
    denoiser: Denoiser
    calls: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        self.calls += 1
        return self.denoiser(x_t, t, previous)


def test_ddim_in_one_step_returns_the_expectation() -> None:
    """Few steps are not exact, not even with the exact denoiser: E[x_0 | x_T] is nearly the mean of the data."""
    schedule = make_schedule()
    mean, covariance = moments_of(ddim, schedule, [999.0])
    gain = float(schedule.alphas_cumprod[-1]) ** 0.5 * COVARIANCE  # its denominator is 1 to within alpha-bar_T
    assert np.abs(mean - MEAN).max() < 1e-4
    assert np.abs(covariance - gain @ gain.T).max() < 1e-8
