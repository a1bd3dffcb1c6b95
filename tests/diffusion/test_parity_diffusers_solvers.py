"""The same chains as diffusers' fast solvers: DPM-Solver++(2M), UniPC and Heun, same network and x_T.

diffusers keeps sigma = sqrt((1 - alpha-bar) / alpha-bar) of every step in float32; with that table chains agree to
1e-4, with ours in its place to 1e-9. Conventions set to ours: "trailing" times, and sigma = 0 at the end.
"""

from typing import Any, Literal

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from ddpm.diffusion.denoiser import network_denoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import dpm_solver_pp, heun, spaced_timesteps, unipc
from ddpm.diffusion.samplers.unipc import Variant
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule

Tables = Literal["float32", "float64"]
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
every_table = pytest.mark.parametrize("tables", ["float32", "float64"])
every_length = pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 20])

NOISE = NoiseSource(0, range(4), (3, 2, 2), dtype=torch.float64)
X_T = NOISE.normal(0, "x_T")
SCHEDULE = make_schedule("linear", 1000)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """A small fixed function of picture and time; as v it keeps a chain within a few units."""
    return 0.9 * torch.sin(x_t) + 0.05 * torch.cos(t.to(x_t) / 100).reshape(-1, 1, 1, 1)


def prepared(scheduler: Any, num_steps: int, tables: Tables) -> Any:
    """Their scheduler at these steps, with float64 sigmas at its own times if asked for."""
    scheduler.set_timesteps(num_steps)
    if tables == "float64":
        sigmas = sigma_of(SCHEDULE, scheduler.timesteps.double())
        scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    return scheduler


def sigma_of(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    signal, noise = schedule.signal_and_noise(t)
    return noise / signal


def options(**more: Any) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    } | more


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return float((ours - theirs).abs().max()) < tolerance * max(1.0, float(theirs.abs().max()))


@every_table
@every_length
def test_dpm_solver_pp(num_steps: int, tables: Tables) -> None:
    """Their "midpoint" is the paper's 2M. Both end with a step of order 1, theirs since sigma = 0 there.

    Theirs computes each step in float32 whatever the dtype of x, so with our table too 1e-6 is as close as it gets.
    """
    tolerance = {"float32": 1e-4, "float64": 2e-6}[tables]
    scheduler = prepared(DPMSolverMultistepScheduler(**options(solver_order=2)), num_steps, tables)
    times = spaced_timesteps(num_steps, SCHEDULE)
    assert scheduler.timesteps.tolist() == times
    x = X_T
    for step in dpm_solver_pp(network_denoiser(network, SCHEDULE, "v"), SCHEDULE, X_T, NOISE, timesteps=times):
        x = scheduler.step(network(x, torch.full((4,), step.t)), int(step.t), x).prev_sample
        assert close(step.x, x, tolerance)


@every_table
@every_length
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(variant: Variant, order: int, num_steps: int, tables: Tables) -> None:
    """Both correct x at the start of the next step, so what a step returns is the prediction in both.

    Their "bh1" is not a number where sigma = 0 (h is infinite, and multiplied by 0): its last step is left out.
    """
    scheduler = prepared(UniPCMultistepScheduler(**options(solver_order=order, solver_type=variant)), num_steps, tables)
    times = spaced_timesteps(num_steps, SCHEDULE)
    x = X_T
    ours = unipc(
        network_denoiser(network, SCHEDULE, "v"), SCHEDULE, X_T, NOISE, timesteps=times, order=order, variant=variant
    )
    for step in ours:
        x = scheduler.step(network(x, torch.full((4,), step.t)), int(step.t), x).prev_sample
        if variant == "bh1" and step.s == -1:
            assert bool(x.isnan().all())
            break
        assert close(step.x, x, TOLERANCE[tables])


@every_table
@every_length
def test_heun(num_steps: int, tables: Tables) -> None:
    """Their x is ours / sqrt(alpha-bar), so x_T is scaled by sqrt(1 + sigma^2); one of our steps is two of theirs."""
    scheduler = prepared(HeunDiscreteScheduler(**options()), num_steps, tables)
    times = spaced_timesteps(num_steps, SCHEDULE)
    y = X_T * (1 + sigma_of(SCHEDULE, torch.tensor(times[0])) ** 2).sqrt()
    calls = iter(scheduler.timesteps)
    for step in heun(network_denoiser(network, SCHEDULE, "v"), SCHEDULE, X_T, NOISE, timesteps=times):
        for _ in range(1 if step.s == -1 else 2):
            t = next(calls)
            x = scheduler.scale_model_input(y, t)
            y = scheduler.step(network(x, torch.full((4,), float(t))), t, y).prev_sample
        signal = SCHEDULE.signal_and_noise(step.s)[0]
        assert close(step.x, signal * y, TOLERANCE[tables])
