"""The named errors: each says what was wrong, the value, what was expected, and what to do.

Every error that a user can cause derives from `DdpmError`; the command line prints its message in one line and
exits with code 2. Any other exception is a defect of this project.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DdpmError(Exception):
    """Base of all errors that name a user's mistake or a fault of their machine."""


class ConfigError(DdpmError):
    """A configuration key, value or combination is not valid."""


class DataError(DdpmError):
    """The training data are missing, empty, unreadable, or not what they were."""


class ModelFileError(DdpmError):
    """A file is not a model that this project can read."""


class RunError(DdpmError):
    """A run folder cannot be created, resumed or written."""


class TrainingError(DdpmError):
    """Training cannot go on: non-finite numbers, no memory, no space."""


class SamplingError(DdpmError):
    """A sampler was asked for something that it cannot do."""


class TextError(DdpmError):
    """A text is longer than the text encoder of a model can read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
