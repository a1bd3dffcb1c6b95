"""The same numbers as diffusers' schedulers: tables, timesteps, single steps and whole chains.

diffusers keeps its tables in float32, where 1 - alpha-bar at t = 0 is off by 1.7e-4 of itself (linear), 5e-4 (cosine).
With those tables chains agree to 1e-4; with our float64 table put in their place, to 1e-9: the tables are all the
difference there is. Where the two differ by convention, the test sets diffusers to ours and says which.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from ddpm.diffusion.denoiser import Parameterization, clipped, network_denoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.samplers import SampleStep, ddim, ddpm, spaced_timesteps
from ddpm.diffusion.samplers.timesteps import Spacing
from ddpm.diffusion.schedules import NoiseSchedule, VarianceKind, make_schedule

Scheduler = DDPMScheduler | DDIMScheduler
Tables = Literal["float32", "float64"]
THEIR_SCHEDULE = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2"}
THEIR_PREDICTION = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
every_table = pytest.mark.parametrize("tables", ["float32", "float64"])

NOISE = NoiseSource(0, range(4), (3, 2, 2), dtype=torch.float64)
X_T = NOISE.normal(0, "x_T")


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """A small fixed function of picture and time; as v it keeps a chain within a few units."""
    return 0.9 * torch.sin(x_t) + 0.05 * torch.cos(t.to(x_t) / 100).reshape(-1, 1, 1, 1)


def both(
    kind: type[Scheduler], name: str, num_timesteps: int, tables: Tables = "float64", **options: Any
) -> tuple[NoiseSchedule, Scheduler]:
    """Our schedule, and their scheduler in our conventions.

    Theirs clips x_0 by default: clip_sample is set off. Their betas are those of T = 1000 for any T; ours scale with
    1000 / T, so their ends are scaled here. alpha-bar at clean data is 1 in both (their set_alpha_to_one).
    """
    schedule, scale = make_schedule(name, num_timesteps), 1000 / num_timesteps
    scheduler = kind(
        num_train_timesteps=num_timesteps,
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
        beta_schedule=THEIR_SCHEDULE[name],
        **{"clip_sample": False, "prediction_type": "v_prediction"} | options,
    )
    if tables == "float64":
        scheduler.alphas_cumprod = schedule.alphas_cumprod
    return schedule, scheduler


def assert_same_chain(
    ours: Iterator[SampleStep],
    their_step: Callable[[int, int, Tensor, Tensor], Any],
    timesteps: list[int],
    tolerance: float,
) -> None:
    """Each goes its own way from x_T; t, x_s and x_0-hat agree after every step, relative to their largest value."""
    x = X_T
    for index, (t, step) in enumerate(zip(timesteps, ours, strict=True)):
        theirs = their_step(index, t, network(x, torch.full((4,), t)), x)
        x = theirs.prev_sample
        assert step.t == t
        for a, b in ((step.x, x), (step.prediction.x_0, theirs.pred_original_sample)):
            assert float((a - b).abs().max()) < tolerance * max(1, float(b.abs().max()))


def ddpm_step(scheduler: DDPMScheduler, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, Tensor, Tensor], Any]:
    """Their step with our noise in place of the draw that it makes itself, and none at the last step.

    Theirs leaves noise out at t = 0 only; where the last time is above 0 it would add some to the clean data.
    """

    def step(index: int, t: int, output: Tensor, x: Tensor) -> Any:
        noise = torch.zeros_like(x) if t == scheduler.timesteps[-1] else NOISE.normal(index, "step")
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: noise)
        return scheduler.step(output, t, x)

    return step


def ddim_step(scheduler: DDIMScheduler, eta: float, **options: Any) -> Callable[[int, int, Tensor, Tensor], Any]:
    """Their step with our noise; at the last step its weight is 0 there as well, for alpha-bar is 1."""

    def step(index: int, t: int, output: Tensor, x: Tensor) -> Any:
        noise = NOISE.normal(index, "step") if eta > 0 else None
        return scheduler.step(output, t, x, eta=eta, variance_noise=noise, **options)

    return step


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_timesteps", [100, 1000])
@pytest.mark.parametrize("name", THEIR_SCHEDULE)
def test_betas_and_alphas_cumprod(name: str, num_timesteps: int) -> None:
    """Their scaled_linear is our quadratic, their squaredcos_cap_v2 our cosine."""
    schedule, scheduler = both(DDPMScheduler, name, num_timesteps, "float32")
    assert float((schedule.betas - scheduler.betas).abs().max()) < 1e-7
    assert float((schedule.alphas_cumprod - scheduler.alphas_cumprod).abs().max()) < 1e-6


def test_their_float32_table_is_off_where_ours_is_not() -> None:
    schedule, scheduler = both(DDPMScheduler, "linear", 1000, "float32")
    assert abs(float(1 - scheduler.alphas_cumprod[0]) / 1e-4 - 1) == pytest.approx(1.7e-4, rel=0.05)
    assert abs(float(schedule.signal_and_noise(0)[1].square()) / 1e-4 - 1) < 1e-14


def test_zero_terminal_snr() -> None:
    scheduler = DDPMScheduler(1000, rescale_betas_zero_snr=True)
    schedule = make_schedule("linear", 1000, zero_terminal_snr=True)
    assert float((schedule.alphas_cumprod - scheduler.alphas_cumprod).abs().max()) < 1e-6
    assert float(schedule.alphas_cumprod[-1]) == float(scheduler.alphas_cumprod[-1]) == 0


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("num_steps", [2, 10, 50, 250, 1000])
def test_timesteps(spacing: Spacing, num_steps: int) -> None:
    scheduler = DDPMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    assert spaced_timesteps(num_steps, make_schedule(), spacing) == scheduler.timesteps.tolist()


def test_timesteps_that_differ_on_purpose() -> None:
    """Their "leading" strides by T // n, ours by T / n; their "linspace" of one step is t = 0, ours T - 1."""
    scheduler = DDPMScheduler(1000, timestep_spacing="leading")
    scheduler.set_timesteps(600)
    assert (int(scheduler.timesteps[0]), spaced_timesteps(600, make_schedule(), "leading")[0]) == (599, 998)
    scheduler = DDPMScheduler(1000, timestep_spacing="linspace")
    scheduler.set_timesteps(1)
    assert (scheduler.timesteps.tolist(), spaced_timesteps(1, make_schedule(), "linspace")) == ([0], [999])


