"""A group of processes that do the same steps on different pictures; of one process, everything here is trivial."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ddpm.errors import DdpmError, RunError

T = TypeVar("T")
E = TypeVar("E")


@dataclass(frozen=True, eq=False)
class Group:
    """Who trains together. One process writes and speaks: the first.

    What the processes agree on travels over the CPU, in a channel of its own that waits for as long as the first
    process evaluates or writes; gradients travel as the backend has it (`ddpm.processes.replicas`).

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine: its GPU.
        local_size: how many processes its machine has.
        hosts: name of the machine of each process.
        channel: what agreements travel over; none: this process is alone.
        words: how the links between the processes are, for people.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] = ("here",)
    channel: dist.ProcessGroup | None = None
    words: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def part(self, count: int) -> slice:
        """Return which of `count` pictures are this process's: in a row, parts that differ by one at most.

        Raises:
            RunError: if there are fewer pictures than processes.
        """
        if count < self.size:
            raise RunError(
                f"a batch of {count} and {self.size} processes, of which each needs a picture; use a larger "
                "training.batch_size, or fewer processes"
            )
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def largest_part(self, count: int) -> int:
        """Return how many of `count` pictures a process has at most."""
        return math.ceil(count / self.size)

    def most(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.is_alone:
            return number
        agreed = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.channel)
        return int(agreed)

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes."""
        return bool(self.most(int(flag)))

    def every(self, value: T) -> list[T]:
        """Return the values of all processes, in their order."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.channel)
        return values

    def rows(self, own: Tensor, count: int) -> Tensor:
        """Return the rows [count, K] that all processes hold together, each of them its `part`."""
        if self.is_alone:
            return own
        largest = self.largest_part(count)
        padded = torch.zeros(largest, *own.shape[1:], dtype=own.dtype)
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded, group=self.channel)
        sizes = ((rank + 1) * count // self.size - rank * count // self.size for rank in range(self.size))
        return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])

    def of_first(self, value: T) -> T:
        """Return the first process's value."""
        if self.is_alone:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0, group=self.channel)
        agreed: T = held[0]
        return agreed

    def first(self, work: Callable[[], T]) -> T:
        """Do something in the first process alone; every process returns its result, or raises its error.

        Raises:
            DdpmError: what the first process met.
        """

        def silently() -> Generator[None, None, T]:
            return work()
            yield

        return _returned(self.first_yields(silently()))

    def only_first(self, work: Callable[[], T]) -> T | None:
        """As `first`, where the result is for the first process alone; the others return none."""
        kept: list[T] = []
        self.first(lambda: kept.append(work()))
        return kept[0] if kept else None

    def first_yields(self, work: Generator[E, None, T]) -> Generator[E, None, T]:
        """As `first`, of a generator: what it yields is yielded in the first process alone."""
        if self.is_alone:
            return (yield from work)
        outcome: tuple[T | None, DdpmError | None] = (None, None)
        if self.is_first:
            try:
                outcome = ((yield from work), None)
            except DdpmError as error:
                outcome = (None, error)
        return _unwrapped(self.of_first(outcome))

    def host_by_host(self, work: Callable[[], T]) -> T:
        """Do something in one process of each machine, and then in its others, which find what the first has left.

        Raises:
            DdpmError: what a process met, in all of them.
        """
        if self.is_alone:
            return work()
        done: list[T] = []
        for own_turn in (self.local_rank == 0, self.local_rank != 0):
            if own_turn:
                self.each(lambda: done.append(work()))
            else:
                self.each(lambda: None)
        return done[0]

    def each(self, work: Callable[[], T]) -> T:
        """Do something in every process, so that none goes on, and waits, where another has failed.

        Raises:
            DdpmError: what a process met, in all of them.
        """
        done: list[T] = []
        met: DdpmError | None = None
        try:
            done.append(work())
        except DdpmError as error:
            met = error
        for found in self.every(met):
            if found is not None:
                raise found
        return done[0]

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuse processes that would not make the same steps.

        Args:
            facts: what must be the same everywhere, by names for people.

        Raises:
            RunError: naming the first fact that differs, and where.
        """
        everywhere = self.every(dict(facts))
        for name, value in everywhere[0].items():
            for rank, others in enumerate(everywhere):
                if others[name] != value:
                    raise RunError(
                        f"the processes differ in their {name}: '{value}' in process 0 on {self.hosts[0]}, "
                        f"'{others[name]}' in process {rank} on {self.hosts[rank]}; make them the same everywhere"
                    )

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors of every process with the first one's."""
        if not self.is_alone:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)  # what is overwritten has no gradient


ALONE = Group()
"""The group of one process."""


def _unwrapped(outcome: tuple[T | None, DdpmError | None]) -> T:
    result, error = outcome
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # without an error there is a result


def _returned(work: Generator[object, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
