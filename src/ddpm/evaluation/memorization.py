"""Memorization: are samples copies of training pictures?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.evaluation.checks import check_features, check_same_columns
from ddpm.evaluation.distances import Cloud, clouds, nearest

NEIGHBOURS = 50
"""Training pictures that make the typical distance (Carlini et al. 2023, Sec. 5.1), fewer where there are fewer."""

NEAR = 0.5
"""A near-copy is closer than this share of the typical distance (their alpha)."""


@dataclass(frozen=True, eq=False)
class Memorization:
    """The nearest training picture of every sample, and how many samples are near-copies.

    Attributes:
        nearest: int64 [N], row of the training set.
        distances: float64 [N], Euclidean distance to it.
        ratios: float64 [N], distance over the mean distance of that sample to its 50 nearest training pictures: 0 for
            an exact copy, at most 1.
        is_near_copy: bool [N], whether the ratio is below 0.5.
        share: of the samples, near-copies.
        share_held_out: of the held-out pictures, by the same rule: the base line. Duplicates in the data count here.
        samples: number of samples.
        held_out: number of held-out pictures.
    """

    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]
    ratios: NDArray[np.float64]
    is_near_copy: NDArray[np.bool_]
    share: float
    share_held_out: float
    samples: int
    held_out: int


def memorization(samples: NDArray[Any], train: NDArray[Any], held_out: NDArray[Any]) -> Memorization:
    """Find near-copies of training pictures among samples.

    A fixed distance would call every sample of a dense region a copy, and none of a sparse one. So, after Carlini et
    al. (2023, Sec. 5.1), a sample is a near-copy if its distance to the nearest training picture is less than half of
    the mean distance to its 50 nearest. Held-out pictures, which cannot be copies, are judged by the same rule: only a
    share above theirs, beyond sampling error, means that the model repeats what it was shown.

    Args:
        samples: [N, D], pixels or features.
        train: [M, D].
        held_out: [L, D].

    Raises:
        DataError: for fewer than 3 training pictures, no samples or held-out pictures, rows that are all the same,
            another number of columns, or values that are not finite.
    """
    check_features(train, "training pictures", 3)
    check_same_columns(samples.shape[-1], train.shape[1])
    check_same_columns(held_out.shape[-1], train.shape[1])
    for features, what in ((samples, "samples"), (held_out, "held-out pictures")):
        check_features(features, what, 1, may_be_same=True)
    sampled, unseen, seen = clouds(samples, held_out, train)
    distances, rows, ratios = _ratios(sampled, seen)
    near = ratios < NEAR
    base = _ratios(unseen, seen)[2] < NEAR
    return Memorization(
        nearest=rows,
        distances=distances,
        ratios=ratios,
        is_near_copy=near,
        share=float(near.mean()),
        share_held_out=float(base.mean()),
        samples=len(samples),
        held_out=len(held_out),
    )


def _ratios(queries: Cloud, train: Cloud) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    squared, rows = nearest(queries, train, min(NEIGHBOURS, len(train.rows)))
    distances = np.sqrt(squared)
    typical = distances.mean(1)
    # where all 50 are copies of the sample, 0 / 0: it is one of them
    ratios = np.divide(distances[:, 0], typical, out=np.zeros_like(typical), where=typical > 0)
    return distances[:, 0], rows[:, 0], ratios
