"""A student's single step against its teacher's many, with denoisers that are known exactly."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.analytic import GaussianDenoiser, MixtureDenoiser, PointDenoiser
from ddpm.diffusion.denoiser import Denoiser, Prediction, clipped
from ddpm.diffusion.distillation import (
    TeacherSolver,
    consistency_target,
    progressive_target,
    student_loss,
    student_parameterization,
    x_0_of_step,
)
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule

SOLVERS = get_args(TeacherSolver)
SCHEDULES = {
    "linear": make_schedule("linear", 1000),
    "cosine": make_schedule("cosine", 100),
    "zero terminal SNR": make_schedule("sigmoid", 40, zero_terminal_snr=True),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]


def mixture(schedule: NoiseSchedule) -> MixtureDenoiser:
    return MixtureDenoiser(
        schedule,
        weights=torch.tensor([0.3, 0.7]),
        means=torch.tensor([[-0.8, 0.5, 0.1], [0.6, -0.2, 0.9]], dtype=torch.float64),
        variances=torch.tensor([0.02, 0.1]),
    )


def noise_of(count: int, seed: int = 0) -> Tensor:
    return NoiseSource(seed, range(count), (3,), dtype=torch.float64).normal(0, "test")


def one_step(x_0: Tensor, x_t: Tensor, t: float, s: float, schedule: NoiseSchedule) -> Tensor:
    """Return where DDIM's step from x_t lands with this x_0, written out from alpha-bar."""
    bars = [1.0 if time == -1 else float(torch.sigmoid(schedule.log_snr(time))) for time in (t, s)]
    eps = (x_t - math.sqrt(bars[0]) * x_0) / math.sqrt(1 - bars[0])
    return math.sqrt(bars[1]) * x_0 + math.sqrt(1 - bars[1]) * eps


