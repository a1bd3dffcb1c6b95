"""Scores by their definitions, without any thought of speed: what the fast ones are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def squared_distances(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    return np.array([[np.square(x - y).sum() for y in second.astype(np.float64)] for x in first.astype(np.float64)])


def radii(rows: NDArray[Any], k: int) -> NDArray[np.float64]:
    distances = squared_distances(rows, rows)
    return np.array([np.sort(np.delete(of_row, own))[k - 1] for own, of_row in enumerate(distances)])


def coverage(real: NDArray[Any], samples: NDArray[Any], k: int) -> tuple[float, float, float, float]:
    distances = squared_distances(real, samples)
    in_real = distances <= radii(real, k)[:, None]
    in_samples = distances <= radii(samples, k)
    return in_real.any(0).mean(), in_samples.any(1).mean(), in_real.sum() / (k * len(samples)), in_real.any(1).mean()


def squared_discrepancy(first: NDArray[Any], second: NDArray[Any]) -> float:
    def kernel(x: NDArray[Any], y: NDArray[Any]) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(first), len(second)
    within_first = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_second = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_first + within_second - 2 * sum(kernel(x, y) for x in first for y in second) / (n * m)
