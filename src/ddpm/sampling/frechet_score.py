"""The score of `quality`: Fréchet distance to the training split, with its error and what held-out pictures reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.diffusion.noise import stream
from ddpm.errors import DataError
from ddpm.evaluation.frechet import frechet_distance

PIXELS = "pixels"
_MOST_PIXELS = 1024
_MOST_TRAINING = 10_000
_RESAMPLES = 8  # of the bootstrap: its error is known to a quarter, which is enough to see what differs

Features = NDArray[np.float64]


class FrechetScore:
    """Fréchet distance (Heusel et al. 2017, Eq. 6) of raw pixels, in [0, 1], to the training split."""

    def __init__(self, store: Store, count: int) -> None:
        """Measure the training split, and as many held-out pictures as there will be samples.

        Raises:
            DataError: if the pictures are too large to be compared by their pixels.
        """
        values = int(np.prod(store.pictures.shape[1:]))
        if values > _MOST_PIXELS:
            raise DataError(
                f"pictures of {values:,} values; raw pixels say nothing beyond {_MOST_PIXELS:,}: use --features"
            )
        rows = store.train[np.linspace(0, len(store.train) - 1, min(len(store.train), _MOST_TRAINING)).astype(np.int64)]
        self._range = store.value_range
        self._training = self._features(store.pictures[rows])
        self.floor = frechet_distance(self._features(store.pictures[store.held_out[:count]]), self._training)
        self.name = "Fréchet distance of pixels"

    def __call__(self, pictures: Pictures) -> tuple[float, float]:
        """Return the distance, and its standard error by the bootstrap over samples."""
        features = self._features(pictures)
        scores = []
        for draw in range(_RESAMPLES):
            rows = stream(0, "bootstrap", 0, draw).integers(0, len(features), len(features))
            scores.append(frechet_distance(features[rows], self._training))
        return frechet_distance(features, self._training), float(np.std(scores, ddof=1))

    def _features(self, pictures: Pictures) -> Features:
        low, high = self._range
        features: Features = (pictures.reshape(len(pictures), -1).astype(np.float64) - low) / (high - low)
        return features
