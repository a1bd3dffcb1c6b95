"""Samplers: generators over one denoiser contract. Each reads schedule and prediction from what it is given."""

from __future__ import annotations

from ddpm.diffusion.samplers.adaptive import adaptive
from ddpm.diffusion.samplers.ancestral import ddpm
from ddpm.diffusion.samplers.ddim import ddim, ddim_invert
from ddpm.diffusion.samplers.deis import deis
from ddpm.diffusion.samplers.dpm_solver_pp import (
    dpm_solver_pp,
    dpm_solver_pp_2s,
    dpm_solver_pp_3m,
    dpm_solver_pp_sde,
)
from ddpm.diffusion.samplers.langevin import langevin, predictor_corrector
from ddpm.diffusion.samplers.linear_multistep import lms, pndm
from ddpm.diffusion.samplers.registry import SAMPLERS, SamplerEntry
from ddpm.diffusion.samplers.sigma_space import euler, heun
from ddpm.diffusion.samplers.step import AfterStep, SampleStep
from ddpm.diffusion.samplers.timesteps import CLEAN, Spacing, spaced_timesteps
from ddpm.diffusion.samplers.unipc import unipc

__all__ = [
    "CLEAN",
    "SAMPLERS",
    "AfterStep",
    "SampleStep",
    "SamplerEntry",
    "Spacing",
    "adaptive",
    "ddim",
    "ddim_invert",
    "ddpm",
    "deis",
    "dpm_solver_pp",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_sde",
    "euler",
    "heun",
    "langevin",
    "lms",
    "pndm",
    "predictor_corrector",
    "spaced_timesteps",
    "unipc",
]
