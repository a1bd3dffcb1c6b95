"""Data that no disk holds: a list of shards, of which a few at a time are decoded into the cache.

The first shard stays. It decides size, channels and depth, and gives the held-out pictures.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm.config import DataConfig
from ddpm.data import cache
from ddpm.data.progress import ProgressFactory, silent
from ddpm.data.sources.base import Source
from ddpm.data.sources.shard import ParquetShard, ShardSource, is_address
from ddpm.data.store import Store, cache_key, open_source
from ddpm.errors import DataError

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".parquet")
_BRACES = re.compile(r"\{(?:(?P<low>\d+)\.\.(?P<high>\d+)|(?P<choices>[^{}]*,[^{}]*))\}")
_MOST = 1_000_000


@dataclass(frozen=True, eq=False)
class Shards:
    """A list of shards, and how they are read.

    Attributes:
        pattern: what the user typed.
        places: paths or addresses, at least two.
        config: how pictures are read, with the size and channels of the first shard.
        cache_dir: of decoded pictures; none: the usual one.
        first: the first shard, with a fingerprint of the whole list.
    """

    pattern: str
    places: tuple[str, ...]
    config: DataConfig
    cache_dir: Path | None
    first: Store

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.places)

    @property
    def pictures_each(self) -> int:
        """How many pictures each shard gives an epoch: as many as the first has to train on."""
        return len(self.first.train)

    def open(self, number: int) -> Store:
        """Return a shard, decoded if it is not in the cache.

        Raises:
            DataError: if it is missing, damaged, or of other pictures than the first.
        """
        if number == 0:
            return self.first
        store = open_source(self._source(number), self.config, cache_dir=self.cache_dir)
        kinds = [(each.pictures.shape[1:], each.pictures.dtype, each.value_range) for each in (store, self.first)]
        if kinds[0] != kinds[1]:
            words = [
                f"{'x'.join(map(str, shape))} in {dtype}, from {low:g} to {high:g}"
                for shape, dtype, (low, high) in kinds
            ]
            raise DataError(
                f"the shard '{self.places[number]}' has pictures of {words[0]}, the first one of {words[1]}"
            )
        return store

    def forget(self, number: int) -> None:
        """Remove a decoded shard from the cache; what has been mapped of it can still be read."""
        if number:
            folder = cache.cache_root(self.cache_dir) / cache_key(self._source(number), self.config)
            shutil.rmtree(folder, ignore_errors=True)

    def _source(self, number: int) -> Source:
        return _source_of(self.places[number], self.config)


def is_list_of_shards(source: str | Path) -> bool:
    """Whether a name means several tars or parquet files: ``shards/{000..099}.tar``, ``shards/*.tar``, an address."""
    text = str(source)
    several = any(sign in text for sign in "{*?[") or is_address(text)
    return several and text.split("?")[0].lower().endswith(_ENDINGS) and not _exists(text)


def open_shards(
    pattern: str | Path,
    config: DataConfig,
    *,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> Shards:
    """Find the shards, and decode the first.

    Raises:
        DataError: if there are fewer than two, one on the disk is missing, or the first cannot be used.
    """
    text = str(pattern)
    places = expand(text)
    missing = [place for place in places if not is_address(place) and not Path(place).is_file()]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(places):,} shards of '{text}' are missing, the first is {missing[0]}"
        )
    if len(places) < 2:
        found = f"is one shard: '{places[0]}'" if places else "means no file"
        raise DataError(f"'{text}' {found}; expected at least two, such as shards/{{000..099}}.tar or shards/*.tar")
    first = open_source(_source_of(places[0], config), config, cache_dir=cache_dir, progress=progress or silent)
    height, width, channels = first.pictures.shape[1:]
    settled = config.model_copy(
        update={"size": (height, width), "channels": {1: "gray", 3: "rgb", 4: "rgba"}[channels]}
        | ({"classes": first.classes} if first.classes else {})
    )
    whole = hashlib.sha256("\n".join([first.fingerprint, *(place.rsplit("/", 1)[-1] for place in places)]).encode())
    note = (
        f"streamed: {len(places):,} shards, {len(first.train):,} pictures of each an epoch; at most "
        f"{3 * config.shards_at_once:,} are decoded at a time"
    )
    report = replace(first.report, notes=(*first.report.notes, note))
    first = replace(first, source=text, fingerprint=whole.hexdigest(), report=report)
    return Shards(text, places, settled, cache_dir, first)


def expand(pattern: str) -> tuple[str, ...]:
    """Return what a pattern with ``{000..099}``, ``{a,b}``, ``*`` and ``?`` means, sorted where files are looked for.

    Raises:
        DataError: for a range of more than a million.
    """
    found = _BRACES.search(pattern)
    if found is not None and found["choices"] is not None:
        choices = found["choices"].split(",")
    elif found is not None:
        low, high = found["low"], found["high"]
        if int(high) - int(low) >= _MOST:
            raise DataError(f"'{pattern}' means more than {_MOST:,} shards; expected a range such as {{000..099}}")
        choices = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    elif is_address(pattern) or not any(sign in pattern for sign in "*?["):
        return (pattern,)
    else:
        return tuple(sorted(glob.glob(str(Path(pattern).expanduser()))))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return tuple(place for choice in choices for place in expand(f"{before}{choice}{after}"))


def _source_of(place: str, config: DataConfig) -> Source:
    if not is_address(place) and not Path(place).is_file():
        raise DataError(f"the shard '{place}' is missing; put it back, or start anew without it")
    kind = ParquetShard if place.split("?")[0].lower().endswith(".parquet") else ShardSource
    return kind(Path(place), config, place)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
