"""Extractors of features: pictures in, numbers out that scores can compare; each by name or file, with its recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.errors import ConfigError, ModelFileError, nearest
from ddpm.evaluation.extractors.extraction import Features, check_pictures

__all__ = ["NAMES", "Extractor", "Features", "Pixels", "load_extractor"]

NAMES = ("pixels", "inception", "dinov2")
"""The extractors that need no file from the user."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]*dinov2[\w.-]*", re.IGNORECASE)


class Extractor(Protocol):
    """Pictures to features, with all that another must know to get the same numbers."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def sha256(self) -> str | None:
        """SHA-256, hexadecimal, of the file of its weights; none where there is no one file."""
        ...

    def recipe(self) -> dict[str, Any]:
        """Return name, hash, input size, filter, range: scores of different recipes must not be compared."""
        ...

    def __call__(self, pictures: NDArray[Any], value_range: tuple[float, float]) -> Features:
        """Return the features of pictures [N, H, W, C] (uint8, uint16 or float32) whose values lie in `value_range`."""
        ...


class Pixels:
    """The values themselves, in [0, 1]: for small pictures and points, where no network is needed."""

    name = "pixels"
    sha256 = None

    def recipe(self) -> dict[str, Any]:
        """Return that there is nothing to know but the range."""
        return {"name": self.name, "sha256": None, "input": "values as they are", "range": [0, 1]}

    def __call__(self, pictures: NDArray[Any], value_range: tuple[float, float]) -> Features:
        """Return float32 [N, H * W * C].

        Raises:
            DataError: if these are no pictures, or hold values that are not finite.
        """
        check_pictures(pictures, value_range)
        low, high = value_range
        return Features((pictures.reshape(len(pictures), -1).astype(np.float32) - low) / (high - low))


def load_extractor(name_or_file: str, *, device: str = "cpu") -> Extractor:
    """Return an extractor by name or file.

    Args:
        name_or_file: "pixels"; "inception", fetched once; "dinov2", a Hub name such as "facebook/dinov2-base", or the
            folder of such a model; or a file: a classifier of `ddpm train-classifier`, the Inception weights, or a
            TorchScript program. TorchScript runs whatever code its author put in: load only files that you trust.
        device: where networks run.

    Raises:
        ConfigError: for a name that is not known.
        ModelFileError: for a file that is not what it should be.
        DataError: if weights cannot be fetched.
    """
    place, target = Path(name_or_file).expanduser(), torch.device(device)
    if name_or_file == "pixels":
        return Pixels()
    if name_or_file == "inception":
        from ddpm.evaluation.extractors.inception_weights import inception_extractor

        return inception_extractor(None, target)
    if name_or_file == "dinov2" or place.is_dir() or (not place.exists() and _HUB_NAME.fullmatch(name_or_file)):
        from ddpm.evaluation.extractors.dinov2 import dinov2_extractor

        return dinov2_extractor(None if name_or_file == "dinov2" else name_or_file, target)
    if place.is_file():
        return _of_file(place, target)
    if place.suffix or len(place.parts) > 1:
        raise ConfigError(f"there is no file of features '{name_or_file}'; expected one, or {_known()}")
    raise ConfigError(
        f"features '{name_or_file}' are not known{nearest(name_or_file, NAMES)}; expected {_known()}, or a file"
    )


def _of_file(place: Path, device: torch.device) -> Extractor:
    by_suffix: dict[str, Callable[[Path, torch.device], Extractor]] = {
        ".safetensors": _classifier,
        ".pth": _inception,
        ".pt": _script,
        ".ts": _script,
    }
    if place.suffix.lower() not in by_suffix:
        raise ModelFileError(
            f"'{place}' is no file of an extractor; expected .safetensors (a classifier of `ddpm train-classifier`), "
            ".pth (the Inception weights), or .pt or .ts (TorchScript)"
        )
    return by_suffix[place.suffix.lower()](place, device)


def _classifier(place: Path, device: torch.device) -> Extractor:
    from ddpm.evaluation.extractors.trained_classifier import classifier_extractor

    return classifier_extractor(place, device)


def _inception(place: Path, device: torch.device) -> Extractor:
    from ddpm.evaluation.extractors.inception_weights import inception_extractor

    return inception_extractor(place, device)


def _script(place: Path, device: torch.device) -> Extractor:
    from ddpm.evaluation.extractors.inception_weights import SHA256, inception_extractor
    from ddpm.evaluation.extractors.torchscript import script_extractor
    from ddpm.files import sha256_of

    if sha256_of(place) == SHA256:  # the user may have renamed it
        return inception_extractor(place, device)
    return script_extractor(place, device)


def _known() -> str:
    return ", ".join(f"'{name}'" for name in NAMES[:-1]) + f" or '{NAMES[-1]}'"
