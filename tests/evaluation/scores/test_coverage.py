from __future__ import annotations

from typing import Any

import brute_force
import numpy as np
import pytest
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores import distances
from ddpm.evaluation.scores.coverage import coverage
from ddpm.evaluation.scores.distances import balls, clouds, nearest

Pair = tuple[NDArray[Any], NDArray[Any]]


def normal(seed: int, rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def pairs_of_sets() -> dict[str, Pair]:
    random = np.random.default_rng(0)
    real, samples = normal(1, 90, 12), 0.9 * normal(2, 70, 12)
    duplicated, copies = real.copy(), samples.copy()
    duplicated[30:60], copies[:40] = real[0], real[:40]
    outlier = real.copy()
    outlier[0] *= 1e5
    return {
        "normal": (real, samples),
        "duplicates and copies": (duplicated, copies),
        "grid, full of ties": (random.integers(0, 3, (90, 3)) / 16, random.integers(0, 3, (70, 3)) / 16),
        "far from zero": (real * 1e-3 + 1000, samples * 1e-3 + 1000),
        "two far clusters": (real * 1e-4 + (np.arange(90) % 2)[:, None], samples * 1e-4 + (np.arange(70) % 2)[:, None]),
        "an outlier": (outlier, samples),
        "float64": (real.astype(np.float64) + 1e-12, samples.astype(np.float64)),
    }


@pytest.mark.parametrize("name", pairs_of_sets())
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1 << 24, 5000])
def test_agrees_with_brute_force(name: str, k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_BLOCK_BYTES", block)  # 5000: a dozen rows
    real, samples = pairs_of_sets()[name]
    found = coverage(real, samples, k=k)
    expected = brute_force.coverage(real, samples, k)
    np.testing.assert_allclose((found.precision, found.recall, found.density, found.coverage), expected, rtol=1e-14)
    assert found.k == k


@pytest.mark.parametrize("name", pairs_of_sets())
@pytest.mark.parametrize("itself", [False, True])
def test_nearest_agrees_with_brute_force(name: str, itself: bool) -> None:
    reference, queries = pairs_of_sets()[name]
    queries = reference if itself else queries
    prepared = clouds(queries, reference)
    cloud = prepared[1]
    found, rows = nearest(cloud if itself else prepared[0], cloud, 4)
    expected = brute_force.squared_distances(queries, reference)
    if itself:
        np.fill_diagonal(expected, np.inf)
    order = np.argsort(expected, axis=1, kind="stable")[:, :4]
    np.testing.assert_allclose(found, np.take_along_axis(expected, order, 1), rtol=1e-12)
    differing = rows != order  # only where sums in another order break a tie
    np.testing.assert_allclose(
        np.take_along_axis(expected, rows, 1)[differing], np.take_along_axis(expected, order, 1)[differing], rtol=1e-12
    )


def test_what_float32_cannot_tell_is_told_apart() -> None:
    # Distances 1 and 1 + 1e-9 of the same row: equal in float32, and far below its rounding at this distance from zero.
    far = np.zeros((3, 2))
    far[:, 0] = [0, 1, -(1 + 1e-9)]
    queries, reference = clouds(far[:1], far[1:])
    assert nearest(queries, reference, 1)[1].tolist() == [[0]]
    inside = [block[1].tolist() for block in balls(queries, reference, np.array([1.0]), np.zeros(2))]
    assert inside == [[[True, False]]]


def test_equal_distributions_reach_what_theory_says() -> None:
    found = coverage(normal(0, 1500, 3), normal(1, 1500, 3), k=5)
    assert found.density == pytest.approx(1, abs=0.06)  # Naeem et al. 2020, Sec. 3.3: expectation 1
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.03)  # the same: 1 - (N-1)...(N-k) / (2N-1)...(2N-k)
    assert found.precision > 0.95
    assert found.recall > 0.95


def test_collapse_and_noise_are_seen() -> None:
    real = normal(0, 400, 5)
    collapsed = coverage(real, real[0] + 1e-3 * normal(1, 400, 5))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.05
    far = coverage(real, 100 + normal(1, 400, 5))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("real", "samples", "k", "words"),
    [
        (normal(0, 5, 3), normal(1, 9, 3), 5, "5 real pictures; this score needs at least 6"),
        (normal(0, 9, 3), normal(1, 5, 3), 5, "5 samples; this score needs at least 6"),
        (normal(0, 9, 3), np.ones((9, 3)), 5, "of all 9 samples are the same"),
        (normal(0, 9, 3), normal(1, 9, 3) * np.inf, 5, "of the samples hold values that are not finite"),
        (normal(0, 9, 3), normal(1, 9, 4), 5, "3 and 4 columns"),
        (normal(0, 9, 3), normal(1, 9, 3), 0, "k = 0"),
    ],
)
def test_refuses(real: NDArray[Any], samples: NDArray[Any], k: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        coverage(real, samples, k=k)