# Forward and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tables", "tolerance"), [("float32", 1e-5), ("float64", 1e-14)])
def test_q_sample(tables: Tables, tolerance: float) -> None:
    t, eps = torch.tensor([0, 1, 500, 999]), NOISE.normal(0, "eps")
    schedule, scheduler = both(DDPMScheduler, "linear", 1000, tables)
    assert float((q_sample(X_T, t, eps, schedule) - scheduler.add_noise(X_T, eps, t)).abs().max()) < tolerance


@pytest.mark.parametrize("parameterization", THEIR_PREDICTION)
@pytest.mark.parametrize("t", [999, 998, 500, 1, 0])
def test_single_steps(t: int, parameterization: Parameterization, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every parameterization that both have, at both ends and between; eps at t = 999 is divided by .006."""
    options = {"prediction_type": THEIR_PREDICTION[parameterization]}
    times = [t] if t == 0 else [t, t - 1]
    for variance in ("fixed_small", "fixed_large"):
        schedule, scheduler = both(DDPMScheduler, "linear", 1000, variance_type=variance, **options)
        ours = ddpm(
            network_denoiser(network, schedule, parameterization),
            schedule,
            X_T,
            NOISE,
            timesteps=times,
            variance=variance,
        )
        theirs = ddpm_step(scheduler, monkeypatch)(0, t, network(X_T, torch.full((4,), t)), X_T)
        torch.testing.assert_close(next(ours).x, theirs.prev_sample, rtol=1e-9, atol=1e-9)


@every_table
@pytest.mark.parametrize(("name", "num_timesteps"), [("linear", 1000), ("quadratic", 200), ("cosine", 200)])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_over_all_timesteps(
    name: str, num_timesteps: int, variance: VarianceKind, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their fixed_small clamps beta-tilde at 1e-20, which only t = 0 reaches: and there neither adds noise."""
    schedule, scheduler = both(DDPMScheduler, name, num_timesteps, tables, variance_type=variance)
    scheduler.set_timesteps(num_timesteps)
    ours = ddpm(network_denoiser(network, schedule, "v"), schedule, X_T, NOISE, variance=variance)
    assert_same_chain(ours, ddpm_step(scheduler, monkeypatch), scheduler.timesteps.tolist(), TOLERANCE[tables])


@every_table
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_over_some_timesteps(
    variance: VarianceKind, spacing: Spacing, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their default spacing is "leading", which never visits t = T - 1; ours is "trailing"."""
    schedule, scheduler = both(DDPMScheduler, "linear", 1000, tables, variance_type=variance, timestep_spacing=spacing)
    scheduler.set_timesteps(25)
    times = spaced_timesteps(25, schedule, spacing)
    ours = ddpm(network_denoiser(network, schedule, "v"), schedule, X_T, NOISE, timesteps=times, variance=variance)
    assert_same_chain(ours, ddpm_step(scheduler, monkeypatch), scheduler.timesteps.tolist(), TOLERANCE[tables])


@every_table
@pytest.mark.parametrize(("num_steps", "num_timesteps"), [(20, 1000), (100, 100)])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, spacing: Spacing, num_steps: int, num_timesteps: int, tables: Tables) -> None:
    """Theirs always steps to t - T // n, which is the next time only in these two spacings and where n divides T."""
    schedule, scheduler = both(DDIMScheduler, "linear", num_timesteps, tables, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    times = spaced_timesteps(num_steps, schedule, spacing)
    ours = ddim(network_denoiser(network, schedule, "v"), schedule, X_T, NOISE, timesteps=times, eta=eta)
    assert_same_chain(ours, ddim_step(scheduler, eta), scheduler.timesteps.tolist(), TOLERANCE[tables])


def test_ddim_with_clipping() -> None:
    """Ours takes eps from the clipped x_0, theirs only with use_clipped_model_output; without, the chains part."""
    schedule, scheduler = both(
        DDIMScheduler, "linear", 1000, clip_sample=True, timestep_spacing="trailing", prediction_type="epsilon"
    )
    scheduler.set_timesteps(20)
    times = spaced_timesteps(20, schedule)

    def ours() -> Iterator[SampleStep]:
        denoiser = clipped(network_denoiser(network, schedule, "eps"), schedule)
        return ddim(denoiser, schedule, X_T, NOISE, timesteps=times)

    consistent = ddim_step(scheduler, 0.0, use_clipped_model_output=True)
    assert_same_chain(ours(), consistent, scheduler.timesteps.tolist(), 1e-9)
    with pytest.raises(AssertionError):
        assert_same_chain(ours(), ddim_step(scheduler, 0.0), scheduler.timesteps.tolist(), 1e-2)


def test_ddpm_with_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, scheduler = both(
        DDPMScheduler, "linear", 200, clip_sample=True, variance_type="fixed_large", prediction_type="epsilon"
    )
    denoiser = clipped(network_denoiser(network, schedule, "eps"), schedule)
    ours = ddpm(denoiser, schedule, X_T, NOISE, variance="fixed_large")
    assert_same_chain(ours, ddpm_step(scheduler, monkeypatch), scheduler.timesteps.tolist(), 1e-9)


def test_their_last_step_adds_noise_above_t_0_and_ours_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ho et al., Alg. 2: z = 0 in the last step. From t = 39 to clean data sqrt(beta) = .14 of noise would be left."""
    schedule, scheduler = both(DDPMScheduler, "linear", 1000, variance_type="fixed_large", timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: torch.ones_like(X_T))
    theirs = scheduler.step(network(X_T, torch.full((4,), 39)), 39, X_T)
    denoiser = network_denoiser(network, schedule, "v")
    (ours,) = ddpm(denoiser, schedule, X_T, NOISE, timesteps=[39], variance="fixed_large")
    torch.testing.assert_close(ours.x, ours.prediction.x_0, rtol=0, atol=1e-14)
    left = float(schedule.signal_and_noise(39)[1])
    assert left == pytest.approx(0.14, abs=5e-3)
    torch.testing.assert_close(theirs.prev_sample - ours.x, torch.full_like(X_T, left), rtol=0, atol=1e-9)
