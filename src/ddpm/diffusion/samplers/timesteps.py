"""Which times a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError, nearest

Spacing = Literal["trailing", "leading", "linspace", "quadratic", "log_snr", "karras"]

CLEAN = -1.0
"""The time of clean data: the last one that every sampler steps to."""

_RHO = 7.0
"""Karras et al. 2022, Table 1."""


def spaced_timesteps(num_steps: int, schedule: NoiseSchedule, spacing: Spacing = "trailing") -> list[float]:
    """Return `num_steps` strictly decreasing times of a schedule.

    The first four are evenly spaced in t or its root, and whole; the last two lie between the training times.

    Args:
        num_steps: 1 to T.
        schedule: the noise schedule of training.
        spacing: "trailing" starts at T - 1 and ends near T / n - 1 (right for few steps: it starts where there is only
            noise); "linspace" includes both 0 and T - 1; "leading" starts below T - 1 and ends at 0, as Song et al.
            2021 do; "quadratic" crowds the steps at small t (Song et al. 2021, App. D.2); "log_snr" is even in log SNR
            from T - 1 to 0 (Lu et al. 2022); "karras" is even in sigma^(1/7), sigma = sqrt((1 - alpha-bar) /
            alpha-bar), from T - 1 to 0 (Karras et al. 2022, Eq. 5).

    Raises:
        SamplingError: for a number of steps out of range, or an unknown spacing.
    """
    num_timesteps = len(schedule)
    if not 1 <= num_steps <= num_timesteps:
        raise SamplingError(f"{num_steps} sampling steps; expected 1 to {num_timesteps}, the timesteps of training")
    times: NDArray[np.floating | np.integer]
    if spacing == "trailing":
        times = np.round(np.arange(num_steps, 0, -1) * num_timesteps / num_steps) - 1
    elif spacing == "leading":
        times = np.arange(num_steps - 1, -1, -1) * num_timesteps // num_steps
    elif spacing == "linspace":
        times = np.round(np.linspace(num_timesteps - 1, 0, num_steps))
    elif spacing == "quadratic":
        times = _made_distinct(np.round(np.linspace(np.sqrt(num_timesteps - 1), 0, num_steps) ** 2))
    elif spacing in ("log_snr", "karras"):
        times = _even_in_noise_level(num_steps, schedule, spacing)
    else:
        known = get_args(Spacing)
        raise SamplingError(f"unknown spacing '{spacing}'{nearest(spacing, known)}; known are {', '.join(known)}")
    return [float(t) for t in times]


def _made_distinct(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Push squares apart, from the small end up, so that no two are equal; being convex, they stay below T."""
    rising = times[::-1].copy()
    for k in range(1, len(rising)):
        rising[k] = max(rising[k], rising[k - 1] + 1)
    distinct: NDArray[np.float64] = rising[::-1]
    return distinct


def _even_in_noise_level(
    num_steps: int, schedule: NoiseSchedule, spacing: Literal["log_snr", "karras"]
) -> NDArray[np.float64]:
    last = len(schedule) - 1
    if num_steps == 1:
        return np.array([float(last)])
    # Where no signal is left, log SNR is -inf: that time is visited, and the others start at the one below it.
    first = last - 1 if schedule.has_zero_terminal_snr else last
    count = num_steps - (last - first)
    start, end = schedule.log_snr(torch.tensor([first, 0])).tolist()
    if spacing == "log_snr":
        log_snr = np.linspace(start, end, count)
    else:
        roots = np.linspace(np.exp(-start / (2 * _RHO)), np.exp(-end / (2 * _RHO)), count)
        log_snr = -2 * _RHO * np.log(roots)
    times: NDArray[np.float64] = schedule.t_of(torch.from_numpy(log_snr)).numpy()
    if count > 1:
        times[-1] = 0
    times[0] = first
    return times if first == last else np.concatenate([[float(last)], times])


def checked_timesteps(timesteps: Sequence[float] | None, schedule: NoiseSchedule) -> list[float]:
    """Return the times that a sampler visits, in order; None stands for every timestep.

    Raises:
        SamplingError: if the times are empty, not strictly decreasing, or off the schedule.
    """
    if timesteps is None:
        timesteps = range(len(schedule) - 1, -1, -1)
    times = [float(t) for t in timesteps]
    if not times:
        raise SamplingError("no timesteps; expected at least one")
    last = len(schedule) - 1
    if not (times[0] <= last and times[-1] >= 0):
        raise SamplingError(f"timesteps run from {times[0]:g} to {times[-1]:g}; expected them within {last} to 0")
    if not all(s < t for t, s in pairwise(times)):
        raise SamplingError("timesteps must be strictly decreasing")
    return times
