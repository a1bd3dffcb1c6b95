"""How sure a classifier trained on real pictures is of samples, and which classes it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError

Features = NDArray[np.float64]

SURE = 0.8
"""Probability above which the classifier counts as sure."""

_FOLDS = 5  # of the calibration's cross-validation
_MOST = 5000  # training rows: the time of an SVM grows with their square


@dataclass(frozen=True, slots=True)
class Certainty:
    """What the classifier says of one set of pictures.

    Attributes:
        sure: share of the pictures with a probability over 0.8 for some class.
        class_shares: [K], share of the pictures by their most probable class.
    """

    sure: float
    class_shares: tuple[float, ...]


class CertaintyScore:
    """A calibrated SVM (RBF kernel, gamma 0.1, C 10) on pixels in [0, 1]."""

    def __init__(self, train: Features, labels: NDArray[np.int64]) -> None:
        """Fit on real pictures [N, D] and their classes [N]; of more than 5,000, evenly spread ones are taken.

        Raises:
            DataError: if there is one class only, or one with fewer than 5 pictures: the calibration needs them.
        """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        rows = np.linspace(0, len(train) - 1, min(len(train), _MOST)).astype(np.int64)  # data may be sorted by class
        counts = np.unique(labels[rows], return_counts=True)[1]
        if len(counts) < 2 or counts.min() < _FOLDS:
            raise DataError(
                f"{len(counts)} classes, the smallest of {counts.min()} pictures; a classifier needs at least 2, "
                f"with {_FOLDS} pictures each"
            )
        machine = SVC(kernel="rbf", gamma=0.1, C=10)
        self._classifier = CalibratedClassifierCV(machine, ensemble=False, cv=_FOLDS).fit(train[rows], labels[rows])

    def __call__(self, features: Features) -> Certainty:
        """Return how sure it is of pictures [N, D]."""
        probabilities = self._classifier.predict_proba(features)
        shares = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(features)
        return Certainty(float((probabilities.max(1) > SURE).mean()), tuple(float(share) for share in shares))
