"""What a person is told before the first step: that a sampler, or its times, will not give good pictures here."""

from __future__ import annotations

import torch

from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, spaced_timesteps
from ddpm.diffusion.samplers.linear_multistep import pndm
from ddpm.model import Model

_TRUE_STD = 0.3  # of the exactly known data: about that of pixels in [-1, 1]
_TOO_WIDE = 1.3  # more than any number of steps that gives pictures has been seen to stretch them


def cautions(model: Model, changed: Model) -> list[str]:
    """Return what speaks against how the changed model will be sampled, a sentence each.

    Args:
        model: as it was loaded.
        changed: with the sampling advice that was asked for.
    """
    return [sentence for sentence in (misuse(model, changed), divergence(changed)) if sentence is not None]


def misuse(model: Model, changed: Model) -> str | None:
    """Return what is wrong with another sampler, or other times, for a distilled model; none for any other model."""
    own, asked = model.sampling, changed.sampling
    if not model.is_distilled or (own.sampler, own.timesteps, own.options()) == (
        asked.sampler,
        asked.timesteps,
        asked.options(),
    ):
        return None
    return (
        f"this model was distilled for {own.sampler} at its own {own.steps} times; {asked.sampler} in {asked.steps} "
        "steps is not what it has learned: expect worse pictures"
    )


def divergence(model: Model) -> str | None:
    """Return that pndm diverges at these times, which is a property of the method; none if it does not."""
    advice = model.sampling
    if advice.sampler != "pndm":
        return None
    factor = stretched(model)
    if factor < _TOO_WIDE:
        return None
    return (
        f"pndm in {advice.steps} steps makes even exactly known data {factor:,.3g} times too wide: its steps are too "
        "long "
        "for it. Use more (10 with spacing=log_snr, its own), or unipc, the default sampler"
    )


def stretched(model: Model) -> float:
    """Return by how much pndm, at the model's times, overstates the deviation of Gaussian data known exactly.

    Every sampler is an affine map there, so one number follows the whole way of all: it takes milliseconds.
    """
    advice, schedule = model.sampling, model.schedule
    spacing = advice.spacing or SAMPLERS["pndm"].spacing
    mean, covariance = torch.zeros(1, dtype=torch.float64), torch.full((1, 1), _TRUE_STD**2, dtype=torch.float64)
    times = advice.timesteps or spaced_timesteps(advice.steps, schedule, spacing)
    x = torch.ones(1, 1, dtype=torch.float64)  # one deviation of x_T
    for step in pndm(
        GaussianDenoiser(schedule, mean, covariance), schedule, x, NoiseSource(0, [0], (1,)), timesteps=times
    ):
        x = step.x
    return float(x.abs()) / _TRUE_STD
