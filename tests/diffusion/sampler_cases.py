"""What the tests of the samplers share: every variant under test, and small helpers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import (
    SAMPLERS,
    SampleStep,
    ddim,
    ddpm,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_2s,
    dpm_solver_pp_3m,
    dpm_solver_pp_sde,
    euler,
    heun,
    langevin,
    lms,
    pndm,
    predictor_corrector,
    unipc,
)
from ddpm.diffusion.schedules import NoiseSchedule

Sampler = Callable[..., Iterator[SampleStep]]

CHURN = {"churn": 2.0, "churn_range": (0.05, 50.0), "churn_noise": 1.003}

VARIANTS: dict[str, Sampler] = {
    "ddpm fixed_large": partial(ddpm, variance="fixed_large"),
    "ddpm fixed_small": partial(ddpm, variance="fixed_small"),
    "ddim eta 0": partial(ddim, eta=0.0),
    "ddim eta 0.5": partial(ddim, eta=0.5),
    "ddim eta 1": partial(ddim, eta=1.0),
    "dpm_solver_pp": dpm_solver_pp,
    "dpm_solver_pp_2s": dpm_solver_pp_2s,
    "dpm_solver_pp_3m": dpm_solver_pp_3m,
    "dpm_solver_pp_sde": dpm_solver_pp_sde,
    "unipc 1 bh2": partial(unipc, order=1, variant="bh2"),
    "unipc 2 bh1": partial(unipc, variant="bh1"),
    "unipc 2 bh2": partial(unipc, variant="bh2"),
    "unipc 3 bh2": partial(unipc, order=3, variant="bh2"),
    "deis 2": partial(deis, order=2),
    "deis 3": deis,
    "euler": euler,
    "euler churn": partial(euler, **CHURN),
    "heun": heun,
    "heun churn": partial(heun, **CHURN),
    "pndm": pndm,
    "lms 3": partial(lms, order=3),
    "lms 4": lms,
    "langevin": langevin,
    "predictor_corrector": predictor_corrector,
}
"""Every sampler whose output is an affine map of x_T and its noise, for a Gaussian: all but `adaptive`."""

DRAWS_NOTHING = {
    name for name in VARIANTS if name.split()[0] in {n for n, entry in SAMPLERS.items() if entry.deterministic}
} - {"ddim eta 0.5", "ddim eta 1", "euler churn", "heun churn"}

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def source(seed: int, count: int, *shape: int) -> NoiseSource:
    return NoiseSource(seed, range(count), shape, dtype=torch.float64)


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def last(steps: Iterator[SampleStep]) -> Tensor:
    *_, final = steps
    return final.x


def wild_denoiser(schedule: NoiseSchedule) -> Denoiser:
    """Far from any truth and not linear: an identity has to hold for it too."""

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        x_0 = torch.sin(3 * x_t) + 0.1 * t.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1)) / len(schedule)
        return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule))

    return denoise


@dataclass
class CountedNoise:
    """Stands in for `NoiseSource`: call number k is ``script(k)``, whatever its purpose and draw."""

    script: Callable[[int], Tensor]
    asked: list[tuple[str, int]] = field(default_factory=list)

    def normal(self, draw: int, purpose: str) -> Tensor:
        self.asked.append((purpose, draw))
        return self.script(len(self.asked) - 1)
