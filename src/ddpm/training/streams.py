"""Batches from streamed shards: still a pure function of (seed, step), given the list of shards.

Every epoch walks over all shards in an order of its own, a window of several at a time, and mixes the pictures of a
window. Each shard gives as many pictures as the first: of a larger one, the others in later epochs; of a smaller one,
some twice. So the place of every picture is known without reading what comes before it, and a resumed run opens one
window alone.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Pictures
from ddpm.conditions import Condition
from ddpm.conditions.condition import concatenated
from ddpm.conditions.of_data import DataConditions, conditions_of
from ddpm.config.conditions import ConditionsConfig
from ddpm.data.shards import Shards
from ddpm.data.store import Store
from ddpm.diffusion.noise import stream
from ddpm.training.batches import BatchSource

STRIDE = 2**32
"""Row r of shard k has the number k STRIDE + r."""


@dataclass(frozen=True, eq=False)
class OpenShard:
    """A decoded shard with the conditions of its rows, in an order of its own."""

    store: Store
    conditions: DataConditions | None
    order: NDArray[np.int64]

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows at places of an endless walk over all that may be trained on."""
        return self.order[places % len(self.order)]


class Opener:
    """Opens shards in advance, one after another, and forgets those that are behind."""

    def __init__(self, shards: Shards, seed: int, conditions: DataConditions | None, config: ConditionsConfig) -> None:
        """Open nothing yet; `conditions` are those of the first shard."""
        self.shards, self.seed = shards, seed
        self._conditions, self._config = conditions, config
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ddpm-shards")
        self._opened: dict[int, Future[OpenShard]] = {}
        self._needed: set[int] = set()

    def get(self, number: int) -> OpenShard:
        """Return a shard, waiting for it where it was not expected."""
        if number not in self._opened:
            self._opened[number] = self._worker.submit(self._open, number)
        return self._opened[number].result()

    def expect(self, needed: set[int]) -> None:
        """Say which shards are needed now and next; those that were not needed before, either, are forgotten."""
        if needed == self._needed:
            return
        for number in self._opened.keys() - needed - self._needed:
            self._opened.pop(number)
            self._worker.submit(self.shards.forget, number)
        self._needed = needed
        for number in needed - self._opened.keys():
            self._opened[number] = self._worker.submit(self._open, number)

    def close(self) -> None:
        """Open nothing more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _open(self, number: int) -> OpenShard:
        store = self.shards.open(number)
        conditions = self._conditions
        if number and conditions is not None:
            conditions = conditions_of(store, conditions.spec, self._config, self.shards.config)
        rows = store.train if number == 0 else np.arange(len(store), dtype=np.int64)
        return OpenShard(store, conditions, stream(self.seed, "order in a shard", draw=number).permutation(rows))


@dataclass(frozen=True, eq=False)
class StreamedBatches(BatchSource):
    """Batches of streamed shards, by number of the step.

    Attributes:
        opener: of the shards.
    """

    opener: Opener = field(kw_only=True)

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        walk = Walk(self.seed, len(self.opener.shards), self.opener.shards.pictures_each, self._window)
        self.opener.expect(walk.needed(int(numbers[0]), int(numbers[-1])))
        shards, places = walk.places(numbers)
        rows = np.empty_like(numbers)
        for number in np.unique(shards):
            here = shards == number
            rows[here] = number * STRIDE + self.opener.get(int(number)).rows(places[here])
        return rows

    @property
    def _window(self) -> int:
        return self.opener.shards.config.shards_at_once

    def _pictures(self, rows: NDArray[np.int64]) -> Pictures:
        first = self.opener.shards.first.pictures
        pictures = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for here, shard, own in self._by_shard(rows):
            pictures[here] = shard.store.pictures[own]
        return pictures

    def _conditions_of(
        self, rows: NDArray[np.int64], x_0: Tensor, numbers: NDArray[np.int64], mirrored: NDArray[np.bool_]
    ) -> Condition:
        parts, order = [], []
        for here, shard, own in self._by_shard(rows):
            assert shard.conditions is not None  # all have what the first has
            at = np.flatnonzero(here)
            of_these = x_0[torch.from_numpy(at)]
            parts.append(
                shard.conditions.of(own, of_these, seed=self.seed, pictures=numbers[at], mirrored=mirrored[at])
            )
            order.append(at)
        return concatenated(parts).select(torch.from_numpy(np.argsort(np.concatenate(order))))

    def _by_shard(self, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.bool_], OpenShard, NDArray[np.int64]]]:
        shards, own = np.divmod(rows, STRIDE)
        return [(shards == number, self.opener.get(int(number)), own[shards == number]) for number in np.unique(shards)]

    def close(self) -> None:
        """Open no more shards."""
        self.opener.close()


@dataclass(frozen=True, slots=True)
class Walk:
    """Which shard, and which place in it, a picture of the run comes from.

    Attributes:
        seed: of the run.
        shards: how many there are.
        each: pictures that a shard gives an epoch.
        window: shards whose pictures are mixed.
    """

    seed: int
    shards: int
    each: int
    window: int

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shards of pictures by their numbers in the run, and their places in the walk over these."""
        epochs, windows, within = self._parts(numbers)
        shards, places = np.empty_like(numbers), np.empty_like(numbers)
        for epoch, window in {*zip(epochs.tolist(), windows.tolist(), strict=True)}:
            here = (epochs == epoch) & (windows == window)
            members = self.members(epoch, window)
            mixed = _mixed(self.seed, epoch, window, len(members) * self.each)[within[here]]
            shards[here] = members[mixed // self.each]
            places[here] = epoch * self.each + mixed % self.each
        return shards, places

    def members(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Return the shards of a window."""
        return _shard_order(self.seed, epoch, self.shards)[window * self.window :][: self.window]

    def needed(self, first: int, last: int) -> set[int]:
        """Return the shards of the windows of the pictures from number `first` to `last`, and of the next window."""
        epochs, windows, _ = self._parts(np.asarray([first, last]))
        pairs = {*zip(epochs.tolist(), windows.tolist(), strict=True)}
        epoch, window = max(pairs)
        pairs.add((epoch, window + 1) if (window + 1) * self.window < self.shards else (epoch + 1, 0))
        return {int(shard) for pair in pairs for shard in self.members(*pair)}

    def _parts(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        epochs, within = np.divmod(numbers, self.shards * self.each)
        windows, within = np.divmod(within, self.window * self.each)
        return epochs, windows, within


@lru_cache(maxsize=4)
def _shard_order(seed: int, epoch: int, shards: int) -> NDArray[np.int64]:
    return stream(seed, "order of shards", draw=epoch).permutation(shards)


@lru_cache(maxsize=4)
def _mixed(seed: int, epoch: int, window: int, count: int) -> NDArray[np.int64]:
    return stream(seed, "order in a window", picture=epoch, draw=window).permutation(count)
