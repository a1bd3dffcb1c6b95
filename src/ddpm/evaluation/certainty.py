"""How sure a classifier trained on real pictures is of samples, and which classes it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]

SURE = 0.8
"""Probability above which the classifier counts as sure."""

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
        """Fit on real pictures [N, D] and their classes [N], at most the first 5,000."""
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        machine = SVC(kernel="rbf", gamma=0.1, C=10)
        self._classifier = CalibratedClassifierCV(machine, ensemble=False).fit(train[:_MOST], labels[:_MOST])

    def __call__(self, features: Features) -> Certainty:
        """Return how sure it is of pictures [N, D]."""
        probabilities = self._classifier.predict_proba(features)
        shares = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(features)
        return Certainty(float((probabilities.max(1) > SURE).mean()), tuple(float(share) for share in shares))
