"""The likelihood of a model as scores of a report, beside what a model that knows nothing of pictures reaches."""

from __future__ import annotations

import math

from ddpm.data import ProgressFactory, Store
from ddpm.diffusion.bits import BitsPerDim
from ddpm.diffusion.ode_likelihood import PROBES
from ddpm.evaluation.likelihood.bound import Keeper, bits_per_dim_of
from ddpm.evaluation.likelihood.histogram import histogram_bits_per_dim
from ddpm.evaluation.likelihood.ode import OdeBitsPerDim, ode_bits_per_dim_of
from ddpm.evaluation.metrics import SEED, Score
from ddpm.model import Model

ODE_PICTURES = 16
"""Held-out pictures that the ODE is solved for: each costs hundreds of network passes and their gradients."""

_EXACT = 16  # values of a picture up to which its divergence is exact here: each costs as many gradients a pass


def bound_scores(
    model: Model, store: Store, n: int, keeper: Keeper, progress: ProgressFactory
) -> tuple[list[Score], BitsPerDim]:
    """Return the variational bound on `n` held-out pictures beside the histogram's bits/dim, and all of its terms.

    Raises:
        DdpmError: as `bits_per_dim_of`.
    """
    found = bits_per_dim_of(model, store, n=n, seed=SEED, keeper=keeper, progress=progress)
    score = Score(
        name="bits_per_dim",
        label="bits/dim, variational bound",
        value=found.total.value,
        n=n,
        meaning="of held-out; lower is better",
        error=found.total.error,
    )
    return [score, *histogram_scores(store)], found


def ode_scores(model: Model, store: Store, n: int, progress: ProgressFactory) -> tuple[list[Score], OdeBitsPerDim]:
    """Return the likelihood of the probability-flow ODE on at most 16 of `n` held-out pictures, and how it was had.

    Raises:
        DdpmError: as `ode_bits_per_dim_of`.
    """
    few = min(n, ODE_PICTURES)
    probes = None if math.prod(model.picture_shape) <= _EXACT else PROBES
    found = ode_bits_per_dim_of(model, store, n=few, seed=SEED, probes=probes, progress=progress)
    score = Score(
        name="ode_bits_per_dim",
        label="bits/dim, probability-flow ODE",
        value=found.total.value,
        n=few,
        meaning="of held-out; lower is better" if store.levels is not None else "of the density in [-1, 1]",
        error=found.total.error,
    )
    return [score], found


def histogram_scores(store: Store) -> list[Score]:
    """Return the bits/dim of the model that every model must beat; nothing for continuous data."""
    if store.levels is None:
        return []
    train, held_out = (store.pictures[rows] for rows in (store.train, store.held_out))
    simple = histogram_bits_per_dim(train, held_out, store.levels, value_range=store.value_range)
    return [
        Score(
            name="histogram_bits_per_dim",
            label="bits/dim, histogram of each pixel",
            value=simple.value,
            n=len(held_out),
            meaning="a model should be below it",
            error=simple.error,
        )
    ]
