"""Energy distance between two sets of points: no kernel, no Gaussian, and zero for equal distributions alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.evaluation.scores.checks import check_features, check_same_columns

Array = NDArray[np.float64]

LEAST = 20
"""Fewest points of either set."""

_BLOCK_VALUES = 1 << 21  # of differences at a time


def energy_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| (Székely & Rizzo 2013, Eq. 5), unbiased: it may be negative.

    Distances are Euclidean, in the unit of the data, and so is the result.

    Args:
        first: [N, D].
        second: [M, D].

    Raises:
        DataError: for fewer than 20 rows, rows that are all the same, another number of columns, or values that are
            not finite.
    """
    check_features(first, "points", LEAST)
    check_features(second, "points", LEAST)
    check_same_columns(first.shape[1], second.shape[1])
    x, y = first.astype(np.float64), second.astype(np.float64)
    between = _sum_of_distances(x, y) / (len(x) * len(y))
    within = [_sum_of_distances(rows, rows) / (len(rows) * (len(rows) - 1)) for rows in (x, y)]
    return 2 * between - sum(within)


def _sum_of_distances(first: Array, second: Array) -> float:
    return float(sum(np.sqrt(np.square(part[:, None] - second).sum(2)).sum() for part in _blocks(first, second.size)))


def _blocks(rows: Array, values: int) -> Iterator[Array]:
    step = max(1, _BLOCK_VALUES // values)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
