"""Spacings: which times a sampler visits."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.config import sampling as sampling_config
from ddpm.diffusion.samplers import Spacing, spaced_timesteps
from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, constant_betas, make_schedule
from ddpm.errors import SamplingError

SPACINGS = get_args(Spacing)
WHOLE: tuple[Spacing, ...] = ("trailing", "leading", "linspace", "quadratic")
by_property = settings(max_examples=40, deadline=None, derandomize=True)


def of_length(num_timesteps: int) -> NoiseSchedule:
    """A schedule of any number of timesteps, down to 2."""
    return NoiseSchedule(constant_betas(num_timesteps, beta=0.001))


@pytest.mark.parametrize("num_steps", [0, -1, 101])
def test_numbers_of_steps_out_of_range_are_refused(num_steps: int) -> None:
    with pytest.raises(SamplingError, match=f"{num_steps} sampling steps; expected 1 to 100"):
        spaced_timesteps(num_steps, make_schedule("linear", 100))


def test_an_unknown_spacing_is_answered_with_the_nearest_known() -> None:
    with pytest.raises(SamplingError, match="'trail'; did you mean 'trailing'"):
        spaced_timesteps(5, make_schedule(), "trail")  # type: ignore[arg-type]


def test_the_configuration_knows_the_same_spacings() -> None:
    assert get_args(sampling_config.Spacing) == SPACINGS


@by_property
@given(spacing=st.sampled_from(SPACINGS), num_timesteps=st.integers(2, 1200), data=st.data())
def test_times_are_distinct_and_in_range(spacing: Spacing, num_timesteps: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(1, num_timesteps))
    times = spaced_timesteps(num_steps, of_length(num_timesteps), spacing)
    assert len(times) == num_steps
    assert all(t > s for t, s in pairwise(times))
    assert 0 <= times[-1] <= times[0] <= num_timesteps - 1
    assert spacing not in WHOLE or all(t == int(t) for t in times)


@pytest.mark.parametrize("spacing", WHOLE)
@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 17, 1000])
def test_as_many_steps_as_timesteps_visit_them_all(spacing: Spacing, num_timesteps: int) -> None:
    times = spaced_timesteps(num_timesteps, of_length(num_timesteps), spacing)
    assert times == list(range(num_timesteps - 1, -1, -1))


@by_property
@given(num_timesteps=st.integers(2, 1200), data=st.data())
def test_each_spacing_ends_where_it_says(num_timesteps: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(2, num_timesteps))
    trailing, leading, linspace, quadratic, log_snr, karras = (
        spaced_timesteps(num_steps, of_length(num_timesteps), s) for s in SPACINGS
    )
    assert trailing[0] == linspace[0] == quadratic[0] == log_snr[0] == karras[0] == num_timesteps - 1
    assert leading[-1] == linspace[-1] == quadratic[-1] == log_snr[-1] == karras[-1] == 0
    assert abs(trailing[-1] - (num_timesteps / num_steps - 1)) <= 0.5
    assert abs(leading[0] - (num_timesteps - num_timesteps / num_steps)) <= 1
    for times in (trailing, leading, linspace):
        steps = -np.diff(times)
        assert steps.max() - steps.min() <= 2  # evenly spaced, up to rounding of both ends


def test_quadratic_times_are_squares_where_there_is_room() -> None:
    assert spaced_timesteps(5, of_length(401), "quadratic") == [400, 225, 100, 25, 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_and_karras_are_even_in_what_they_say(name: str) -> None:
    schedule = make_schedule(name)
    log_snr = schedule.log_snr(torch.tensor(spaced_timesteps(9, schedule, "log_snr"), dtype=torch.float64)).numpy()
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / 8, rtol=1e-9)
    times = torch.tensor(spaced_timesteps(9, schedule, "karras"), dtype=torch.float64)
    roots = np.exp(-schedule.log_snr(times).numpy() / 2) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 8, rtol=1e-9)


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
def test_without_terminal_signal_the_last_time_comes_first_and_the_rest_are_even(spacing: Spacing) -> None:
    schedule = make_schedule("cosine", 100, zero_terminal_snr=True)
    times = spaced_timesteps(6, schedule, spacing)
    assert times[:2] == [99, 98]
    assert times[-1] == 0
    assert spaced_timesteps(2, schedule, spacing) == [99, 98]
