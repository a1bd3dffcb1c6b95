"""Samplers that are the same where their formulas are."""

from functools import partial

import pytest
import torch
from sampler_cases import largest, last, source, wild_denoiser
from scripted_noise import ScriptedNoise
from torch import Tensor

from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.samplers import (
    ddim,
    ddim_invert,
    ddpm,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_3m,
    dpm_solver_pp_sde,
    euler,
    lms,
    pndm,
    spaced_timesteps,
    unipc,
)
from ddpm.diffusion.schedules import make_schedule
from ddpm.errors import SamplingError


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_ddim_at_eta_1_is_ddpm_with_the_small_variance(num_steps: int, zero_terminal_snr: bool) -> None:
    schedule = make_schedule("linear", 100, zero_terminal_snr=zero_terminal_snr)
    noise, times = source(0, 8, 3), spaced_timesteps(num_steps, schedule)
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


@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
def test_first_order_samplers_are_ddim(schedule_name: str) -> None:
    schedule = make_schedule(schedule_name, 100)
    noise, times = source(0, 8, 3), spaced_timesteps(9, schedule, "log_snr")
    common = (wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise)
    expected = [step.x for step in ddim(*common, timesteps=times)]
    for sampler in (euler, partial(deis, order=1), partial(lms, order=1)):
        found = [step.x for step in sampler(*common, timesteps=times)]
        assert max(largest(a - b) for a, b in zip(found, expected, strict=True)) < 1e-12


def test_unipc_of_order_2_predicts_what_dpm_solver_pp_does() -> None:
    """With bh2; its corrector is all that parts them, and is left out where `after_step` has moved x."""
    schedule, noise = make_schedule("cosine", 100), source(0, 8, 3)
    common = (wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise)
    times = spaced_timesteps(9, schedule)

    def moved(x_s: Tensor, s: Tensor) -> Tensor:
        return x_s + 0.01

    def plain(x_s: Tensor, s: Tensor) -> Tensor:
        return x_s.clone()

    pairs = zip(
        unipc(*common, variant="bh2", timesteps=times, after_step=moved),
        dpm_solver_pp(*common, timesteps=times, after_step=moved),
        strict=True,
    )
    assert max(largest(a.x - b.x) for a, b in pairs) < 1e-12
    corrected = last(unipc(*common, variant="bh2", timesteps=times))
    assert torch.equal(last(unipc(*common, variant="bh2", timesteps=times, after_step=plain)), corrected)
    assert largest(corrected - last(dpm_solver_pp(*common, timesteps=times))) > 1e-4


def test_the_first_stochastic_step_is_ddpms_and_no_churn_is_none() -> None:
    schedule, noise = make_schedule("linear", 100), source(0, 8, 3)
    common = (wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise)
    times = [99, 60, 20]
    a, b = (
        next(dpm_solver_pp_sde(*common, timesteps=times)),
        next(ddpm(*common, timesteps=times, variance="fixed_small")),
    )
    assert largest(a.x - b.x) < 1e-12
    assert torch.equal(last(euler(*common, churn=5.0, churn_range=(1e6, 1e7))), last(euler(*common)))
    assert largest(last(euler(*common, churn=5.0)) - last(euler(*common))) > 1e-3


@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
def test_an_edit_reaches_the_next_prediction_of_every_multistep_sampler(schedule_name: str) -> None:
    """With every x_s replaced, each x_0 that is remembered is that of the replacement: the last is its prediction."""
    schedule, noise = make_schedule(schedule_name, 100), source(0, 8, 3)
    replaced = source(5, 8, 3).normal(0, "replaced")
    for sampler in (dpm_solver_pp, dpm_solver_pp_3m, unipc, deis, lms, pndm):
        steps = sampler(
            wild_denoiser(schedule),
            schedule,
            noise.normal(0, "x_T"),
            noise,
            timesteps=[90, 50, 30, 20, 10],
            after_step=lambda x_s, s: replaced if s >= 0 else x_s,
        )
        *_, final = steps
        expected = wild_denoiser(schedule)(replaced, torch.full((8,), 10.0, dtype=torch.float64))
        assert largest(final.x - expected.x_0) < 1e-12


# Inversion


@pytest.mark.parametrize("num_steps", [10, 50])
def test_the_round_trip_through_the_noise_is_exact(num_steps: int) -> None:
    """Picture to noise and back by `ddim`, once the fixed point is reached; nearly so after the usual iteration."""
    schedule = make_schedule("linear", 100)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double()
    denoiser = GaussianDenoiser(schedule, torch.tensor([0.4, -0.2]).double(), covariance)
    x_0, times = source(3, 5, 2).normal(0, "x_0"), spaced_timesteps(num_steps, schedule, "linspace")
    errors = []
    for iterations in (1, 3, 40):
        *_, final = ddim_invert(denoiser, schedule, x_0, timesteps=times, iterations=iterations)
        back = last(ddim(denoiser, schedule, final.x, source(0, 5, 2), timesteps=times))
        errors.append(largest(back - x_0))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


def test_inversion_walks_the_same_times_upwards() -> None:
    schedule, x_0 = make_schedule("linear", 100), source(3, 5, 2).normal(0, "x_0")
    steps = list(ddim_invert(wild_denoiser(schedule), schedule, x_0, timesteps=[80, 30, 2]))
    assert [(s.index, s.num_steps, s.t, s.s) for s in steps] == [(0, 3, -1, 2), (1, 3, 2, 30), (2, 3, 30, 80)]
    with pytest.raises(SamplingError, match="0 iterations; expected at least 1"):
        ddim_invert(wild_denoiser(schedule), schedule, x_0, iterations=0)
    with pytest.raises(SamplingError, match="strictly decreasing"):
        ddim_invert(wild_denoiser(schedule), schedule, x_0, timesteps=[3, 5])
