"""Memorization: are samples copies of training pictures?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.evaluation.scores.checks import check_features, check_same_columns
from ddpm.evaluation.scores.distances import Cloud, clouds, nearest

NEAR = 1 / 3
"""A near-copy is closer to the nearest training picture than this share of its distance to the second nearest."""


@dataclass(frozen=True, eq=False)
class Memorization:
    """The nearest training picture of every sample, and how many samples are near-copies.

    Attributes:
        nearest: int64 [N], row of the training set; of duplicates, the first.
        distances: float64 [N], Euclidean distance to it.
        ratios: float64 [N], distance over that to the second nearest which is another picture; 0 for an exact copy.
        is_near_copy: bool [N], whether the ratio is below 1/3.
        share: of the samples, near-copies.
        share_held_out: of the held-out pictures, by the same rule: the base line. Duplicates in the data count here.
        samples: number of samples.
        held_out: number of held-out pictures.
    """

    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]
    ratios: NDArray[np.float64]
    is_near_copy: NDArray[np.bool_]
    share: float
    share_held_out: float
    samples: int
    held_out: int


def memorization(samples: NDArray[Any], train: NDArray[Any], held_out: NDArray[Any]) -> Memorization:
    """Find near-copies of training pictures among samples.

    A fixed distance would call every sample of a dense region a copy, and none of a sparse one. So a sample is a
    near-copy if its distance to the nearest training picture is less than a third of that to the second nearest (Yoon
    et al. 2023; Gu et al. 2023). Of an honest sample, the ratio is below r with a probability of about r^d, where d is
    the dimension that the data locally have, at any density and number of pictures. Training pictures that are in the
    data several times are taken once: otherwise their copies, the likeliest ones, would have ratio 1.

    Held-out pictures, which cannot be copies, are judged by the same rule: only a share above theirs, beyond sampling
    error, means that the model repeats what it was shown.

    Args:
        samples: [N, D], pixels or features.
        train: [M, D].
        held_out: [L, D].

    Raises:
        DataError: for fewer than 2 different training pictures, no samples or held-out pictures,
            another number of columns, or values that are not finite.
    """
    check_features(train, "training pictures", 2)
    check_same_columns(samples.shape[-1], train.shape[1])
    check_same_columns(held_out.shape[-1], train.shape[1])
    for features, what in ((samples, "samples"), (held_out, "held-out pictures")):
        check_features(features, what, 1, may_be_same=True)
    first_rows = _first_rows(train)
    sampled, unseen, seen = clouds(samples, held_out, train[first_rows])
    distances, rows, ratios = _ratios(sampled, seen)
    near = ratios < NEAR
    base = _ratios(unseen, seen)[2] < NEAR
    return Memorization(
        nearest=first_rows[rows],
        distances=distances,
        ratios=ratios,
        is_near_copy=near,
        share=float(near.mean()),
        share_held_out=float(base.mean()),
        samples=len(samples),
        held_out=len(held_out),
    )


def _ratios(queries: Cloud, train: Cloud) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    squared, rows = nearest(queries, train, 2)
    distances = np.sqrt(squared)
    return distances[:, 0], rows[:, 0], distances[:, 0] / distances[:, 1]  # two different rows: the second is not 0


def _first_rows(features: NDArray[Any]) -> NDArray[np.int64]:
    """Return the first row of each picture, ascending."""
    first: dict[bytes, int] = {}
    for row, values in enumerate(features):
        first.setdefault(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), row)
    return np.fromiter(first.values(), dtype=np.int64)
