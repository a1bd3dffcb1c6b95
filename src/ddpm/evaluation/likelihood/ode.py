"""How many bits the probability-flow ODE of a model needs for pictures that it has never seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.data.progress import Progress, ProgressFactory, silent
from ddpm.diffusion.likelihood import bits_per_dim
from ddpm.diffusion.noise import stream
from ddpm.diffusion.ode_likelihood import MOST_EXACT, PROBES, STEPS, ode_log_likelihood
from ddpm.errors import ConfigError, SamplingError
from ddpm.estimate import Estimate, mean_estimate
from ddpm.evaluation.likelihood.unseen import Unseen, choose, full_precision
from ddpm.model import Model
from ddpm.words import counted

_VALUES_AT_ONCE = 2**17  # values of x_t in memory at once: half as many as without a gradient


@dataclass(frozen=True, slots=True)
class OdeBitsPerDim:
    """The likelihood of a model's probability-flow ODE on a data set.

    Attributes:
        total: mean of -log2 p per dimension. Of discrete data it is an upper bound, by uniform dequantisation (Theis
            et al. 2016, Sec. 3.1); of continuous data, the density where their range is [-1, 1]: it may be negative.
        divergence_error: the part of the standard error that comes from random probes; 0 where the divergence is exact.
        integration_error: mean change over the first batch if the integrator takes half the steps; at these steps the
            error is about a fifteenth of it where the network is smooth.
        recipe: how it was measured, in plain JSON values.
    """

    total: Estimate
    divergence_error: float
    integration_error: float
    recipe: Mapping[str, Any]

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "bits_per_dim": asdict(self.total),
            "divergence_error": self.divergence_error,
            "integration_error": self.integration_error,
            "recipe": dict(self.recipe),
        }


def ode_bits_per_dim_of(
    model: Model,
    data: Store | Pictures,
    *,
    n: int | None = None,
    seed: int = 0,
    steps: int = STEPS,
    probes: int | None = None,
    clip: bool = False,
    batch_size: int | None = None,
    progress: ProgressFactory = silent,
) -> OdeBitsPerDim:
    """Measure the likelihood of a model's probability-flow ODE on pictures (Song et al. 2021, Sec. 4.3).

    Discrete data are dequantised: uniform noise, one bin wide, makes them continuous, and the bin's width turns the
    density into a mass. `ddpm.diffusion.ode_likelihood` says what is exact, and of which model.

    Args:
        model: the model.
        data: a store, whose held-out pictures are meant; or pictures [N, H, W, C] in the dtype of the model's data.
        n: at most so many pictures, chosen by the seed; none: all.
        seed: decides pictures, dequantisation and probes.
        steps: of the integrator, at least 2; each costs four network passes and their gradients.
        probes: random directions of the divergence, at least 2; none: exact up to 64 dimensions, else 2.
        clip: whether x_0 is clipped to the range of the data. Dequantised values leave it by half a bin, and there a
            clipped model has next to no density: several bits/dim are lost at few levels.
        batch_size: pictures at once; none: what fits in about 2 GiB.
        progress: told of every step of the integrator.

    Raises:
        DataError: for data of another shape or range than the model's, or fewer than 2 pictures.
        ConfigError: for a network in half precision, or numbers out of range.
        SamplingError: if the network returns numbers that are not finite.
    """
    unseen = choose(model, data, n, seed)
    if steps < 2 or (batch_size is not None and batch_size < 1):
        raise ConfigError(
            f"{counted(steps, 'step')}, batches of {batch_size}; expected at least 2 steps, and 1 picture"
        )
    exact = probes is None and unseen.dimensions <= MOST_EXACT
    directions = unseen.dimensions if exact else PROBES if probes is None else probes
    batches = unseen.batches(batch_size or max(1, _VALUES_AT_ONCE // unseen.dimensions))
    with (
        full_precision(model) as precision,
        progress(steps * len(batches) + steps // 2, "bits/dim of the ODE") as shown,
    ):
        measured = [_bits(unseen, batch, steps, probes, clip, shown) for batch in batches]
        coarse = _bits(unseen, batches[0], steps // 2, probes, clip, shown)[0]
    bits, errors = (torch.cat(parts) for parts in zip(*measured, strict=True))
    if not bool(bits.isfinite().all()):
        raise SamplingError(
            "the likelihood is not finite: the network's weights are damaged, or the integrator needs more steps"
        )
    recipe = {
        "score": "probability-flow ODE",
        **unseen.recipe,
        "clip": clip and model.codec.clip_range is not None,
        "is_bound": model.codec.levels is not None,
        "dequantisation": "none" if model.codec.levels is None else "uniform",
        "steps": steps,
        "integrator": "Runge-Kutta 4 in log tan(phi / 2)",
        "divergence": "exact" if exact else f"Hutchinson, {directions} Rademacher probes",
        "precision": f"network {precision}, state float64",
    }
    return OdeBitsPerDim(
        total=mean_estimate(bits),
        divergence_error=float(errors.square().sum().sqrt()) / len(errors),
        integration_error=float((coarse - measured[0][0]).abs().mean()),
        recipe=recipe,
    )


def _bits(
    unseen: Unseen, numbers: NDArray[np.int64], steps: int, probes: int | None, clip: bool, shown: Progress
) -> tuple[Tensor, Tensor]:
    """Return bits/dim and their standard error by the divergence, [B] each."""
    model, dimensions = unseen.model, unseen.dimensions
    x_0, log_width = unseen.x_0(numbers), 0.0
    if model.codec.levels is not None:
        width = 2 / (model.codec.levels - 1)
        x_0, log_width = x_0 + width * _uniform(unseen, numbers).to(x_0), dimensions * math.log(width)
    likelihood = ode_log_likelihood(
        unseen.denoiser(numbers, clip=clip),
        model.schedule,
        x_0,
        unseen.noise(numbers),
        steps=steps,
        probes=probes,
        on_step=lambda: shown.update(1),
    )
    bits = bits_per_dim(-likelihood.log_density - log_width, dimensions)
    return bits.cpu(), bits_per_dim(likelihood.divergence_error, dimensions).cpu()


def _uniform(unseen: Unseen, numbers: NDArray[np.int64]) -> Tensor:
    """Return the dequantisation of each picture, uniform in [-1/2, 1/2), float64 [B, C, H, W]."""
    height, width, channels = unseen.model.picture_shape
    drawn = [stream(unseen.seed, "dequantisation", int(i)).random((channels, height, width)) for i in numbers]
    return torch.from_numpy(np.stack(drawn)) - 0.5
