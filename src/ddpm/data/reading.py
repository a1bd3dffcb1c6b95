"""The two passes over a source: look at every header, then decode every picture once, in parallel and in order.

Threads, not processes: Pillow decodes and scales without the interpreter's lock, threads need no main guard in the
user's script, and none is left behind to hang.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm.data.decide import Survey
from ddpm.data.decode import BadPictureError, Depth, Header, read_header, read_pixels
from ddpm.data.progress import ProgressFactory
from ddpm.data.sources.base import Example, Source
from ddpm.data.transform import Transform

Bad = list[tuple[str, str]]
In = TypeVar("In")
Out = TypeVar("Out")

BATCH = 16
"""Pictures that a thread takes at once: enough to hide the cost of handing over, few enough to keep memory flat."""


FEW_THREADS = 8
"""Threads where the disk is waited for but the interpreter's lock is held most of the time."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the network sees it, with the digest of what it was read from."""

    values: NDArray[Any]
    digest: bytes
    conversions: tuple[str, ...]


@dataclass(slots=True)
class Look:
    """What the first pass found.

    Attributes:
        survey: counts over the headers.
        bad: names and reasons of what has no readable header.
        skip: positions of those examples.
    """

    survey: Survey = field(default_factory=Survey)
    bad: Bad = field(default_factory=list)
    skip: set[int] = field(default_factory=set)


def look(source: Source, progress: ProgressFactory) -> Look:
    """Read the header of every example; `Look.bad` lists those that have none."""
    found = Look()
    workers = min(FEW_THREADS, worker_count()) if source.waits_for_disk else 1
    with progress(len(source), "Looking at pictures") as bar:
        for i, (example, header) in enumerate(ordered_map(_header, source.examples(), workers)):
            bar.update(1)
            if isinstance(header, Header):
                found.survey.add(header)
            else:
                found.bad.append((example.name, header))
                found.skip.add(i)
    return found


def read(
    source: Source, transform: Transform | None, skip: set[int], workers: int, progress: ProgressFactory
) -> Iterator[tuple[Example, Picture | str]]:
    """Yield every example with its picture, or with the reason why there is none.

    Args:
        source: where the examples come from.
        transform: what is done to each picture; None leaves the numbers as they are.
        skip: positions that are known to be bad and left out.
        workers: number of threads.
        progress: told of every example.
    """

    def picture(example: Example) -> tuple[Example, Picture | str]:
        return example, _picture(example, transform)

    wanted = (example for i, example in enumerate(source.examples()) if i not in skip)
    with progress(len(source) - len(skip), "Reading pictures") as bar:
        for result in ordered_map(picture, wanted, workers):
            bar.update(1)
            yield result


def ordered_map(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Iterator[Out]:
    """Map over items with `workers` threads; results come in order, and only a few batches are ever in memory."""
    if workers == 1:
        yield from map(function, items)
        return
    iterator = iter(items)
    pending: deque[Future[list[Out]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while batch := list(islice(iterator, BATCH)):
            pending.append(pool.submit(_map_batch, function, batch))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def worker_count() -> int:
    """Return the number of processors that this process may use, at most 32."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(32, len(affinity(0)) if affinity else os.cpu_count() or 1)


def count_words(conversions: Counter[str]) -> tuple[str, ...]:
    """Return lines such as ``12 with alpha composited on white``."""
    return tuple(f"{count:,} {what}" for what, count in conversions.most_common())


def depth_of(values: NDArray[Any]) -> Depth:
    """Return the depth by its name."""
    depths: dict[str, Depth] = {"uint8": "uint8", "uint16": "uint16"}
    return depths.get(values.dtype.name, "float32")


def _map_batch(function: Callable[[In], Out], batch: list[In]) -> list[Out]:
    return [function(item) for item in batch]


def _header(example: Example) -> tuple[Example, Header | str]:
    try:
        opened = example.open()
        if isinstance(opened, np.ndarray):
            return example, read_header(opened)
        with opened:
            return example, read_header(opened)
    except BadPictureError as error:
        return example, str(error)
    except OSError as error:
        return example, error.strerror or "cannot be opened"


def _picture(example: Example, transform: Transform | None) -> Picture | str:
    try:
        opened = example.open()
        if isinstance(opened, np.ndarray):
            pixels = read_pixels(opened)
        else:
            with opened:
                pixels = read_pixels(opened)
        values, done = transform(pixels.values) if transform else (pixels.values, ())
    except BadPictureError as error:
        return str(error)
    except OSError as error:
        return error.strerror or "cannot be opened"
    return Picture(values, pixels.digest, pixels.conversions + done)
