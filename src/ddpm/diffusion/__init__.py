"""The mathematics of diffusion: closed forms, denoisers, samplers. torch only: no network, file or global state."""

from ddpm.diffusion.denoiser import Denoiser, Prediction, clipped, network_denoiser, to_prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, SampleStep, ddim, ddpm, spaced_timesteps
from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, Transition, make_schedule

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "Denoiser",
    "NoiseSchedule",
    "NoiseSource",
    "Prediction",
    "SampleStep",
    "Transition",
    "clipped",
    "ddim",
    "ddpm",
    "make_schedule",
    "network_denoiser",
    "spaced_timesteps",
    "to_prediction",
]
