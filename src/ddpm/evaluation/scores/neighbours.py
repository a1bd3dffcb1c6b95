"""Scores by nearest neighbours: can samples be told from real pictures, and are they copies?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores.distances import clouds, nearest

Features = NDArray[np.float64]


def two_sample_accuracy(first: Features, second: Features) -> float:
    """Return the leave-one-out accuracy of a 1-nearest-neighbour classifier that tells two sets apart.

    0.5 means that they cannot be told apart; near 1 that they differ; below 0.5 that one set copies the other
    (Lopez-Paz & Oquab 2017; Xu et al. 2018).

    Args:
        first: [N, D].
        second: [N, D], as many: otherwise 0.5 would not be chance.

    Raises:
        DataError: if the sets differ in size.
    """
    if len(first) != len(second):
        raise DataError(f"sets of {len(first)} and {len(second)} rows; expected as many, so that chance is 0.5")
    (together,) = clouds(np.concatenate([first, second]))
    is_first = np.arange(len(together.rows)) < len(first)
    other = nearest(together, together, 1)[1][:, 0]
    return float((is_first[other] == is_first).mean())


def nearest_distances(features: Features, reference: Features) -> Features:
    """Return the distance of each row [N, D] to its nearest row of `reference` [M, D], [N]."""
    queries, given = clouds(features, reference)
    distances: Features = np.sqrt(nearest(queries, given, 1)[0][:, 0])
    return distances


def copying_ratio(samples: Features, held_out: Features, train: Features) -> float:
    """Return the median distance of samples to the training set over that of held-out pictures.

    1 is perfect; far below 1, the samples are copies of training pictures; far above, they are off the data.

    Raises:
        DataError: if the held-out pictures are copies of the training pictures themselves.
    """
    expected = float(np.median(nearest_distances(held_out, train)))
    if expected == 0:
        raise DataError(
            "at least half of the held-out pictures are in the training set too; copying cannot be measured"
        )
    return float(np.median(nearest_distances(samples, train))) / expected
