from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores.colour import colour_drift


def pictures(seed: int, count: int = 300, channels: int = 3) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    base = random.uniform(60, 180, (count, 1, 1, channels))
    return (base + random.uniform(-30, 30, (count, 8, 8, channels))).astype(np.uint8)


def test_statistics_are_those_of_all_values() -> None:
    samples, real = pictures(0), pictures(1, count=200)
    drift = colour_drift(samples, real, (0, 255))
    np.testing.assert_allclose(drift.mean, samples.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(drift.mean_real, real.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(drift.std, samples.std((0, 1, 2)) / 255, rtol=1e-9)
    of_pictures = [values.mean((1, 2)).std(0, ddof=1) / len(values) ** 0.5 / 255 for values in (samples, real)]
    np.testing.assert_allclose(drift.mean_error, np.hypot(*of_pictures), rtol=1e-9)
    assert drift.verdict.startswith("No colour drift")


def test_the_histogram_distance_of_a_shift_is_the_shift() -> None:
    levels = np.arange(64, dtype=np.float32) / 64
    real = np.broadcast_to((levels[:32] + 1 / 128)[:, None, None, None], (32, 4, 4, 1))
    drift = colour_drift(real + np.float32(16 / 64), real, (0.0, 1.0))
    assert drift.histogram_distance == pytest.approx([0.25], abs=1e-6)
    assert colour_drift(real, real, (0.0, 1.0)).histogram_distance == (0,)


def test_a_drift_is_named() -> None:
    real, samples = pictures(0), pictures(1)
    samples[..., 2] -= np.minimum(samples[..., 2], 40)
    assert "blue is" in colour_drift(samples, real, (0, 255)).verdict
    gray = real[..., :1]
    assert "brightness is 7.8 % of the range brighter" in colour_drift(gray + 20, gray, (0, 255)).verdict
    flat = (120 + 0.5 * (gray.astype(np.float32) - 120)).astype(np.float32)
    assert "less contrast: 0.50" in colour_drift(flat, gray.astype(np.float32), (0.0, 255.0)).verdict


def test_refuses() -> None:
    real = pictures(0)
    with pytest.raises(DataError, match="samples have 1 channel, real pictures 3"):
        colour_drift(real[..., :1], real, (0, 255))
    with pytest.raises(DataError, match="at least 2 pictures"):
        colour_drift(real[:1], real, (0, 255))
    with pytest.raises(DataError, match="samples hold values that are not finite"):
        colour_drift(real * np.float32(np.nan), real, (0, 255))
    with pytest.raises(DataError, match="value range"):
        colour_drift(real, real, (1, 1))
