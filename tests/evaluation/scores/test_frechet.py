from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores.frechet import (
    Moments,
    RunningMoments,
    frechet_distance,
    frechet_distance_between,
    frechet_estimate,
    moments_of,
)

Array = NDArray[np.float64]


def normal(seed: int, rows: int, columns: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def orthogonal(seed: int, dimensions: int) -> Array:
    return np.linalg.qr(normal(seed, dimensions, dimensions))[0]


def by_matrix_square_root(first: Moments, second: Moments) -> float:
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    return float(
        np.square(first.mean - second.mean).sum()
        + np.trace(first.covariance + second.covariance)
        - 2 * np.trace(root).real
    )


@pytest.mark.parametrize("dimensions", [1, 7, 64])
def test_gaussians_with_common_axes_have_a_closed_form(dimensions: int) -> None:
    random = np.random.default_rng(dimensions)
    axes = orthogonal(dimensions, dimensions)
    deviations = random.uniform(0.1, 3, (2, dimensions))
    means = random.standard_normal((2, dimensions))
    moments = [Moments(100, mean, (axes * std**2) @ axes.T) for mean, std in zip(means, deviations, strict=True)]
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(*moments) == pytest.approx(expected, rel=1e-10)


def test_gaussians_linked_by_a_symmetric_map_have_a_closed_form() -> None:
    # If y = A x with A symmetric and positive, A is the optimal transport: the distance is tr((A - 1) C (A - 1)).
    columns, axes = 40, orthogonal(1, 40)
    mixing = normal(2, columns, columns)
    covariance = mixing @ mixing.T
    transport = (axes * np.random.default_rng(3).uniform(0.5, 2, columns)) @ axes.T
    first = Moments(100, np.zeros(columns), covariance)
    second = Moments(100, np.zeros(columns), transport @ covariance @ transport)
    change = transport - np.eye(columns)
    expected = np.trace(change @ covariance @ change)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 2**31), st.integers(2, 60))
@settings(max_examples=30)
def test_well_conditioned_moments_agree_with_the_matrix_square_root(seed: int, columns: int) -> None:
    first, second = moments_of(normal(seed, 400, columns) + 1), moments_of(2 * normal(seed + 1, 300, columns))
    expected = by_matrix_square_root(first, second)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rows", "other_rows"), [(30, 40), (30, 500), (500, 30), (101, 100), (100, 99)])
def test_with_few_rows_the_form_by_rows_agrees_with_the_eigenvalue_form(rows: int, other_rows: int) -> None:
    first, second = normal(0, rows, 100) + 0.3, 1.5 * normal(1, other_rows, 100)
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    expected = np.square(first.mean(0) - second.mean(0)).sum() + sum(np.trace(c) for c in covariances) - 2 * cross
    between = frechet_distance_between(first, second)
    assert between == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(moments_of(first), moments_of(second)) == pytest.approx(between, rel=1e-6)


def test_singular_covariances_do_no_harm() -> None:
    # Two planes in 50 dimensions, orthogonal to each other: no direction in common, so the cross term is 0.
    first, second = np.zeros((300, 50)), np.zeros((300, 50))
    first[:, :2], second[:, 2:4] = normal(0, 300, 2), normal(1, 300, 2)
    moments = [moments_of(first), moments_of(second)]
    expected = np.square(first.mean(0) - second.mean(0)).sum() + sum(np.trace(m.covariance) for m in moments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(*moments) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance_between(first, second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decades", [4, 12, 20])
def test_ill_conditioned_moments_agree_with_the_closed_form(decades: float) -> None:
    columns, axes = 60, orthogonal(0, 60)
    variances = np.logspace(0, -decades, columns)
    first = Moments(100, np.zeros(columns), (axes * variances) @ axes.T)
    second = Moments(100, np.zeros(columns), (axes * (4 * variances)) @ axes.T)
    assert frechet_distance(first, second) == pytest.approx(variances.sum(), rel=1e-6)


def test_equal_sets_have_no_distance_and_it_is_never_negative() -> None:
    for rows, columns in ((20, 50), (500, 50)):
        features = 100 + normal(0, rows, columns)
        assert 0 <= frechet_distance_between(features, features) < 1e-10
        assert 0 <= frechet_distance(moments_of(features), moments_of(features)) < 1e-6


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=30)
def test_moments_in_batches_are_those_of_all_rows(sizes: list[int], seed: int) -> None:
    features = (1e4 + normal(seed, sum(sizes) + 2, 5)).astype(np.float32)
    running, other = RunningMoments(5), RunningMoments(5)
    ends = np.cumsum([0, *sizes])
    for number, (start, end) in enumerate(zip(ends, [*ends[1:], len(features)], strict=True)):
        (running, other)[number % 2].add(features[start:end])
    running.merge(other)
    exact = features.astype(np.float64)
    moments = running.moments()
    assert moments.count == len(features)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(exact, rowvar=False), rtol=1e-8, atol=1e-9)


def test_the_error_is_the_spread_over_repeats() -> None:
    second = Moments(10**6, np.zeros(6), np.eye(6))
    draws = [frechet_estimate(normal(seed, 400, 6) * 1.3 + 0.2, second, seed=seed) for seed in range(60)]
    spread = np.std([draw.value for draw in draws], ddof=1)
    assert np.median([draw.error for draw in draws]) == pytest.approx(spread, rel=0.3)
    features = normal(0, 30, 60) + 1  # fewer rows than columns
    few = frechet_estimate(features, moments_of(normal(1, 200, 60)), seed=3)
    assert few == frechet_estimate(features, moments_of(normal(1, 200, 60)), seed=3)
    assert few.value == pytest.approx(frechet_distance_between(features, normal(1, 200, 60)), rel=1e-6)
    assert few.error > 0


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.zeros((1, 3)), "1 picture; this score needs at least 2"),
        (np.zeros((0, 3)), "0 pictures; this score needs at least 2"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.ones((5, 3)), "are the same; the pictures are constant"),
        (np.diag([1.0, np.nan, 2]), "not finite, first in row 1"),
        (np.diag([1.0, 2, np.inf]), "not finite, first in row 2"),
        (np.diag([1.0, 2, 3, 4]), "4 and 3 columns|3 and 4 columns"),
    ],
)
def test_refuses(features: NDArray[Any], words: str) -> None:
    good = normal(0, 9, 3)
    for first, second in ((features, good), (good, features)):
        with pytest.raises(DataError, match=words):
            frechet_distance_between(first, second)
    with pytest.raises(DataError, match=words):
        frechet_estimate(features, moments_of(good))


def test_moments_refuse() -> None:
    running = RunningMoments(3)
    running.add(np.ones((1, 3)))
    with pytest.raises(DataError, match="at least 2 rows"):
        running.moments()
    running.add(np.ones((4, 3)))
    with pytest.raises(DataError, match="constant or identical"):
        running.moments()
    with pytest.raises(DataError, match="4 and 3 columns"):
        running.add(np.ones((4, 4)))
    with pytest.raises(DataError, match="4 and 3 columns"):
        running.merge(RunningMoments(4))
    with pytest.raises(DataError, match="not finite, first in row 0"):
        running.add(np.full((1, 3), np.nan))
    assert running.count == 5
    broken = Moments(5, np.zeros(3), np.full((3, 3), np.nan))
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(broken, moments_of(normal(0, 9, 3)))
    with pytest.raises(DataError, match="covariance of 100,000 features"):
        RunningMoments(100_000)
