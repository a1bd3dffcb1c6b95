from __future__ import annotations

import brute_force
import numpy as np
import pytest
from numpy.typing import NDArray

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.errors import DataError
from ddpm.evaluation.scores.memorization import memorization


def normal(seed: int, rows: int, columns: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def test_is_its_definition() -> None:
    samples, train = normal(0, 40), normal(1, 90)
    found = memorization(samples, train, normal(2, 30))
    distances = np.sqrt(brute_force.squared_distances(samples, train))
    assert found.nearest.tolist() == distances.argmin(1).tolist()
    np.testing.assert_allclose(found.distances, distances.min(1), rtol=1e-12)
    ratios = distances.min(1) / np.sort(distances, 1)[:, 1]
    np.testing.assert_allclose(found.ratios, ratios, rtol=1e-12)
    assert found.is_near_copy.tolist() == (ratios < 1 / 3).tolist()
    assert found.share == (ratios < 1 / 3).mean()
    assert (found.samples, found.held_out) == (40, 30)


def test_copies_are_found_with_their_rows_and_honest_samples_are_not() -> None:
    train, rows = normal(0, 500), np.arange(100, 150)
    copies = train[rows] + 0.01 * normal(1, 50)
    found = memorization(np.concatenate([copies, normal(2, 150)]), train, normal(3, 400))
    assert found.nearest[:50].tolist() == rows.tolist()
    assert found.is_near_copy[:50].all()
    assert found.is_near_copy[50:].mean() == pytest.approx(found.share_held_out, abs=0.1)
    assert found.share > found.share_held_out + 0.2


def test_copies_of_a_picture_that_is_in_the_data_many_times_count() -> None:
    train = np.concatenate([normal(0, 200), np.repeat(normal(1, 1), 20, axis=0)])
    found = memorization(train[-1:] + 0.01, train, normal(2, 50))
    assert found.is_near_copy.all()
    assert found.nearest.tolist() == [200]  # the first of them
    assert memorization(train[-1:], train, normal(2, 50)).ratios.tolist() == [0]


def test_honest_samples_pass_as_often_as_theory_says() -> None:
    # Uniform in d dimensions, the ratio of the two nearest distances is below r with probability r^d: here 1/9.
    random = np.random.default_rng(0)
    found = memorization(random.random((4000, 2)), random.random((20_000, 2)), random.random((4000, 2)))
    error = (1 / 9 * 8 / 9 / 4000) ** 0.5
    assert abs(found.share - 1 / 9) < 4 * error
    assert abs(found.share_held_out - 1 / 9) < 4 * error


def test_held_out_digits_are_rarely_called_copies() -> None:
    digits = open_store("digits", DataConfig())
    features = digits.pictures.reshape(len(digits), -1)
    train, held_out = features[digits.train], features[digits.held_out]
    found = memorization(train[:100], train, held_out)
    assert found.share == 1
    assert found.share_held_out < 0.01


def test_refuses() -> None:
    good = normal(0, 30)
    with pytest.raises(DataError, match="1 training picture; this score needs at least 2"):
        memorization(good, good[:1], good)
    with pytest.raises(DataError, match="0 held-out pictures"):
        memorization(good, good, good[:0])
    with pytest.raises(DataError, match="columns"):
        memorization(good[:, :3], good, good)
    with pytest.raises(DataError, match="training pictures are the same"):
        memorization(good, np.ones_like(good), good)
    with pytest.raises(DataError, match="samples hold values that are not finite"):
        memorization(good * np.nan, good, good)
