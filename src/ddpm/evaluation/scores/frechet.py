"""Fréchet distance between two sets of features, by the Gaussians that have their moments (FID, sFID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.diffusion.noise import stream
from ddpm.errors import DataError
from ddpm.estimate import Estimate
from ddpm.evaluation.scores.checks import check_features, check_finite, check_same_columns
from ddpm.terminal import in_bytes
from ddpm.words import counted

Array = NDArray[np.float64]

MOST_DIMENSIONS = 8192
"""Largest number of features of which a covariance is made: 512 MiB."""

_BLOCK = 4096  # rows taken to float64 at a time
_EVEN = 0.05  # least pivot of Cholesky over the largest: below it, the faster form has always been too imprecise
_PRECISE = 1e-9  # of the traces: how much rounding may change the cross term before the slower form takes over


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and covariance of features.

    Attributes:
        count: number of rows, N.
        mean: float64 [D].
        covariance: float64 [D, D], divided by N - 1.
    """

    count: int
    mean: Array
    covariance: Array


class RunningMoments:
    """Moments of features that arrive in batches, of any number of rows, in constant memory.

    Batches are centred before they are multiplied and merged by the update of Chan et al. (1979), in float64, so that
    a mean far from zero costs no digits.
    """

    def __init__(self, dimensions: int) -> None:
        """Begin with no rows of `dimensions` columns.

        Raises:
            DataError: if their covariance would not fit: raw pixels of pictures that are not small.
        """
        if dimensions > MOST_DIMENSIONS:
            raise DataError(
                f"the covariance of {dimensions:,} features takes {in_bytes(8 * dimensions**2)}; expected at most "
                f"{MOST_DIMENSIONS:,} features: use an extractor instead of raw pixels"
            )
        self.count = 0
        self._mean = np.zeros(dimensions)
        self._scatter = np.zeros((dimensions, dimensions))

    def add(self, features: NDArray[Any]) -> None:
        """Take in features [B, D]; B may be 0.

        Raises:
            DataError: for another number of columns, or values that are not finite.
        """
        if features.ndim != 2:
            raise DataError(f"features have the shape {features.shape}; expected [pictures, features]")
        check_same_columns(features.shape[1], len(self._mean))
        check_finite(features, "pictures")
        for start in range(0, len(features), _BLOCK):
            block = features[start : start + _BLOCK].astype(np.float64)
            mean = block.mean(0)
            block -= mean
            self._join(len(block), mean, block.T @ block)

    def merge(self, other: RunningMoments) -> None:
        """Take in what another has seen: of another process, or of another part of the data.

        Raises:
            DataError: for another number of columns.
        """
        check_same_columns(len(other._mean), len(self._mean))
        if other.count:
            self._join(other.count, other._mean, other._scatter)

    def _join(self, count: int, mean: Array, scatter: Array) -> None:
        total = self.count + count
        shift = mean - self._mean
        self._mean += shift * (count / total)
        self._scatter += scatter
        self._scatter += np.outer(shift, shift) * (self.count * count / total)
        self.count = total

    def moments(self) -> Moments:
        """Return the moments of all rows so far.

        Raises:
            DataError: for fewer than two rows, or rows that are all the same.
        """
        if self.count < 2:
            raise DataError(f"{counted(self.count, 'picture')}; a covariance needs at least 2 rows")
        if not self._scatter.any():
            raise DataError(f"the features of all {self.count:,} pictures are the same; they are constant or identical")
        return Moments(self.count, self._mean.copy(), self._scatter / (self.count - 1))


