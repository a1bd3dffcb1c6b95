"""The score of `quality`: Fréchet distance to the training split, with its error and what held-out pictures reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.errors import DataError
from ddpm.evaluation.extractors.features import Extractor
from ddpm.evaluation.scores.frechet import frechet_distance, frechet_estimate, moments_of
from ddpm.evaluation.scores.spread import spread

_MOST_PIXELS = 1024
_MOST_TRAINING = 10_000


class FrechetScore:
    """Fréchet distance (Heusel et al. 2017, Eq. 6) of features to the training split."""

    def __init__(self, store: Store, count: int, extractor: Extractor) -> None:
        """Measure the training split, and as many held-out pictures as there will be samples.

        Raises:
            DataError: if the pictures are too large to be compared by their pixels.
        """
        values = int(np.prod(store.pictures.shape[1:]))
        if extractor.name == "pixels" and values > _MOST_PIXELS:
            raise DataError(
                f"pictures of {values:,} values; raw pixels say nothing beyond {_MOST_PIXELS:,}: use --features"
            )
        self._range, self._extractor = store.value_range, extractor
        self._training = moments_of(self._features(store.pictures[spread(store.train, _MOST_TRAINING)]))
        held_out = moments_of(self._features(store.pictures[spread(store.held_out, count)]))
        self.floor = frechet_distance(held_out, self._training)
        self.name = f"Fréchet distance of {extractor.name}"

    def __call__(self, pictures: Pictures) -> tuple[float, float]:
        """Return the distance, and its standard error by the bootstrap over samples."""
        estimate = frechet_estimate(self._features(pictures), self._training)
        return estimate.value, estimate.error

    def _features(self, pictures: Pictures) -> NDArray[Any]:
        return self._extractor(pictures, self._range).pooled
