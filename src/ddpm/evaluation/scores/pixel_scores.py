"""Scores over raw pixels, for small pictures: they need no network, so nothing has to be downloaded or believed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.errors import DataError
from ddpm.evaluation.scores.certainty import CertaintyScore
from ddpm.evaluation.scores.frechet import frechet_distance_between
from ddpm.evaluation.scores.neighbours import copying_ratio, two_sample_accuracy
from ddpm.evaluation.scores.spread import spread
from ddpm.words import counted

Features = NDArray[np.float64]

MAX_DIMENSIONS = 1024
"""Largest number of values of a picture: beyond, distances between raw pixels say nothing about what is in them."""

LEAST = 20
"""Fewest samples, and fewest held-out pictures."""

_MOST_REFERENCE = 10_000  # training pictures compared with; neighbours take time and memory in proportion


@dataclass(frozen=True, slots=True)
class PixelScores:
    """The scores of a set of samples, each beside what held-out pictures reach.

    Attributes:
        samples: how many samples were scored.
        held_out: how many held-out pictures they were compared with.
        frechet_ratio: Fréchet distance to the training split over that of the held-out pictures; as many of each.
        two_sample_accuracy: of a 1-nearest-neighbour classifier, samples against held-out; 0.5 is perfect.
        copying_ratio: median distance to the nearest training picture over that of the held-out pictures.
        sure_ratio: share of samples that a classifier is sure of, over that of the held-out; none without classes.
        class_shares: share of samples by class; empty without classes.
    """

    samples: int
    held_out: int
    frechet_ratio: float
    two_sample_accuracy: float
    copying_ratio: float
    sure_ratio: float | None = None
    class_shares: tuple[float, ...] = ()

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def pixel_scores(pictures: Pictures, store: Store) -> PixelScores:
    """Score samples [N, H, W, C], in the dtype and levels of the data, against the store's two splits.

    Raises:
        DataError: if the pictures are too large for raw pixels, of another shape, or too few.
    """
    if pictures.shape[1:] != store.pictures.shape[1:]:
        raise DataError(
            f"samples are {pictures.shape[1:]}, the data {store.pictures.shape[1:]}; expected the same shape"
        )
    dimensions = int(np.prod(pictures.shape[1:]))
    if dimensions > MAX_DIMENSIONS:
        raise DataError(
            f"a picture has {dimensions:,} values; scores over raw pixels mean something up to {MAX_DIMENSIONS:,}"
        )
    if min(len(pictures), len(store.held_out)) < LEAST:
        raise DataError(
            f"{counted(len(pictures), 'sample')} and {counted(len(store.held_out), 'held-out picture')}; scores need "
            f"at least {LEAST} of each"
        )
    train_rows = spread(store.train, _MOST_REFERENCE)
    samples, train = _features(pictures, store), _features(store.pictures[train_rows], store)
    held_out = _features(store.pictures[store.held_out], store)
    copying = copying_ratio(samples, held_out, train)  # first, as it refuses data without any differences
    equal = min(len(samples), len(held_out))
    certainty = _certainty(samples, held_out, train, store.labels[train_rows]) if store.labels is not None else None
    return PixelScores(
        samples=len(samples),
        held_out=len(held_out),
        frechet_ratio=frechet_distance_between(samples[:equal], train)
        / frechet_distance_between(held_out[:equal], train),
        two_sample_accuracy=two_sample_accuracy(samples[:equal], held_out[:equal]),
        copying_ratio=copying,
        sure_ratio=certainty[0] if certainty else None,
        class_shares=certainty[1] if certainty else (),
    )


def _certainty(
    samples: Features, held_out: Features, train: Features, labels: NDArray[np.int64]
) -> tuple[float, tuple[float, ...]] | None:
    """Return the ratio of sure shares and the shares of classes; none where no classifier can be had from the data."""
    try:
        score = CertaintyScore(train, labels)
    except DataError:
        return None
    of_samples, of_held_out = score(samples), score(held_out)
    return (of_samples.sure / of_held_out.sure, of_samples.class_shares) if of_held_out.sure else None


def _features(pictures: Pictures, store: Store) -> Features:
    low, high = store.value_range
    features: Features = (pictures.reshape(len(pictures), -1).astype(np.float64) - low) / (high - low)
    return features