def moments_of(features: NDArray[Any]) -> Moments:
    """Return the moments of features [N, D].

    Raises:
        DataError: for fewer than two rows, rows that are all the same, or values that are not finite.
    """
    check_features(features, "pictures", 2)
    running = RunningMoments(features.shape[1])
    running.add(features)
    return running.moments()


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, Eq. 6), at least 0.

    The trace of (C1 C2)^(1/2) is the sum of the singular values of A = F1^T F2 with C = F F^T, real and not negative:
    nothing complex can come out. Where rounding cannot change the result, they are the roots of the eigenvalues of
    A A^T, which takes half the time.

    Raises:
        DataError: for another number of columns, or moments that are not finite.
    """
    check_same_columns(len(first.mean), len(second.mean))
    for moments in (first, second):
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.covariance).all()):
            raise DataError("moments hold values that are not finite; the features they come from are broken")
    traces = float(np.trace(first.covariance) + np.trace(second.covariance))
    cross = _trace_of_root(torch.from_numpy(first.covariance), torch.from_numpy(second.covariance), traces)
    return max(float(np.square(first.mean - second.mean).sum()) + traces - 2 * cross, 0.0)


def frechet_distance_between(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the Fréchet distance between features [N, D] and [M, D].

    With fewer rows than columns in either set, the trace of (C1 C2)^(1/2) is the sum of the singular values of
    X1 X2^T / ((N - 1) (M - 1))^(1/2), where X are the centred features: no matrix of D x D is made of the smaller set.

    Raises:
        DataError: for fewer than two rows, rows that are all the same, another number of columns, or values that are
            not finite.
    """
    check_features(first, "pictures", 2)
    check_features(second, "pictures", 2)
    check_same_columns(first.shape[1], second.shape[1])
    if min(len(first), len(second)) > first.shape[1]:
        return frechet_distance(moments_of(first), moments_of(second))
    means, factors = zip(*(_mean_and_factor(features) for features in (first, second)), strict=True)
    traces = sum(float(factor.square().sum()) for factor in factors)
    cross = float(torch.linalg.svdvals(factors[0] @ factors[1].T).sum())
    return max(float((means[0] - means[1]).square().sum()) + traces - 2 * cross, 0.0)


def frechet_estimate(first: NDArray[Any], second: Moments, *, seed: int = 0, resamples: int = 20) -> Estimate:
    """Return the Fréchet distance of features [N, D] to moments, and its standard error by the bootstrap over rows.

    The error is that of drawing these N pictures. It does not hold the bias: with few pictures the distance is too
    large (Chong & Forsyth 2020), and a resample, which repeats rows, larger still; so only their spread is used.

    Raises:
        DataError: for fewer than two rows, rows that are all the same, another number of columns, or values that are
            not finite.
    """
    value = frechet_distance(moments_of(first), second)
    features = torch.from_numpy(first.astype(np.float64) - second.mean)
    projected = features @ _factor(torch.from_numpy(second.covariance))
    norms = features.square().sum(1)
    spread = []
    for resample in range(resamples):
        rows = stream(seed, "Fréchet bootstrap", resample).integers(0, len(first), len(first))
        counts = torch.from_numpy(np.bincount(rows, minlength=len(first)).astype(np.float64))
        spread.append(_distance_of_resample(features, projected, norms, counts))
    return Estimate(value, float(np.std(spread, ddof=1)))


def _distance_of_resample(features: Tensor, projected: Tensor, norms: Tensor, counts: Tensor) -> float:
    """Return the distance but for the trace of the second covariance, which is the same in every resample."""
    total = counts.sum()
    mean, mean_projected = (counts @ features) / total, (counts @ projected) / total
    trace = (counts @ norms - total * mean.square().sum()) / (total - 1)
    weighted = (projected - mean_projected) * (counts / (total - 1)).sqrt()[:, None]
    gram = weighted.T @ weighted if len(weighted) > weighted.shape[1] else weighted @ weighted.T
    return float(mean.square().sum() + trace - 2 * torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum())


def _trace_of_root(first: Tensor, second: Tensor, traces: float) -> float:
    factors = _factor(first), _factor(second)
    product = factors[0].T @ factors[1]
    if all(_pivots_are_even(factor) for factor in factors):
        values = torch.linalg.eigvalsh(product @ product.T)
        rounding = torch.finfo(values.dtype).eps * values[-1]
        if (
            values[0] > rounding
            and float((rounding / (2 * values.clamp(min=rounding).sqrt())).sum()) < _PRECISE * traces
        ):
            return float(values.sqrt().sum())
    return float(torch.linalg.svdvals(product).sum())


def _pivots_are_even(factor: Tensor) -> bool:
    """Return whether the eigenvalues of F^T F may do, to save the time of an attempt that will be thrown away."""
    if factor.shape[0] != factor.shape[1]:
        return False
    pivots = factor.diagonal().square()
    return bool(pivots.min() > _EVEN * pivots.max())


def _factor(covariance: Tensor) -> Tensor:
    """Return F [D, r] with F F^T = C to rounding, r < D where C is singular: by Cholesky, else from the eigenvectors.

    Cholesky costs a tenth, and its rounding is as small beside the largest eigenvalue; singular matrices stop it.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    factor = vectors[:, kept] * values[kept].sqrt()
    return factor


def _mean_and_factor(features: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and F [min(N, D), D] with F^T F = C."""
    rows = torch.from_numpy(features.astype(np.float64))
    mean = rows.mean(0)
    centred = (rows - mean) / (len(rows) - 1) ** 0.5
    if len(rows) > rows.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return mean, centred
