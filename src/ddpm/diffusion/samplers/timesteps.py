"""Which times a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError, nearest

Spacing = Literal["trailing", "leading", "linspace", "quadratic"]

CLEAN = -1.0
"""The time of clean data: the last one that every sampler steps to."""


def spaced_timesteps(num_steps: int, num_timesteps: int, spacing: Spacing = "trailing") -> list[float]:
    """Return `num_steps` integer times, strictly decreasing, for a schedule of `num_timesteps`.

    Args:
        num_steps: 1 to `num_timesteps`.
        num_timesteps: T.
        spacing: "trailing" starts at T - 1 and ends near T / n - 1 (right for few steps: it starts where there is only
            noise); "linspace" includes both 0 and T - 1; "leading" starts below T - 1 and ends at 0, as Song et al.
            2021 do; "quadratic" crowds the steps at small t (Song et al. 2021, App. D.2).

    Raises:
        SamplingError: for a number of steps out of range, or an unknown spacing.
    """
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


def step_pairs(timesteps: Sequence[float] | None, schedule: NoiseSchedule) -> list[tuple[float, float]]:
    """Return the (t, s) pairs that a sampler walks; the last s is clean data. None walks every timestep.

    Raises:
        SamplingError: if the times are empty, not strictly decreasing, or off the schedule.
    """
    if timesteps is None:
        timesteps = range(len(schedule) - 1, -1, -1)
    times = [float(t) for t in timesteps]
    if not times:
        raise SamplingError("no timesteps; expected at least one")
    last = len(schedule) - 1
    if times[0] > last or times[-1] < 0:
        raise SamplingError(f"timesteps run from {times[0]:g} to {times[-1]:g}; expected them within {last} to 0")
    if any(s >= t for t, s in pairwise(times)):
        raise SamplingError("timesteps must be strictly decreasing")
    return list(pairwise([*times, CLEAN]))
