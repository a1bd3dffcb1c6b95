"""The model that every model must beat: each pixel drawn from its own histogram, independent of all others."""

from __future__ import annotations

import math

import numpy as np
import torch

from ddpm.codec import Pictures
from ddpm.errors import DataError
from ddpm.estimate import Estimate, mean_estimate


def histogram_bits_per_dim(
    train: Pictures, test: Pictures, levels: int, *, value_range: tuple[float, float] | None = None
) -> Estimate:
    """Return the bits/dim of a factorised model: the histogram of each pixel and channel, add-one smoothed.

    p(value) = (count + 1) / (N + levels): proper, and finite for values never seen (Laplace's rule).

    Args:
        train: [N, H, W, C], whole numbers.
        test: [M, H, W, C], M >= 2.
        levels: how many values a channel can take.
        value_range: the least and largest; none: 0 to levels - 1.

    Raises:
        DataError: for pictures of floating point, of different shapes, too few, or with values out of range.
    """
    if train.dtype.kind != "u" or test.dtype.kind != "u":
        raise DataError(f"pictures are {train.dtype} and {test.dtype}; a histogram of levels needs whole numbers")
    if train.shape[1:] != test.shape[1:] or len(train) < 1 or len(test) < 2:
        raise DataError(
            f"pictures {train.shape} to count and {test.shape} to score; expected one shape, and at least 1 and 2"
        )
    low, high = value_range or (0, levels - 1)
    if min(train.min(), test.min()) < low or max(train.max(), test.max()) > high:
        raise DataError(f"pictures have values outside {low:g} to {high:g}, the range of their {levels} levels")
    nats = np.zeros(len(test))
    for seen, asked in zip(train.reshape(len(train), -1).T, test.reshape(len(test), -1).T, strict=True):
        order = np.sort(seen)  # counts by search, not by table: 65,536 levels a pixel would fill the memory
        counts = np.searchsorted(order, asked, "right") - np.searchsorted(order, asked, "left")
        nats += math.log(len(train) + levels) - np.log1p(counts)
    return mean_estimate(torch.from_numpy(nats / (math.prod(test.shape[1:]) * math.log(2))))
