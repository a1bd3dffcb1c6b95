"""What every score asks of the features it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.words import counted

_BLOCK = 1 << 22  # values looked at a time: flags of all would take a quarter of the features' memory


def check_features(features: NDArray[Any], what: str, least: int, *, may_be_same: bool = False) -> None:
    """Refuse features that no score can be had from.

    Args:
        features: expected [N, D].
        what: what they are of, for the message: "samples", "real pictures".
        least: fewest rows that the score needs.
        may_be_same: whether rows that are all the same are good enough: one picture is.

    Raises:
        DataError: for another number of axes, too few rows, values that are not finite, or rows that are all the same.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise DataError(f"features of the {what} have the shape {features.shape}; expected [pictures, features]")
    if len(features) < least:
        raise DataError(f"{counted(len(features), what.removesuffix('s'))}; this score needs at least {least:,}")
    check_finite(features, what)
    if not may_be_same and (features == features[0]).all():
        raise DataError(
            f"the features of all {len(features):,} {what} are the same; the pictures are constant or identical"
        )


def check_finite(features: NDArray[Any], what: str) -> None:
    """Refuse NaN and infinite values, naming the first row that holds one.

    Raises:
        DataError: for values that are not finite.
    """
    step = max(1, _BLOCK // max(1, features[:1].size))
    for start in range(0, len(features), step):
        finite = np.isfinite(features[start : start + step]).all(axis=tuple(range(1, features.ndim)))
        if not finite.all():
            row = start + int(finite.argmin())
            raise DataError(
                f"features of the {what} hold values that are not finite, first in row {row}; "
                "the pictures they come from are broken"
            )


def check_same_columns(first: int, second: int) -> None:
    """Refuse features of different extractors.

    Raises:
        DataError: if the numbers of columns differ.
    """
    if first != second:
        raise DataError(f"features have {first:,} and {second:,} columns; expected the same number: one extractor")
