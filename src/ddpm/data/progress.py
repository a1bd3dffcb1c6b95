"""Progress, reported to whoever asked: bars live with the caller, this room stays silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Something that counts up while work is done; a `tqdm` bar is one."""

    def update(self, n: int, /) -> object:
        """Add `n` finished pieces."""
        ...


ProgressFactory = Callable[[int | None, str], AbstractContextManager[Progress]]
"""``progress(total, description)``; the total is None where it is not known beforehand."""


class _Silence:
    def update(self, n: int, /) -> None:
        return None


@contextmanager
def silent(total: int | None, description: str) -> Iterator[Progress]:
    """Report nothing: the default of every function that takes a `ProgressFactory`."""
    yield _Silence()
