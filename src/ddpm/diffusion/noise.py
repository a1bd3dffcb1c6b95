"""Randomness as an argument: every random number is a function of (seed, picture, purpose, draw).

The generator is numpy's Philox, which is counter-based: a stream costs no state, so picture i gets the same noise for
any batch size, order and number of devices, and a resumed run draws what the uninterrupted one would have drawn. A
stream costs about 10 microseconds to open, and then 3 nanoseconds a number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=64)
def _purpose_key(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def stream(seed: int, purpose: str, picture: int = 0, draw: int = 0) -> np.random.Generator:
    """Return the generator of one stream of random numbers.

    Args:
        seed: 0 to 2^64 - 1, the run's or the user's.
        purpose: what the numbers are for, for example "eps"; other purposes give independent streams.
        picture: 0 to 2^64 - 1, the number of the picture.
        draw: 0 to 2^64 - 1, which draw for this picture and purpose.
    """
    key = np.array([seed, _purpose_key(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, draw, picture], dtype=np.uint64)  # the two low words count the numbers of the stream
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class NoiseSource:
    """Standard normal noise for a batch of numbered pictures."""

    def __init__(
        self,
        seed: int,
        pictures: Sequence[int],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Bind a seed to pictures.

        Args:
            seed: 0 to 2^64 - 1.
            pictures: the number of each picture of the batch.
            shape: of one picture, for example (3, 32, 32).
            dtype: of the noise; numbers are drawn in float32, so they are the same in every dtype that holds them.
            device: where the noise goes.
        """
        self.seed = seed
        self.pictures = tuple(pictures)
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = torch.device(device)

    def normal(self, draw: int, purpose: str) -> Tensor:
        """Return noise [B, *shape]: draw number `draw` of the stream for `purpose` of each picture."""
        noise = np.empty((len(self.pictures), math.prod(self.shape)), dtype=np.float32)
        for row, picture in zip(noise, self.pictures, strict=True):
            stream(self.seed, purpose, picture, draw).standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(noise).reshape(len(self.pictures), *self.shape).to(self.device, self.dtype)
