"""Pictures and their features in shards, each a file that is whole or not there: work that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.data.cache import cache_root
from ddpm.errors import DataError
from ddpm.evaluation.extractors.features import Extractor, load_extractor
from ddpm.evaluation.subject import PictureSource, Read, Tick
from ddpm.files import write_atomically

SHARD = 256
"""Pictures in a shard."""

FORMAT = 1
"""Raised whenever the same recipe would give other shards."""

_KEPT_SECONDS = 14 * 24 * 3600
_WRITING_SECONDS = 3600

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Job:
    """Pictures of a source, and their features, in folders whose names are hashes of all that decides what is in them.

    Attributes:
        source: of the pictures.
        count: how many pictures.
        scale: black and white of the pictures.
        extractor: of the features, or its name or file, for another process; None: no features.
        extractor_key: name, hash and recipe of the extractor, as JSON values.
        with_spatial: whether spatial features are kept too.
        keeps_pictures: whether pictures are kept: those that cost something to make.
        device: of model and extractor.
        root: the folder of the folders.
    """

    source: PictureSource
    count: int
    scale: tuple[float, float]
    extractor: Extractor | str | None
    extractor_key: Mapping[str, Any]
    with_spatial: bool
    keeps_pictures: bool
    device: str
    root: Path

    def shards(self) -> list[range]:
        """Return the numbers of the pictures of each shard."""
        return [range(start, min(start + SHARD, self.count)) for start in range(0, self.count, SHARD)]

    def pictures_folder(self) -> Path:
        """Return where pictures are kept; more of the same are added to it."""
        return self.root / f"pictures-{digest(self.source.key())}"

    def features_folder(self) -> Path:
        """Return where features are kept."""
        parts = [self.source.key(), self.extractor_key, self.with_spatial]
        return self.root / f"features-{digest(parts)}"

    def is_done(self, shard: int) -> bool:
        """Whether the files of a shard are there, with at least as many pictures as are wanted; cheap."""
        return all(_count_of(folder / _name(shard)) >= len(self.shards()[shard]) for folder in self.folders())

    def folders(self) -> list[Path]:
        """Return the folders that the job fills."""
        kept = [self.pictures_folder()] if self.keeps_pictures else []
        return kept + ([self.features_folder()] if self.extractor is not None else [])

    def pictures(self) -> Iterator[Pictures]:
        """Give the pictures of a finished job, shard by shard."""
        read: Read | None = None
        for shard, numbers in enumerate(self.shards()):
            if self.keeps_pictures:
                yield _read(self.pictures_folder() / _name(shard), len(numbers))["pictures"]
            else:
                read = read or self.source.open(self.device)
                yield read(numbers, lambda done: None)

    def features(self) -> Arrays:
        """Return the features of a finished job: "pooled" [N, D], and "spatial", "probabilities" where there are."""
        folder = self.features_folder()
        parts = [_read(folder / _name(shard), len(numbers)) for shard, numbers in enumerate(self.shards())]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Worker:
    """One that fills shards, with model and extractor loaded."""

    def __init__(self, job: Job) -> None:
        """Prepare the folders; models are loaded when they are first needed."""
        self.job = job
        self._read: Read | None = None
        self._extractor: Extractor | None = None
        for folder in job.folders():
            folder.mkdir(parents=True, exist_ok=True)

    def fill(self, shard: int, tick: Tick) -> None:
        """Make what a shard lacks, and write it."""
        job, numbers = self.job, self.job.shards()[shard]
        pictures = self._pictures(shard, numbers, tick)
        if job.extractor is None:
            return
        file = job.features_folder() / _name(shard)
        if _count_of(file) >= len(numbers):
            return
        if self._extractor is None:
            known = job.extractor
            self._extractor = load_extractor(known, device=job.device) if isinstance(known, str) else known
        features = self._extractor(pictures, job.scale)
        arrays = {"pooled": features.pooled, "probabilities": features.probabilities}
        if job.with_spatial:
            arrays["spatial"] = features.spatial
        found = {name: np.asarray(values) for name, values in arrays.items() if values is not None}
        _refuse_broken(found, numbers)
        _write(file, found)

    def _pictures(self, shard: int, numbers: range, tick: Tick) -> Pictures:
        file = self.job.pictures_folder() / _name(shard)
        if self.job.keeps_pictures and _count_of(file) >= len(numbers):
            tick(len(numbers))
            return _read(file, len(numbers))["pictures"]
        if self._read is None:
            self._read = self.job.source.open(self.job.device)
        pictures = self._read(numbers, tick)
        if self.job.keeps_pictures:
            _write(file, {"pictures": pictures})
        return pictures


@dataclass(frozen=True)
class KeptRows:
    """Arrays in files of a folder, each named by a hash of all that decides what is in it.

    Attributes:
        folder: where they are.
    """

    folder: Path

    def get(self, key: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """Return what was put there; None for nothing, or a file that a disk has broken."""
        file = self._file(key)
        return _read(file, count)["rows"] if (count := _count_of(file)) else None

    def put(self, key: Mapping[str, Any], rows: NDArray[np.float64]) -> None:
        """Write an array, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self._file(key), {"rows": rows})

    def _file(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(key)}.npz"


def work_root(cache_dir: Path | None = None) -> Path:
    """Return the folder of all evaluations' shards, in the cache."""
    return cache_root(cache_dir).parent / "evaluations"


def clean(root: Path, keep: Sequence[Path]) -> None:
    """Remove folders of shards that nobody has asked for in two weeks, and what killed writers left in those to keep.

    What another process may be writing at this moment is younger, and stays.
    """
    for folder in keep:
        if folder.is_dir():
            os.utime(folder)
            for part in folder.glob(".*.part"):
                if _age(part) > _WRITING_SECONDS:
                    part.unlink(missing_ok=True)
    for folder in root.glob("*-*"):
        if folder not in keep and _age(folder) > _KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def digest(tree: Any) -> str:
    """Return a short hash of JSON values, for a folder's name."""
    return hashlib.sha256(json.dumps([FORMAT, tree], sort_keys=True).encode()).hexdigest()[:24]


def _name(shard: int) -> str:
    return f"{shard:06d}.npz"


def _write(file: Path, arrays: Arrays) -> None:
    count = len(next(iter(arrays.values())))

    def write(part: Path) -> None:
        with open(part, "wb") as stream:
            np.savez(stream, allow_pickle=False, count=np.int64(count), **arrays)

    try:
        write_atomically(file, write)
    except OSError as error:
        raise DataError(
            f"cannot write '{file}' ({error.strerror or error}); free some space, or set DDPM_CACHE to a folder on "
            "another disk: what is done is kept"
        ) from error


def _count_of(file: Path) -> int:
    """Return how many pictures a file holds; 0 for none, or one that a disk has broken."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return int(arrays["count"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return 0


def _read(file: Path, count: int) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name][:count] for name in arrays.files if name != "count"}


def _refuse_broken(features: Arrays, numbers: range) -> None:
    for name, values in features.items():
        if len(values) != len(numbers) or not np.isfinite(values).all():
            raise DataError(
                f"the extractor's {name} features of pictures {numbers.start} to {numbers.stop - 1} are of shape "
                f"{list(values.shape)}, or not finite; expected finite numbers, a row a picture: use another --features"
            )
