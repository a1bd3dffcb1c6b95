"""Fréchet distance between two sets of features, by the Gaussians that have their moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError

Features = NDArray[np.float64]


def frechet_distance(first: Features, second: Features) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, Eq. 6).

    The square root is taken through its trace, which is that of (R1 C2 R1)^(1/2) with R1 = C1^(1/2), a symmetric
    matrix: eigenvalues are real, so nothing complex can come out, and singular covariances do no harm.

    Args:
        first: [N, D].
        second: [M, D].

    Raises:
        DataError: for fewer than two rows, another number of columns, or values that are not finite.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2:
            raise DataError(f"features of shape {features.shape}; a Fréchet distance needs at least 2 rows")
        if not np.isfinite(features).all():
            raise DataError("features hold values that are not finite; the pictures they come from are broken")
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features have {first.shape[1]} and {second.shape[1]} columns; expected the same number")
    mean_1, mean_2 = first.mean(0), second.mean(0)
    covariance_1, covariance_2 = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (first, second))
    values, vectors = np.linalg.eigh(covariance_1)
    root_1 = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.linalg.eigvalsh(root_1 @ covariance_2 @ root_1).clip(0)
    distance = np.square(mean_1 - mean_2).sum() + np.trace(covariance_1) + np.trace(covariance_2)
    return float(distance - 2 * np.sqrt(cross).sum())
