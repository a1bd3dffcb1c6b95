"""The store: pictures ready for the network, as one array that may be larger than memory, with its columns."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.config import DataConfig
from ddpm.data import cache
from ddpm.data.building import HELD_OUT, TRAIN, build
from ddpm.data.cache import Kept
from ddpm.data.progress import ProgressFactory, silent
from ddpm.data.report import LoadReport, enforce_policy, report_from_tree
from ddpm.data.sources import resolve
from ddpm.data.sources.base import Source
from ddpm.errors import DataError

_NOT_OF_PICTURES = {"flip", "held_out", "on_bad_file", "max_bad_share", "shards_at_once", "classes"}

MOST_HELD_OUT = 2000
"""Largest number of pictures held out where the data have no split of their own."""


@dataclass(frozen=True, eq=False)
class Store:
    """Pictures as the network sees them.

    Attributes:
        pictures: [N, H, W, C] in uint8, uint16 or float32, read-only; memory-mapped where it comes from the cache.
        labels: [N] int64, index into `classes`; None for data without classes.
        classes: names of the classes; empty without.
        names: name of each picture, for messages.
        captions: text of each picture, or None.
        train: rows to train on, int64, sorted.
        held_out: rows held out, int64, sorted; at least one.
        levels: number of values a channel can take (17 for digits, 256, 65536); None for float.
        value_range: least and largest value, which the codec maps to -1 and 1.
        fingerprint: SHA-256, hexadecimal, of content and transform; other data have another.
        source: what the user typed, resolved.
        report: what was seen, left aside, and done.
        numbers: numeric columns of a table, float64 [N] each, NaN where a cell is empty.
    """

    pictures: NDArray[Any]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    names: Sequence[str]
    captions: Sequence[str] | None
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    levels: int | None
    value_range: tuple[float, float]
    fingerprint: str
    source: str
    report: LoadReport
    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    @property
    def is_points(self) -> bool:
        """Whether these are points in the plane, [N, 1, 1, 2], and no pictures."""
        return self.pictures.shape[1:] == (1, 1, 2)


def open_store(
    source: str | Path,
    config: DataConfig,
    *,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> Store:
    """Open data by path or name; the first time every picture is decoded once, later the cache is mapped.

    Args:
        source: a path, an embedded name, or a Hub name; `ddpm.data.sources` states the order.
        config: how pictures are read.
        cache_dir: where the cache lies; None: ``$DDPM_CACHE``, else the user's cache folder.
        progress: told of every picture; None: silence.

    Raises:
        DataError: if there are no data, too few, too many bad files, or no space for the cache.
    """
    return open_source(resolve(source, config), config, cache_dir=cache_dir, progress=progress)


def open_source(
    place: Source, config: DataConfig, *, cache_dir: Path | None = None, progress: ProgressFactory | None = None
) -> Store:
    """Open a source, as `open_store` does, and close it."""
    try:
        kept, from_cache = _open(place, config, cache.cache_root(cache_dir), progress or silent)
    finally:
        place.close()
    return _assemble(kept, config, place.name, from_cache)


def cache_key(source: Source, config: DataConfig) -> str:
    """Return the name of a store: a hash of what changes with the files, and of every setting that changes pictures."""
    settings = config.model_dump(mode="json", exclude=_NOT_OF_PICTURES)
    digest = hashlib.sha256(json.dumps([cache.FORMAT, type(source).__name__, settings]).encode())
    for line in source.stamp():
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]


def _open(source: Source, config: DataConfig, root: Path, progress: ProgressFactory) -> tuple[Kept, bool]:
    key = cache_key(source, config)
    if not source.in_memory and (kept := cache.load(root / key)):
        return kept, True
    with _workspace(source, root) as (work, notice):
        target = root / key if notice is None and not source.in_memory else None
        with cache.disk_errors(root), warnings.catch_warnings():
            # What Pillow warns of ends up in the report, or is none of the user's business.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return build(source, config, target, work, progress, notice), False


@contextmanager
def _workspace(source: Source, root: Path) -> Iterator[tuple[Path, str | None]]:
    """Give a temporary folder; in the cache where that can be written, else with a notice why not."""
    notice: str | None = None
    with ExitStack() as stack:
        if not source.in_memory:
            try:
                work = stack.enter_context(cache.workspace(root))
            except OSError as error:
                notice = f"the picture cache '{root}' cannot be written ({error.strerror}): nothing is kept for later"
            else:
                yield work, None
                return
        folder = tempfile.TemporaryDirectory(prefix="ddpm-", ignore_cleanup_errors=True)
        yield Path(stack.enter_context(folder)), notice


def _assemble(kept: Kept, config: DataConfig, name: str, from_cache: bool) -> Store:
    record, columns = kept.record, kept.columns
    report = replace(report_from_tree(record["report"]), from_cache=from_cache)
    enforce_policy(report.bad, report.used + len(report.bad), config)
    low, high = record["value_range"]
    train, held_out = split_rows(columns.splits, len(kept.pictures), config.held_out, record["content"])
    return Store(
        pictures=kept.pictures,
        labels=columns.labels,
        classes=tuple(record["classes"]),
        names=columns.names,
        captions=columns.captions,
        train=train,
        held_out=held_out,
        levels=record["levels"],
        value_range=(low, high),
        fingerprint=record["fingerprint"],
        source=name,
        report=report,
        numbers=columns.numbers,
    )


def split_rows(
    splits: NDArray[np.uint8] | None, count: int, share: float, content: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and those held out.

    The split of the source counts where it has one. Else a shuffled share is held out, at least 1 and at most 2,000
    pictures, by the content alone: equal data are split equally on every machine.

    Raises:
        DataError: if there are fewer than two pictures.
    """
    if count < 2:
        raise DataError(
            f"the data hold {count} readable picture; at least 2 are needed, one to train on and one held out"
        )
    if splits is not None and {TRAIN, HELD_OUT} <= set(np.unique(splits).tolist()):
        rows = np.arange(count, dtype=np.int64)
        return rows[splits != HELD_OUT], rows[splits == HELD_OUT]
    held = min(MOST_HELD_OUT, count - 1, max(1, round(count * share)))
    order = np.random.default_rng(int(content[:16], 16)).permutation(count).astype(np.int64)
    return np.sort(order[held:]), np.sort(order[:held])
