"""How many bits a model needs for pictures that it has never seen: the variational bound, term by term."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.data.progress import Progress, ProgressFactory, silent
from ddpm.diffusion.bits import BitsPerDim, NoiseLevel
from ddpm.diffusion.likelihood import LevelTerm, bits_per_dim, level_terms, prior_term, stratified_times, time_strata
from ddpm.diffusion.samplers.ancestral import ReverseVariance
from ddpm.errors import ConfigError, DataError, SamplingError
from ddpm.estimate import Estimate, mean_estimate
from ddpm.evaluation.likelihood.unseen import Unseen, choose, full_precision
from ddpm.model import Model

STRATA = 50
"""Ranges of times, of which a picture sees one time each: 20 times cheaper than all of T = 1000. On the digits, the
standard error with 25, 50, 100 and 200 is 0.0240, 0.0226, 0.0223 and 0.0222 bits/dim: pictures differ more."""

_VALUES_AT_ONCE = 2**18  # values of x_t in memory at once: activations stay under about 2 GiB


class Keeper(Protocol):
    """Keeps arrays by all that decides what is in them, as JSON values: work that was killed goes on."""

    def get(self, key: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """Return what was put there, or None."""
        ...

    def put(self, key: Mapping[str, Any], rows: NDArray[np.float64]) -> None:
        """Keep an array."""
        ...


def bits_per_dim_of(
    model: Model,
    data: Store | Pictures,
    *,
    n: int | None = None,
    seed: int = 0,
    draws: int = 1,
    strata: int | None = STRATA,
    variance: ReverseVariance | None = None,
    batch_size: int | None = None,
    keeper: Keeper | None = None,
    progress: ProgressFactory = silent,
) -> BitsPerDim:
    """Estimate the variational bound of a model on pictures, without bias (Ho et al. 2020, Eq. 5).

    The network runs in the precision of its weights, without autocast; all else is float64. What is measured is the
    model that samples: with its clipping, and by default with its variance.

    Args:
        model: the model.
        data: a store, whose held-out pictures are meant; or pictures [N, H, W, C] in the dtype of the model's data.
        n: at most so many pictures, chosen by the seed; none: all.
        seed: decides pictures, times and noise.
        draws: independent repeats of times and noise a picture.
        strata: ranges of times, of which a picture sees one time each; none: every time, T network passes.
        variance: of the reverse process; none: what it samples with.
        batch_size: pictures at once; none: what fits in about 2 GiB.
        keeper: keeps the terms of each batch of this model, so that a measurement that was killed goes on; none:
            nothing is kept.
        progress: told of every network pass.

    Raises:
        DataError: for data without levels, of another shape or range than the model's, or fewer than 2 pictures.
        ConfigError: for a network in half precision, a variance that the model has not, or numbers out of range.
        SamplingError: if the network returns numbers that are not finite.
    """
    unseen = choose(model, data, n, seed)
    if model.codec.levels is None:
        raise DataError(
            "the data are continuous: L_0 is the mass of a level, and they have no levels; "
            "the likelihood of the probability-flow ODE is defined for them"
        )
    if draws < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"{draws} draws, batches of {batch_size}; expected at least 1")
    last = len(model.schedule) - 1
    ranges = time_strata(model.schedule, last if strata is None else min(strata, last))
    batches = unseen.batches(batch_size or max(1, _VALUES_AT_ONCE // unseen.dimensions))
    with full_precision(model) as precision:
        variance = variance or model.sampling.variance or model.variance
        recipe = {
            "score": "variational bound",
            **unseen.recipe,
            "draws": draws,
            "times_a_picture": len(ranges) + 1,
            "variance": variance,
            "precision": f"network {precision}, terms float64",
        }
        passes, rows = draws * (len(ranges) + 1), []
        with progress(len(batches) * passes, "bits/dim") as shown:
            for batch in batches:
                key = {**recipe, "numbers": batch.tolist()}
                found = keeper.get(key) if keeper else None
                if found is None:
                    found = _rows(unseen, batch, ranges, draws, variance, shown)
                    if keeper:
                        keeper.put(key, found)
                else:
                    shown.update(passes)
                rows.append(found)
    return _summary(torch.from_numpy(np.concatenate(rows)), ranges, recipe)


def _rows(
    unseen: Unseen,
    numbers: NDArray[np.int64],
    ranges: Sequence[range],
    draws: int,
    variance: ReverseVariance,
    shown: Progress,
) -> NDArray[np.float64]:
    """Return a row a picture: L_T, L_0, every stratum in bits/dim, then the squared error of L_0 and every stratum."""
    model, x_0, noise = unseen.model, unseen.x_0(numbers), unseen.noise(numbers)
    assert model.codec.levels is not None  # checked before the first network pass
    repeats = []
    for draw in range(draws):
        terms = level_terms(
            unseen.denoiser(numbers, clip=model.sampling.clip),
            model.schedule,
            x_0,
            noise,
            levels=model.codec.levels,
            variance=variance,
            strata=ranges,
            times=stratified_times(ranges, unseen.seed, noise.pictures, draw),
            first_draw=draw * (len(ranges) + 1),
        )
        repeats.append(_columns(terms, unseen.dimensions, shown))
    prior = bits_per_dim(prior_term(x_0, model.schedule), unseen.dimensions)
    rows: NDArray[np.float64] = torch.cat([prior.unsqueeze(1), torch.stack(repeats).mean(0)], 1).cpu().numpy()
    return rows


def _columns(terms: Iterator[LevelTerm], dimensions: int, shown: Progress) -> Tensor:
    bits, errors = [], []
    for term in terms:
        bits.append(bits_per_dim(term.nats, dimensions))
        errors.append(term.squared_error)
        shown.update(1)
    return torch.stack([*bits, *errors], 1)


def _summary(rows: Tensor, ranges: Sequence[range], recipe: Mapping[str, Any]) -> BitsPerDim:
    if not bool(rows.isfinite().all()):
        raise SamplingError(
            "the network returned numbers that are not finite; its weights are damaged, or diverged while training"
        )
    prior, bits, errors = rows.split_with_sizes([1, len(ranges) + 1, len(ranges) + 1], 1)
    return BitsPerDim(
        total=mean_estimate(prior.squeeze(1) + bits.sum(1)),
        prior=mean_estimate(prior.squeeze(1)),
        levels=tuple(
            NoiseLevel(times[0], times[-1], mean_estimate(part), _root(mean_estimate(error)))
            for times, part, error in zip([range(1), *ranges], bits.unbind(1), errors.unbind(1), strict=True)
        ),
        recipe=recipe,
    )


def _root(squared: Estimate) -> Estimate:
    """Return the root of a mean squared error on [-1, 1], in units of 0 to 255; its error by the delta method."""
    root = squared.value**0.5
    slope = 0.5 / root if root > 0 else 0.0
    return Estimate(127.5 * root, 127.5 * slope * squared.error)