def same(times: float, count: int) -> Tensor:
    return torch.full((count,), times, dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_step_lands_where_the_teachers_steps_land(
    schedule: NoiseSchedule, num_steps: int, solver: TeacherSolver
) -> None:
    """Against the sampler itself, for each of the three steps of a student; the last one ends at clean data."""
    teacher, last = mixture(schedule), len(schedule) - 1.0
    bounds = [last, round(2 * last / 3), round(last / 3), -1.0]
    x = noise_of(6)
    for t, s in pairwise(bounds):
        times = [t + (s - t) * k / num_steps for k in range(num_steps)]
        noise = NoiseSource(0, range(6), (3,))
        walked = SAMPLERS[solver].run(teacher, schedule, x, noise, timesteps=times + [s] * (s >= 0))
        landed = [step.x for step in walked][num_steps - 1]
        target = progressive_target(teacher, x, t, s, num_steps, schedule, solver)
        assert (one_step(target, x, t, s, schedule) - landed).abs().max() < 1e-10
        x = landed


def test_two_steps_written_out_as_in_the_paper() -> None:
    """Salimans & Ho 2022, Alg. 2, with alpha and sigma of the cosine schedule on its grid."""
    schedule = SCHEDULES["cosine"]
    teacher, z = mixture(schedule), noise_of(4)
    alpha, sigma = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
    t, t1, t2 = 80, 60, 40
    x = teacher(z, same(t, 4)).x_0
    z1 = alpha[t1] * x + sigma[t1] / sigma[t] * (z - alpha[t] * x)
    x1 = teacher(z1, same(t1, 4)).x_0
    z2 = alpha[t2] * x1 + sigma[t2] / sigma[t1] * (z1 - alpha[t1] * x1)
    wanted = (z2 - sigma[t2] / sigma[t] * z) / (alpha[t2] - sigma[t2] / sigma[t] * alpha[t])
    found = progressive_target(teacher, z, t, t2, 2, schedule)
    assert (found - wanted).abs().max() < 1e-12
    other = progressive_target(teacher, z, t, t2, 1, schedule)
    assert (found - other).abs().max() > 1e-3  # so that the steps between do matter


def test_a_target_is_a_mean_of_the_teachers_predictions(schedule: NoiseSchedule) -> None:
    """The weights are the steps of alpha / sigma; with noise in between, none of them is negative."""
    seen: list[Prediction] = []
    exact = mixture(schedule)

    def teacher(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        assert previous is (seen[-1] if seen else None)
        seen.append(exact(x_t, t))
        return seen[-1]

    t, s = len(schedule) - 1.0, len(schedule) // 3
    target = progressive_target(teacher, noise_of(5), t, s, 4, schedule)
    times = torch.linspace(t, s, 5, dtype=torch.float64)
    ratio = (0.5 * schedule.log_snr(times)).exp()
    weights = (ratio[1:] - ratio[:-1]) / (ratio[-1] - ratio[0])
    assert (weights > 0).all()
    wanted = sum(weight * each.x_0 for weight, each in zip(weights, seen, strict=True))
    assert (target - wanted).abs().max() < 1e-10


def test_second_order_steps_written_out_as_in_the_paper() -> None:
    """Lu et al. 2022b, Alg. 2: x_i = (sigma_i / sigma_{i-1}) x - alpha_i (exp(-h_i) - 1) D, to clean data by DDIM."""
    schedule = SCHEDULES["cosine"]
    teacher, start, times = mixture(schedule), noise_of(4), [80.0, 53.0, 26.0, -1.0]
    x, predictions, half_log_snr = start, [], [0.5 * float(schedule.log_snr(time)) for time in times]
    for index in range(2):
        signal, noise = (value.tolist() for value in schedule.signal_and_noise(torch.tensor(times).double()))
        h = half_log_snr[index + 1] - half_log_snr[index]
        predictions.append(teacher(x, same(times[index], 4)).x_0)
        d = predictions[-1]
        if index:
            r = (half_log_snr[index] - half_log_snr[index - 1]) / h
            d = (1 + 1 / (2 * r)) * predictions[-1] - 1 / (2 * r) * predictions[-2]
        x = noise[index + 1] / noise[index] * x - signal[index + 1] * math.expm1(-h) * d
    wanted = teacher(x, same(times[2], 4)).x_0  # the last step lands on x_0 itself
    found = progressive_target(teacher, start, 80, -1, 3, schedule, "dpm_solver_pp")
    assert (found - wanted).abs().max() < 1e-10
    assert (found - progressive_target(teacher, start, 80, -1, 3, schedule)).abs().max() > 1e-4


@pytest.mark.parametrize(("end", "share"), [(-1.0, 0.6), (20.0, 0.3)])  # the last step to clean data is of first order
def test_second_order_is_nearer_to_many_steps(end: float, share: float) -> None:
    schedule = SCHEDULES["linear"]
    teacher, x_t, t, s = mixture(schedule), noise_of(50), 600.0, end
    many = progressive_target(teacher, x_t, t, s, 500, schedule)
    first, second = (
        (progressive_target(teacher, x_t, t, s, 16, schedule, solver) - many).square().mean()
        for solver in ("ddim", "dpm_solver_pp")
    )
    assert second < share * first


def test_a_corrected_step_is_nearer_still_where_the_path_bends_most() -> None:
    """From pure noise, with five steps: where a student's largest error has come from."""
    schedule = SCHEDULES["linear"]
    teacher, x_t = mixture(schedule), noise_of(50)
    many = progressive_target(teacher, x_t, 999.0, 749.0, 250, schedule)
    second, corrected = (
        (progressive_target(teacher, x_t, 999.0, 749.0, 5, schedule, solver) - many).square().mean()
        for solver in ("dpm_solver_pp", "unipc")
    )
    assert corrected < 0.5 * second


@pytest.mark.parametrize("end", [-1.0, 10.0])
def test_of_one_point_the_target_is_the_point(schedule: NoiseSchedule, end: float) -> None:
    point = torch.tensor([0.3, -0.9, 0.5], dtype=torch.float64)
    teacher, x_t = PointDenoiser(schedule, point), noise_of(4)
    t, s = same(len(schedule) - 1.0, 4), same(15.0, 4)
    targets = [
        *(progressive_target(teacher, x_t, len(schedule) - 1.0, end, 3, schedule, solver) for solver in SOLVERS),
        consistency_target(teacher, teacher, x_t, t, s, same(end, 4), schedule),
    ]
    for target in targets:
        assert (target - point).abs().max() < 1e-10


def test_a_student_that_does_the_teachers_steps_is_consistent(schedule: NoiseSchedule) -> None:
    """Where the rest of the way is already right, adding a step in front of it keeps it right."""
    teacher, end, rest = mixture(schedule), 3.0, 2

    def student(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        x_0 = progressive_target(teacher, x_t, float(t[0]), end, rest, schedule)
        return Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, schedule))

    t, x_t = same(len(schedule) - 1.0, 4), noise_of(4)
    s = t + (end - t) / (rest + 1)
    found = consistency_target(teacher, student, x_t, t, s, same(end, 4), schedule)
    wanted = progressive_target(teacher, x_t, float(t[0]), end, rest + 1, schedule)
    assert (found - wanted).abs().max() < 1e-10


def test_where_the_teacher_arrives_the_student_has_no_say(schedule: NoiseSchedule) -> None:
    def refusing(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        return Prediction(torch.full_like(x_t, math.nan), torch.full_like(x_t, math.nan))

    teacher, x_t = mixture(schedule), noise_of(2)
    end = torch.tensor([-1.0, 7.0], dtype=torch.float64)
    found = consistency_target(teacher, refusing, x_t, same(20, 2), end, end, schedule)
    for row, s in enumerate(end.tolist()):
        alone = progressive_target(teacher, x_t[row : row + 1], 20.0, s, 1, schedule)
        assert (found[row] - alone[0]).abs().max() < 1e-12


def test_a_clipped_teacher_gives_targets_in_range() -> None:
    schedule = SCHEDULES["linear"]
    wild: Denoiser = GaussianDenoiser(schedule, torch.full((3,), 0.9).double(), torch.eye(3).double())
    x_t = 3 * noise_of(50)
    for teacher, inside in ((wild, False), (clipped(wild, schedule), True)):
        target = progressive_target(teacher, x_t, 700.0, 200.0, 4, schedule)
        assert bool(target.abs().max() <= 1 + 1e-12) is inside


def test_the_loss_is_the_squared_error_of_v(schedule: NoiseSchedule) -> None:
    x_t, output, target = noise_of(4, 1), noise_of(4, 2), noise_of(4, 3)
    t = torch.tensor([0, 5, 20, len(schedule) - 1], dtype=torch.float64)
    eps = process.eps_from_x_0(target, x_t, t, schedule)
    wanted = (output - process.v_from_x_0_eps(target, eps, t, schedule)).square().mean(1)
    assert (student_loss(output, target, x_t, t, schedule, "v") / wanted - 1).abs().max() < 1e-9
    as_x_0 = process.x_0_from_v(output, x_t, t, schedule)
    assert (student_loss(as_x_0, target, x_t, t, schedule, "x_0") / wanted - 1).abs().max() < 1e-9


def test_the_step_back_is_exact_at_every_pair_of_times(schedule: NoiseSchedule) -> None:
    x_t, x_0 = noise_of(1), noise_of(1, 1)
    times = [-1.0, 0.0, 0.5, 7.0, len(schedule) - 2.0, len(schedule) - 1.0]
    for index, t in enumerate(times):
        for s in times[:index]:
            x_s = one_step(x_0, x_t, t, s, schedule)
            assert (x_0_of_step(x_t, x_s, same(t, 1), same(s, 1), schedule) - x_0).abs().max() < 1e-7


def test_what_a_student_predicts() -> None:
    assert [student_parameterization(name) for name in ("eps", "mu", "v", "x_0")] == ["v", "v", "v", "x_0"]
