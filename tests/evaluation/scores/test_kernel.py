from __future__ import annotations

import brute_force
import numpy as np
import pytest

from ddpm.errors import DataError
from ddpm.evaluation.scores.kernel import kernel_distance, squared_discrepancy


def normal(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def test_the_estimator_is_its_definition() -> None:
    first, second = normal(0, 7, 5), 1 + normal(1, 9, 5)
    assert squared_discrepancy(first, second) == pytest.approx(
        brute_force.squared_discrepancy(first, second), rel=1e-12
    )


def test_equal_distributions_have_mean_zero() -> None:
    values = np.array(
        [kernel_distance(normal(2 * i, 60, 8), normal(2 * i + 1, 60, 8), subsets=4).value for i in range(400)]
    )
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean()) < 3 * error
    assert (values < 0).mean() > 0.3  # unbiased: about half of them lie below zero
    # Counting the pairs (x, x) too would add 2 (E k(x, x) - E k(x, y)) / n, far above what passes here.
    assert 2 * np.mean([(x @ x / 8 + 1) ** 3 - 1 for x in normal(1, 500, 8)]) / 30 > 10 * error


def test_known_means_have_their_closed_form() -> None:
    # Points a and b, each repeated with noise far below rounding of the result: k(a, a) + k(b, b) - 2 k(a, b).
    a, b = np.array([1.0, 2, 3]), np.array([2.0, 0, 1])
    first, second = a + 1e-9 * normal(0, 40, 3), b + 1e-9 * normal(1, 40, 3)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    assert kernel_distance(first, second, subsets=3).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rows", "size"), [(60, 1000), (120, 15)])
def test_the_error_is_the_spread_over_repeats(rows: int, size: int) -> None:
    draws = [
        kernel_distance(
            normal(2 * i, rows, 4), 0.5 + 1.2 * normal(2 * i + 1, rows, 4), subsets=40, subset_size=size, seed=i
        )
        for i in range(60)
    ]
    spread = np.std([draw.value for draw in draws], ddof=1)
    assert np.median([draw.error for draw in draws]) == pytest.approx(spread, rel=0.35)


def test_the_seed_decides() -> None:
    first, second = normal(0, 50, 4), normal(1, 70, 4)
    assert kernel_distance(first, second, seed=1) == kernel_distance(first, second, seed=1)
    assert kernel_distance(first, second, seed=1) != kernel_distance(first, second, seed=2)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (normal(0, 19, 3), "19 pictures; this score needs at least 20"),
        (np.ones((30, 3)), "are the same"),
        (np.full((30, 3), np.nan), "not finite"),
        (normal(0, 30, 4), "columns; expected the same number"),
    ],
)
def test_refuses(first: np.ndarray, words: str) -> None:
    good = normal(1, 30, 3)
    for pair in ((first, good), (good, first)):
        with pytest.raises(DataError, match=words):
            kernel_distance(*pair)
    with pytest.raises(DataError, match="at least 2 subsets"):
        kernel_distance(good, good, subsets=1)
