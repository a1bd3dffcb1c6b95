"""Fewer pictures where all are too many: evenly spread, as data sets are often sorted by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most `most` rows, evenly spread."""
    count = min(len(rows), most)
    return rows[np.arange(count, dtype=np.int64) * (len(rows) - 1) // max(1, count - 1)]


def thinned(features: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most `most` rows of features [N, D], evenly spread."""
    return features[spread(np.arange(len(features), dtype=np.int64), most)]
