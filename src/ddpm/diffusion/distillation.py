"""Distillation: what a student that samples in few steps is trained towards, for any schedule and any times.

Everything rests on one identity. A DDIM step from x_t to x_s adds (alpha_s / sigma_s - alpha_t / sigma_t) x_0 to
x_t / sigma_t, with alpha = sqrt(alpha-bar) and sigma = sqrt(1 - alpha-bar) (Song et al. 2021, Eq. 12). So whatever lies
between t and s, there is exactly one x_0 with which a single step lands on the same x_s. After several steps of DDIM
it is the weighted mean of their predictions, with positive weights: it stays in the range of what the teacher predicts.
"""

from __future__ import annotations

from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from ddpm.diffusion import objectives, process
from ddpm.diffusion.denoiser import Denoiser, Parameterization, Prediction, to_prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import CLEAN, SAMPLERS
from ddpm.diffusion.schedules import NoiseSchedule, expand_like

TeacherSolver = Literal["unipc", "dpm_solver_pp", "ddim"]


def x_0_of_step(x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the x_0 with which one DDIM step from x_t lands on x_s [B, ...] (Salimans & Ho 2022, Alg. 2).

    x_0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).

    Args:
        x_t: [B, ...], where the step begins.
        x_s: [B, ...], where it should end.
        t: [B] or [], when it begins.
        s: [B] or [], when it ends; below t. -1 is clean data, where x_0 is x_s itself.
        schedule: the noise schedule.
    """
    signal_t, noise_t = schedule.signal_and_noise(t)
    signal_s, noise_s = schedule.signal_and_noise(s)
    kept = noise_s / noise_t
    return (x_s - expand_like(kept, x_t) * x_t) / expand_like(signal_s - kept * signal_t, x_t)


def progressive_target(
    teacher: Denoiser,
    x_t: Tensor,
    t: float,
    s: float,
    num_steps: int,
    schedule: NoiseSchedule,
    solver: TeacherSolver = "ddim",
) -> Tensor:
    """Return the x_0 [B, ...] with which one step of the student does `num_steps` steps of the teacher.

    Salimans & Ho 2022, Alg. 2, where `num_steps` is 2 and the solver DDIM; more steps need no intermediate students.

    Args:
        teacher: clipped as it is when it samples.
        x_t: [B, ...].
        t: when the student's step begins, for all.
        s: when it ends; t - s is at least `num_steps`. -1 is clean data.
        num_steps: of the teacher, evenly spaced from t to s.
        schedule: the noise schedule of both.
        solver: of the teacher: the name of a sampler without noise, in its default order.
    """
    times = [t + (s - t) * step / num_steps for step in range(num_steps)]
    unused = NoiseSource(0, [], x_t.shape[1:])
    steps = SAMPLERS[solver].run(teacher, schedule, x_t, unused, timesteps=times if s == CLEAN else [*times, s])
    x_s = next(islice(steps, num_steps - 1, None)).x
    ends = torch.tensor([t, s], dtype=torch.float64)
    return x_0_of_step(x_t, x_s, ends[0], ends[1], schedule)


@torch.no_grad()
def consistency_target(
    teacher: Denoiser, student: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, end: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Return the x_0 [B, ...] with which one step from t to `end` does the teacher's from t to s, then the student's.

    Heek et al. 2024, Alg. 1; with one segment, where `end` is -1 for all, it is Song et al. 2023, Alg. 2.

    Args:
        teacher: clipped as it is when it samples.
        student: as it is now; no gradient flows into the target.
        x_t: [B, ...].
        t: float64 [B].
        s: float64 [B], below t, and at least `end`; where it is `end`, the target is the teacher's own.
        end: float64 [B], the end of the segment that t lies in; -1 is clean data.
        schedule: the noise schedule of both.
    """
    x_s = _ddim_step(teacher(x_t, t), s, schedule)
    arrived = s <= end
    x_end = _ddim_step(student(x_s, s.where(~arrived, t)), end, schedule)  # where it has arrived, any time will do
    x_end = torch.where(arrived.to(x_s.device).reshape(-1, *[1] * (x_s.ndim - 1)), x_s, x_end)
    return x_0_of_step(x_t, x_end, t, end, schedule)


def student_loss(
    output: Tensor, target: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization
) -> Tensor:
    """Return (SNR + 1) |x_0-hat - target|^2, the mean over each sample [B]: the squared error of v.

    Salimans & Ho 2022, Sec. 4: at SNR 0, where the first step of every sampler begins, it still asks for a right x_0.

    Args:
        output: [B, ...], of the student, in the meaning of `parameterization`.
        target: [B, ...], the x_0 that it should predict.
        x_t: [B, ...], what it saw.
        t: float64 [B].
        schedule: the noise schedule.
        parameterization: "v" or "x_0"; one that divides by the signal cannot be trained to begin in pure noise.
    """
    x_0 = to_prediction(output, x_t, t, schedule, parameterization).x_0
    return objectives.squared_error(x_0, target) * (objectives.snr(t, schedule) + 1).to(target)


def student_parameterization(teacher: Parameterization) -> Parameterization:
    """Return what the student predicts: as its teacher, if that is stable at low SNR, else v.

    An x_0 made of eps divides its error by sqrt(alpha-bar), which hundreds of small steps correct and few do not
    (Salimans & Ho 2022, Sec. 4).
    """
    return teacher if teacher in ("v", "x_0") else "v"


def _ddim_step(prediction: Prediction, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    return process.q_sample(prediction.x_0, s, prediction.eps, schedule)
