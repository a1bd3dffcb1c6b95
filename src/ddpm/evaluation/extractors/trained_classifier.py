"""A classifier that this project has trained on the user's own data, as an extractor of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ddpm.classifier import Classifier
from ddpm.errors import DataError, ModelFileError
from ddpm.evaluation.extractors.extraction import Features, check_pictures, exact
from ddpm.files import sha256_of
from ddpm.model_file import CLASSIFIER_FORMAT


class ClassifierExtractor:
    """Its last features and probabilities, which mean something on the kind of pictures that it was trained on."""

    def __init__(self, place: Path, device: torch.device) -> None:
        """Load the classifier of a file."""
        self.name = "classifier"
        self.sha256 = sha256_of(place)
        self._file = place.name
        self._device = device
        self._classifier = Classifier.load(place).to(device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return tuple(self._classifier.classes)

    def recipe(self) -> dict[str, Any]:
        """Return what another must know to get the same features."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "network": self._file,
            "input": "pictures of the shape of its data, by its own codec",
            "precision": "float32",
        }

    def __call__(self, pictures: NDArray[Any], value_range: tuple[float, float]) -> Features:
        """Return the features and probabilities of pictures [N, H, W, C] in the dtype and levels of its data.

        Raises:
            DataError: if these are not pictures such as it was trained on.
        """
        check_pictures(pictures, value_range)
        own = self._classifier.codec.value_range
        if tuple(own) != tuple(value_range):
            raise DataError(
                f"pictures with values of {value_range[0]:g} to {value_range[1]:g}; this classifier's data had "
                f"{own[0]:g} to {own[1]:g}: train one on yours"
            )
        with exact(self._device):
            pooled, probabilities = self._classifier.features(pictures)
        return Features(_array(pooled), None, _array(probabilities))


def classifier_extractor(place: Path, device: torch.device) -> ClassifierExtractor:
    """Return the extractor of a classifier's file.

    Raises:
        ModelFileError: if the file is not one of `ddpm train-classifier`.
    """
    try:
        with safe_open(place, framework="pt") as file:
            found = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"'{place}' cannot be read: {error}") from error
    if found != CLASSIFIER_FORMAT:
        raise ModelFileError(
            f"'{place}' is no classifier (format '{found}'); expected '{CLASSIFIER_FORMAT}', of `ddpm train-classifier`"
        )
    return ClassifierExtractor(place, device)


def _array(values: Any) -> NDArray[np.float32]:
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)
