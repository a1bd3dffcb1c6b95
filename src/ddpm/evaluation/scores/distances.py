"""Exact nearest neighbours and balls among features, at the speed of matrix products and in bounded memory.

Squared distances come from float32 matrix products, |x|^2 + |y|^2 - 2 x . y on centred rows, with a bound on their
rounding error. Whatever the bound leaves open, a rank or a comparison, is decided by float64 differences of the rows
themselves: the results are those of brute force in float64, duplicates and ties included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_BLOCK_BYTES = 1 << 24  # of float32 distances at a time: their few temporaries stay near the caches, far below 1 GB
_EXACT_BYTES = 1 << 22  # of float64 differences at a time
_SPARE = 4  # candidates beyond k that are measured exactly: they nearly always settle the order


@dataclass(frozen=True, eq=False)
class Cloud:
    """Rows prepared for distances to rows of the same centre.

    Attributes:
        rows: [N, D] as given.
        centred: float32 [N, D], less the centre.
        norms: float32 [N], squared.
    """

    rows: Rows
    centred: NDArray[np.float32]
    norms: NDArray[np.float32]


def clouds(*sets: Rows) -> tuple[Cloud, ...]:
    """Prepare sets of rows [N, D] around the mean of the last: near zero, float32 keeps most digits of distances."""
    centre = sets[-1].mean(0, dtype=np.float64)
    return tuple(_cloud(rows, centre) for rows in sets)


def nearest(queries: Cloud, reference: Cloud, k: int) -> tuple[Array, Indices]:
    """Return the squared distances and indices of the `k` nearest rows of another set; the lower index first on ties.

    Of a set in itself (`queries is reference`), a row is no neighbour of its own; its duplicates are.

    Returns:
        float64 [N, k], ascending, and int64 [N, k].
    """
    found, indices = np.empty((len(queries.rows), k)), np.empty((len(queries.rows), k), dtype=np.int64)
    for start, squared in _blocks(queries, reference):
        if queries is reference:
            own = np.arange(len(squared))
            squared[own, own + start] = np.inf
        rows = slice(start, start + len(squared))
        found[rows], indices[rows] = _nearest_of_block(queries, reference, start, squared, k)
    return found, indices


def balls(first: Cloud, second: Cloud, radii_first: Array, radii_second: Array) -> Iterator[tuple[slice, Any, Any]]:
    """Yield for blocks of rows of `first` which pairs lie in each other's balls.

    Args:
        first: [N, D].
        second: [M, D].
        radii_first: float64 [N], squared.
        radii_second: float64 [M], squared.

    Yields:
        The rows of the block; bool [B, M], whether `second` lies in the ball of `first`; bool [B, M], the reverse. The
        boundary belongs to a ball.
    """
    for start, squared in _blocks(first, second):
        rows = slice(start, start + len(squared))
        bound = _bound(first, second, rows)
        in_first = _compare(first, second, start, squared, bound, radii_first[rows, None])
        in_second = _compare(first, second, start, squared, bound, radii_second[None])
        yield rows, in_first, in_second


def _cloud(rows: Rows, centre: Array) -> Cloud:
    centred = np.empty(rows.shape, dtype=np.float32)
    norms = np.empty(len(rows), dtype=np.float32)
    step = max(1, _BLOCK_BYTES // (8 * rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        centred[part] = rows[part] - centre
        norms[part] = np.square(centred[part], dtype=np.float64).sum(1)
    return Cloud(rows, centred, norms)


def _blocks(first: Cloud, second: Cloud) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, _BLOCK_BYTES // (4 * len(second.rows)))
    for start in range(0, len(first.rows), step):
        part = slice(start, start + step)
        squared = first.centred[part] @ second.centred.T
        squared *= -2
        squared += first.norms[part, None]
        squared += second.norms
        yield start, squared


def _bound(first: Cloud, second: Cloud, part: slice | Indices) -> NDArray[np.float32]:
    """Return what rounding can change in squared distances, [B, M] (Higham 2002, Sec. 3.1, in any order of summing).

    A product of D terms is off by at most D u |x| |y|; roundings of rows, norms and sums add less than 16 u more.
    """
    unit = np.float32((first.rows.shape[1] + 16) * 2.0**-24)
    bound: NDArray[np.float32] = unit * (first.norms[part, None] + second.norms)
    return bound


def _nearest_of_block(
    queries: Cloud, reference: Cloud, start: int, squared: NDArray[np.float32], k: int
) -> tuple[Array, Indices]:
    most = min(k + _SPARE, squared.shape[1])
    candidates = np.sort(np.argpartition(squared, most - 1, axis=1)[:, :most], axis=1)
    farthest = np.take_along_axis(squared, candidates, 1).max(1)
    own = np.repeat(np.arange(start, start + len(squared)), most)
    exact = _exact(queries, reference, own, candidates.ravel()).reshape(candidates.shape)
    if queries is reference:
        exact[candidates == np.arange(start, start + len(squared))[:, None]] = np.inf
    order = np.argsort(exact, axis=1, kind="stable")[:, :k]
    found, indices = np.take_along_axis(exact, order, 1), np.take_along_axis(candidates, order, 1)
    for row in np.flatnonzero(_open(queries, reference, start, farthest, found[:, -1], most)):
        near = squared[row] <= found[row, -1] + _bound(queries, reference, np.array([start + row]))[0]
        candidate = np.flatnonzero(near)
        exact_row = _exact(queries, reference, np.full(len(candidate), start + row), candidate)
        order_row = np.argsort(exact_row, kind="stable")[:k]
        found[row], indices[row] = exact_row[order_row], candidate[order_row]
    return found, indices


def _open(
    queries: Cloud, reference: Cloud, start: int, farthest: NDArray[np.float32], kth: Array, most: int
) -> NDArray[np.bool_]:
    """Return the rows of which a row that was no candidate could be among the nearest."""
    if most == len(reference.rows):
        return np.zeros(len(kth), dtype=np.bool_)
    unit = (queries.rows.shape[1] + 16) * 2.0**-24
    bound = unit * (queries.norms[start : start + len(kth)].astype(np.float64) + reference.norms.max())
    is_open: NDArray[np.bool_] = kth >= farthest - bound
    return is_open


def _compare(
    first: Cloud, second: Cloud, start: int, squared: NDArray[np.float32], bound: NDArray[np.float32], radii: Array
) -> NDArray[np.bool_]:
    """Return whether squared distances are at most `radii` ([B, 1] or [1, M])."""
    gap = squared - radii.astype(np.float32)
    inside: NDArray[np.bool_] = gap <= 0
    np.abs(gap, out=gap)
    near, far = np.nonzero(gap <= bound + np.float32(2.0**-23) * radii.astype(np.float32))
    limits = np.broadcast_to(radii, squared.shape)
    inside[near, far] = _exact(first, second, near + start, far) <= limits[near, far]
    return inside


def _exact(first: Cloud, second: Cloud, near: Indices, far: Indices) -> Array:
    """Return the squared distances of pairs of rows, by their differences in float64."""
    squared = np.empty(len(near))
    step = max(1, _EXACT_BYTES // (8 * first.rows.shape[1]))
    for at in range(0, len(near), step):
        pairs = slice(at, at + step)
        difference = first.rows[near[pairs]].astype(np.float64)
        difference -= second.rows[far[pairs]]
        squared[pairs] = np.square(difference, out=difference).sum(1)
    return squared
