"""Inception score: are the samples clear, and are they of many kinds?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.estimate import Estimate
from ddpm.evaluation.scores.checks import check_finite
from ddpm.words import counted


def inception_score(probabilities: NDArray[Any], *, splits: int = 10) -> Estimate:
    """Return exp(mean of KL(p(y|x) || p(y))) (Salimans et al. 2016, Sec. 4), between 1 and the number of classes.

    The mean over consecutive splits of the samples, each with its own p(y), as published. The error is the standard
    deviation over splits divided by splits^(1/2); the "±" of published tables is the standard deviation itself.

    Args:
        probabilities: [N, K], p(y|x) of each sample by a classifier; rows sum to 1.
        splits: parts of the samples, at least 2.

    Raises:
        DataError: for fewer than two samples a split, or rows that are no probabilities.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise DataError(f"probabilities have the shape {probabilities.shape}; expected [samples, at least 2 classes]")
    if splits < 2 or len(probabilities) < 2 * splits:
        raise DataError(
            f"{counted(len(probabilities), 'sample')} in {counted(splits, 'split')}; expected at least 2 splits of 2 "
            "samples"
        )
    check_finite(probabilities, "samples")
    if probabilities.min() < 0 or np.abs(probabilities.sum(1, dtype=np.float64) - 1).max() > 1e-3:
        raise DataError("rows of probabilities are negative or do not sum to 1; expected the softmax of a classifier")
    scores = [_score(part.astype(np.float64)) for part in np.array_split(probabilities, splits)]
    return Estimate(float(np.mean(scores)), float(np.std(scores, ddof=1) / splits**0.5))


def _score(probabilities: NDArray[np.float64]) -> float:
    marginal = probabilities.mean(0)
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1)) - np.log(np.where(marginal > 0, marginal, 1))
    return float(np.exp((probabilities * logarithms).sum(1).mean()))  # 0 log 0 is 0
