"""Precision, recall, density and coverage: are samples like the data, and are all of the data among the samples?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores.checks import check_features, check_same_columns
from ddpm.evaluation.scores.distances import balls, clouds, nearest


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the balls around real pictures and samples hold; a ball reaches to the k-th nearest of the same set.

    Attributes:
        precision: share of samples in the ball of some real picture (Kynkäänniemi et al. 2019, Eq. 2), 0 to 1.
        recall: share of real pictures in the ball of some sample (the same, Eq. 3), 0 to 1.
        density: real balls that hold a sample, mean over samples, over k (Naeem et al. 2020, Eq. 4); 1 for equal
            distributions, more where samples crowd where the data are dense.
        coverage: share of real pictures whose ball holds a sample (the same, Eq. 6), 0 to 1; 1 - 2^-k for equal
            distributions and sizes, roughly.
        k: which neighbour a ball reaches to.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def coverage(real: NDArray[Any], samples: NDArray[Any], *, k: int = 5) -> Coverage:
    """Return precision, recall, density and coverage of features [N, D] and [M, D].

    A row is no neighbour of its own, its duplicates are; the boundary belongs to a ball. Published precision and recall
    use k = 3 (Kynkäänniemi et al. 2019, on 50,000 pictures), density and coverage k = 5 (Naeem et al. 2020, on 10,000).
    All four depend on k, N and M: compare only like with like.

    Memory beside the features: one float32 copy of them and about 150 MB.

    Raises:
        DataError: for `k` below 1, not more than `k` rows, rows that are all the same, another number of columns, or
            values that are not finite.
    """
    if k < 1:
        raise DataError(f"k = {k}; expected the number of a neighbour, 1 or more")
    check_features(real, "real pictures", k + 1)
    check_features(samples, "samples", k + 1)
    check_same_columns(real.shape[1], samples.shape[1])
    sampled, given = clouds(samples, real)
    radii = [nearest(cloud, cloud, k)[0][:, -1] for cloud in (given, sampled)]
    holders = np.zeros(len(samples), dtype=np.int64)  # real balls that hold each sample
    recalled, covered = np.zeros(len(real), dtype=np.bool_), np.zeros(len(real), dtype=np.bool_)
    for rows, in_real, in_sampled in balls(given, sampled, *radii):
        holders += in_real.sum(0)
        covered[rows] = in_real.any(1)
        recalled[rows] = in_sampled.any(1)
    return Coverage(
        precision=float((holders > 0).mean()),
        recall=float(recalled.mean()),
        density=float(holders.mean() / k),
        coverage=float(covered.mean()),
        k=k,
    )
