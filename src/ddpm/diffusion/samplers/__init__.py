"""Samplers: generators over one denoiser contract. Each reads schedule and prediction from what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ddpm.diffusion.samplers.ancestral import ddpm
from ddpm.diffusion.samplers.ddim import ddim
from ddpm.diffusion.samplers.step import AfterStep, SampleStep
from ddpm.diffusion.samplers.timesteps import CLEAN, spaced_timesteps

SAMPLERS: dict[str, Callable[..., Iterator[SampleStep]]] = {"ddpm": ddpm, "ddim": ddim}
"""Every sampler by its name; all take (denoiser, schedule, x_T, noise, *, timesteps, after_step) and options."""

__all__ = ["CLEAN", "SAMPLERS", "AfterStep", "SampleStep", "ddim", "ddpm", "spaced_timesteps"]
