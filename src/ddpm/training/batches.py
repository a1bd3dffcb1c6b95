"""Which pictures, times and noise each optimizer step sees: a pure function of (seed, step).

Importance-sampled times depend on the losses so far, while batches are made in advance: so a batch carries the uniform
number behind each time, and the training loop replaces the time when the step is made.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Codec, Pictures
from ddpm.conditions import Condition
from ddpm.conditions.of_data import DataConditions
from ddpm.diffusion.noise import NoiseSource, stream
from ddpm.training.importance import uniform_times

T = TypeVar("T")

WHOLE = slice(None)
"""The part of a batch that is all of it."""

_DROP_STEPS = 2**32  # by so many steps a probability is resolved
_UNIFORM_STEPS = 2**53  # as many as a float64 in [0, 1) can tell apart
_BLOCK = 4096  # random numbers of consecutive pictures are drawn this many at a time: one stream each would cost more


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step sees.

    Attributes:
        rows: int64 [B], the rows of the data set.
        x_0: float32 [B, C, H, W].
        t: int64 [B], floor(u T), or as importance sampling has chosen it.
        eps: float32 [B, C, H, W], standard normal.
        dropout_keys: int64 [B], the key of each picture's dropout masks.
        u: float64 [B], uniform in [0, 1), behind `t`.
        conditioned: bool [B], whether a self-conditioned network sees its own estimate, or zeros.
        weights: float32 [B], of each loss in the mean; 1 where t is uniform.
        condition: of each picture, some of them dropped; None where there is none.
    """

    rows: NDArray[np.int64]
    x_0: Tensor
    t: Tensor
    eps: Tensor
    dropout_keys: Tensor
    u: Tensor
    conditioned: Tensor
    weights: Tensor
    condition: Condition | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, size: int) -> Batch:
        """Return up to `size` pictures from number `start` on."""
        part = slice(start, start + size)
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "condition"}
        condition = None if self.condition is None else self.condition.select(part)
        return Batch(**{name: value[part] for name, value in values.items()}, condition=condition)


@dataclass(frozen=True, eq=False)
class BatchSource:
    """Batches by number of the step.

    Pictures are numbered over the whole run: step n sees the numbers n B to (n + 1) B - 1. Number i is row
    ``permutation(epoch)[i mod N]`` with epoch = i div N, so every picture is seen once an epoch.

    Attributes:
        pictures: [N, H, W, C], the data set, in memory or memory-mapped.
        rows: int64 [M], the rows to train on.
        codec: pictures -> x_0.
        batch_size: B.
        num_timesteps: T.
        seed: of the run.
        flip: mirror half of the pictures.
        conditions: of the rows; None: there are none.
        part: which pictures of every batch are made: those of one of several processes.
    """

    pictures: Pictures
    rows: NDArray[np.int64]
    codec: Codec
    batch_size: int
    num_timesteps: int
    seed: int
    flip: bool = False
    conditions: DataConditions | None = None
    part: slice = field(default_factory=lambda: WHOLE)

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, counted from 0, or this source's part of it."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.part]
        rows = self._rows(numbers)
        pictures = self._pictures(rows)
        mirrored = self._draw("flip", numbers, 2) == 1 if self.flip else np.zeros(len(rows), dtype=np.bool_)
        if self.flip:
            pictures[mirrored] = pictures[mirrored][:, :, ::-1]
        x_0 = self.codec.encode(pictures)
        u = torch.from_numpy(self._draw("t", numbers, _UNIFORM_STEPS)).double() / _UNIFORM_STEPS
        return Batch(
            rows=rows,
            x_0=x_0,
            t=uniform_times(u, self.num_timesteps),
            eps=NoiseSource(self.seed, [int(i) for i in numbers], x_0.shape[1:]).normal(0, "eps"),
            dropout_keys=torch.from_numpy(self._draw("dropout", numbers, 2**31)),
            u=u,
            conditioned=torch.from_numpy(self._draw("self-conditioning", numbers, 2) == 1),
            weights=torch.ones(len(rows)),
            condition=self._condition(rows, x_0, numbers, mirrored),
        )

    def close(self) -> None:
        """Let go of what is held for batches to come."""

    def _rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.rows[self._order(numbers)]

    def _pictures(self, rows: NDArray[np.int64]) -> Pictures:
        return self.pictures[rows]

    def _conditions_of(
        self, rows: NDArray[np.int64], x_0: Tensor, numbers: NDArray[np.int64], mirrored: NDArray[np.bool_]
    ) -> Condition:
        assert self.conditions is not None  # it was asked before
        return self.conditions.of(rows, x_0, seed=self.seed, pictures=numbers, mirrored=mirrored)

    def _condition(
        self, rows: NDArray[np.int64], x_0: Tensor, numbers: NDArray[np.int64], mirrored: NDArray[np.bool_]
    ) -> Condition | None:
        """Return the conditions, a share of them dropped: which, the number of the picture decides."""
        if self.conditions is None:
            return None
        condition = self._conditions_of(rows, x_0, numbers, mirrored)
        dropped = self._draw("condition dropout", numbers, _DROP_STEPS) < self.conditions.spec.dropout * _DROP_STEPS
        return condition.drop(torch.from_numpy(dropped))

    def _order(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        count = len(self.rows)
        epochs, places = np.divmod(numbers, count)
        order = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order[here] = _permutation(self.seed, int(epoch), count)[places[here]]
        return order

    def _draw(self, purpose: str, numbers: NDArray[np.int64], bound: int) -> NDArray[np.int64]:
        blocks, places = np.divmod(numbers, _BLOCK)
        drawn = np.empty_like(numbers)
        for block in np.unique(blocks):
            here = blocks == block
            drawn[here] = _block(self.seed, purpose, int(block), bound)[places[here]]
        return drawn


def balanced_rows(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows in which every class is as frequent as the largest: the others' are repeated.

    Args:
        rows: of an epoch, int64 [M].
        labels: of all rows of the data, int64 [N].
    """
    own = labels[rows]
    largest = int(np.bincount(own).max())
    return np.concatenate([np.resize(rows[own == label], largest) for label in np.unique(own)])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return stream(seed, "order", draw=epoch).permutation(count)


@lru_cache(maxsize=16)
def _block(seed: int, purpose: str, block: int, bound: int) -> NDArray[np.int64]:
    return stream(seed, purpose, draw=block).integers(0, bound, size=_BLOCK, dtype=np.int64)


def prefetched(make: Callable[[int], T], start: int, stop: int, ahead: int = 2) -> Generator[T, None, None]:
    """Yield ``make(start), ..., make(stop - 1)``, made by one thread up to `ahead` in advance.

    An error in the thread is raised here, at the item that it concerns. Closing the iterator ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        for number in range(start, stop):
            if closed.is_set():
                return
            try:
                put((make(number), None))
            except BaseException as error:
                put((None, error))
                return

    worker = threading.Thread(target=work, name="ddpm-prefetch", daemon=True)
    worker.start()
    try:
        for _ in range(start, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # without an error there is an item
    finally:
        closed.set()
        worker.join()
