"""How fast the error of deterministic samplers falls: the slope of its logarithm in the step is their order."""

from functools import partial

import numpy as np
import pytest
import torch
from sampler_cases import Sampler

from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.samplers import (
    SAMPLERS,
    ddim,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_2s,
    dpm_solver_pp_3m,
    euler,
    heun,
    lms,
    pndm,
    unipc,
)
from ddpm.diffusion.schedules import make_schedule

SCHEDULE = make_schedule("cosine")
MEAN, VARIANCES = torch.tensor([0.4, -0.2]).double(), torch.tensor([0.5, 0.09]).double()
X_T = torch.tensor([[1.2, -0.7], [-0.3, 1.9]]).double()
AFTER = 3  # steps after the one that is looked at, so that it still has its full order

ORDERS: dict[str, tuple[Sampler, int]] = {
    "ddim": (ddim, 1),
    "euler": (euler, 1),
    "dpm_solver_pp": (dpm_solver_pp, 2),
    "dpm_solver_pp_2s": (dpm_solver_pp_2s, 2),
    "dpm_solver_pp_3m": (dpm_solver_pp_3m, 3),
    "unipc 1": (partial(unipc, order=1), 2),
    "unipc": (unipc, 3),
    "unipc bh2": (partial(unipc, variant="bh2"), 3),
    "deis 2": (partial(deis, order=2), 2),
    "deis": (deis, 3),
    "heun": (heun, 2),
    "pndm": (pndm, 2),
    "lms 2": (partial(lms, order=2), 2),
    "lms 3": (partial(lms, order=3), 3),
    "lms": (lms, 4),
}


def error(sampler: Sampler, num_steps: int) -> float:
    """Largest error at lambda = 1 against the exact flow of a Gaussian, over `num_steps` even steps of lambda.

    Not at clean data, where a last step of order 1 from a small but fixed noise ends every sampler.
    """
    start = 0.5 * float(SCHEDULE.log_snr(999))
    h = (1 - start) / num_steps
    half_log_snr = start + h * torch.arange(num_steps + 1 + AFTER, dtype=torch.float64)
    times = [999.0, *SCHEDULE.t_of(2 * half_log_snr[1:]).tolist()]
    denoiser = GaussianDenoiser(SCHEDULE, MEAN, torch.diag(VARIANCES))
    steps = sampler(denoiser, SCHEDULE, X_T, None, timesteps=times)
    x = next(step.x for step in steps if step.index == num_steps - 1)
    (a, b), (n, m) = SCHEDULE.signal_and_noise(torch.tensor([times[0], times[num_steps]]))
    ratio = ((b * b * VARIANCES + m * m) / (a * a * VARIANCES + n * n)).sqrt()
    return float((x - (b * MEAN + ratio * (X_T - a * MEAN))).abs().max())


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order(name: str) -> None:
    sampler, order = ORDERS[name]
    numbers = np.array([100, 140, 200, 280])
    errors = [error(sampler, int(n)) for n in numbers]
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.3, errors


def test_the_registry_says_these_orders() -> None:
    known = {name: entry.order for name, entry in SAMPLERS.items() if entry.deterministic and name != "adaptive"}
    assert known == {name: order for name, (_, order) in ORDERS.items() if name in SAMPLERS}
