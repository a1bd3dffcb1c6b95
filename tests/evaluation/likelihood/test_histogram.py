from __future__ import annotations

import math

import numpy as np
import pytest

from ddpm.errors import DataError
from ddpm.evaluation.likelihood.histogram import histogram_bits_per_dim


def pictures(*values: list[int], dtype: str = "uint8") -> np.ndarray:
    return np.array(values, dtype=dtype).reshape(len(values), 1, -1, 1)


def test_every_pixel_has_its_own_smoothed_histogram() -> None:
    """Of 3 pictures and 4 levels: p = (count + 1) / 7. The first pixel is 0, 0, 1; the second 3, 3, 3."""
    train, test = pictures([0, 3], [0, 3], [1, 3]), pictures([0, 3], [2, 0])
    bits = np.array([-math.log2(3 / 7) - math.log2(4 / 7), -math.log2(1 / 7) - math.log2(1 / 7)]) / 2
    estimate = histogram_bits_per_dim(train, test, 4)
    assert estimate.value == pytest.approx(bits.mean(), rel=1e-14)
    assert estimate.error == pytest.approx(bits.std(ddof=1) / math.sqrt(2), rel=1e-12)


@pytest.mark.parametrize(("levels", "dtype"), [(17, "uint8"), (256, "uint8"), (65536, "uint16")])
def test_the_masses_of_all_levels_sum_to_one(levels: int, dtype: str) -> None:
    train = np.random.default_rng(0).integers(levels, size=(50, 1, 1, 1)).astype(dtype)
    masses = [
        2 ** -histogram_bits_per_dim(train, np.full((2, 1, 1, 1), level, dtype), levels).value
        for level in np.unique(train).tolist()
    ]
    never_seen = levels - len(masses)
    assert sum(masses) + never_seen / (50 + levels) == pytest.approx(1, rel=1e-12)


def test_what_it_cannot_count_is_refused() -> None:
    good = pictures([0, 3], [1, 2])
    with pytest.raises(DataError, match=r"uint8 and float32; .* whole numbers"):
        histogram_bits_per_dim(good, good.astype("float32"), 4)
    with pytest.raises(DataError, match=r"one shape, and at least 1 and 2"):
        histogram_bits_per_dim(good, good[:1], 4)
    with pytest.raises(DataError, match=r"one shape, and at least 1 and 2"):
        histogram_bits_per_dim(good, good[:, :, :1], 4)
    with pytest.raises(DataError, match="outside 0 to 2, the range of their 3 levels"):
        histogram_bits_per_dim(good, good, 3)
