"""Kernel distance between two sets of features (KID): unbiased at any number of pictures, with its error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.diffusion.noise import stream
from ddpm.errors import DataError
from ddpm.estimate import Estimate
from ddpm.evaluation.scores.checks import check_features, check_same_columns

Array = NDArray[np.float64]

LEAST = 20
"""Fewest pictures of either set: below, neither the distance nor its error mean anything."""


def kernel_distance(
    first: NDArray[Any], second: NDArray[Any], *, seed: int = 0, subsets: int = 100, subset_size: int = 1000
) -> Estimate:
    """Return the squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 (Bińkowski et al. 2018, Sec. 4).

    The mean over random subsets of the unbiased estimator; it may be negative. Subsets hold at most half of the
    smaller set, whose expectation is the same, so that their spread tells of the sampling error: with subsets of b
    of n rows, drawn without replacement and of variance s^2, that of the mean of `subsets` of them is
    s^2 (b / (n - b) + 1 / subsets). (Published tables give s / subsets^(1/2) or s, which depend on the subset size.)

    Args:
        first: [N, D].
        second: [M, D].
        seed: 0 to 2^64 - 1, of the choice of subsets.
        subsets: number of subsets, at least 2.
        subset_size: rows of each set in a subset; less where the sets are small.

    Raises:
        DataError: for fewer than 20 rows, rows that are all the same, another number of columns, values that are not
            finite, fewer than two subsets, or subsets of fewer than two rows.
    """
    check_features(first, "pictures", LEAST)
    check_features(second, "pictures", LEAST)
    check_same_columns(first.shape[1], second.shape[1])
    if subsets < 2 or subset_size < 2:
        raise DataError(f"{subsets} subsets of {subset_size} rows; expected at least 2 subsets of at least 2 rows")
    least = min(len(first), len(second))
    size = min(subset_size, least // 2)
    values = np.empty(subsets)
    for number in range(subsets):
        random = stream(seed, "KID subsets", number)
        chosen = [np.sort(random.choice(len(rows), size, replace=False)) for rows in (first, second)]
        values[number] = squared_discrepancy(first[chosen[0]], second[chosen[1]])
    return Estimate(float(values.mean()), float(values.std(ddof=1) * (size / (least - size) + 1 / subsets) ** 0.5))


def squared_discrepancy(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the unbiased estimator of the squared MMD between rows [n, D] and [m, D] (Gretton et al. 2012, Eq. 3).

    Products are summed in float64: the result is a small difference of large means.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    between = float(_kernel(first, second).mean())
    return _mean_within(first) + _mean_within(second) - 2 * between


def _mean_within(rows: Array) -> float:
    kernel = _kernel(rows, rows)
    return float(kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1))


def _kernel(first: Array, second: Array) -> Array:
    base: Array = first @ second.T / first.shape[1] + 1
    return base * base * base
