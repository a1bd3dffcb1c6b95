"""The cache on disk: pictures decoded and scaled once, in a memory-mapped file, for every later run.

A store is one folder: ``pictures.npy``, the columns beside it, and ``store.json``. It is written under a temporary
name, flushed to the disk and renamed last, so that a killed writer leaves nothing that could be mistaken for a store,
and two writers at once do not disturb each other.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError

FORMAT = 1
"""Raised whenever the same files would give another store."""

RECORD = "store.json"
STALE_SECONDS = 24 * 3600
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Columns:
    """What is stored for each picture, row by row, beside the picture itself."""

    names: Sequence[str]
    labels: NDArray[np.int64] | None
    captions: Sequence[str] | None
    splits: NDArray[np.uint8] | None
    numbers: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Kept:
    """A complete store: pictures [N, H, W, C], their columns, and a record of plain JSON values."""

    pictures: NDArray[Any]
    columns: Columns
    record: dict[str, Any]


class Strings(Sequence[str]):
    """A column of text on disk, decoded one entry at a time: a million names cost no memory."""

    def __init__(self, folder: Path, name: str) -> None:
        """Map the column `name` of a store."""
        self.ends: NDArray[np.int64] = np.load(folder / f"{name}.npy", mmap_mode="r")
        path = folder / f"{name}.txt"
        empty = path.stat().st_size == 0
        self.text: NDArray[np.uint8] = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        start = int(self.ends[row - 1]) if row else 0
        return bytes(self.text[start : int(self.ends[row])]).decode("utf-8", "surrogateescape")


class MemorySink:
    """Pictures kept in memory: for small data, and where no cache can be written."""

    def __init__(self) -> None:
        """Start empty."""
        self.pictures: list[NDArray[Any]] = []

    def append(self, picture: NDArray[Any]) -> None:
        """Keep a picture [H, W, C]."""
        self.pictures.append(picture)

    def stacked(self) -> NDArray[Any]:
        """Return the pictures as one read-only array [N, H, W, C]."""
        stacked = np.stack(self.pictures)
        self.pictures = []
        stacked.flags.writeable = False
        return stacked

    def complete(self) -> None:
        """Do nothing: memory is complete at any time."""

    def close(self) -> None:
        """Do nothing: there is no file."""


class FileSink:
    """Pictures streamed into a .npy file whose number of rows is written at the end."""

    def __init__(self, path: Path) -> None:
        """Prepare to write `path`; it is created by the first picture."""
        self.path = path
        self.file: BinaryIO | None = None
        self.rows = 0
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.uint8)

    def append(self, picture: NDArray[Any]) -> None:
        """Write a picture [H, W, C] behind the others; all have the same shape and dtype."""
        if self.file is None:
            self.shape, self.dtype = picture.shape, picture.dtype
            self.file = open(self.path, "wb", buffering=2**20)  # noqa: SIM115 - open until `close`
            self.file.write(self._header())
        self.file.write(picture.tobytes())
        self.rows += 1

    def complete(self) -> None:
        """Write the number of rows, and everything to the disk."""
        if self.file is not None:
            self.file.seek(0)
            self.file.write(self._header())
            _flush(self.file)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()

    def _header(self) -> bytes:
        # numpy pads the header for growth along the first axis: its length does not depend on the number of rows.
        stream = BytesIO()
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(stream, about)
        return stream.getvalue()


def cache_root(cache_dir: Path | None) -> Path:
    """Return the folder of all stores: the argument, else ``$DDPM_CACHE``, else the user's cache folder."""
    if cache_dir is not None:
        return cache_dir / "stores"
    if chosen := os.environ.get("DDPM_CACHE"):
        return Path(chosen) / "stores"
    import platformdirs

    return Path(platformdirs.user_cache_dir("ddpm")) / "stores"


def load(folder: Path) -> Kept | None:
    """Open a store, or return None where there is none that is complete."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT or not _is_complete(folder, record["files"]):
            return None
        return _map(folder, record)
    except (OSError, ValueError, KeyError):
        return None


def save(folder: Path, work: Path, columns: Columns, record: dict[str, Any]) -> Kept:
    """Write the columns beside the pictures in `work`, then give the whole its name.

    Args:
        folder: the name of the store.
        work: the temporary folder, which holds ``pictures.npy`` already.
        columns: what is stored beside them.
        record: what `load` gives back, as JSON values.
    """
    _save_array(work / "labels.npy", columns.labels)
    _save_array(work / "splits.npy", columns.splits)
    _save_text(work, "names", columns.names)
    _save_text(work, "captions", columns.captions)
    for position, values in enumerate(columns.numbers.values()):
        _save_array(work / f"number{position}.npy", values)
    sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir()) if path.is_file()}
    whole = {**record, "format": FORMAT, "files": sizes, "numbers": list(columns.numbers)}
    with open(work / RECORD, "wb") as file:
        file.write(json.dumps(whole, indent=1).encode())
        _flush(file)
    _sync_folder(work)
    return _publish(folder, work)


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Give a temporary folder beside the stores, and remove it at the end if it was not renamed."""
    root.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    work = root / f".writing-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds an existing folder."""
    return shutil.disk_usage(path).free


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn a disk that runs full into one sentence.

    Raises:
        DataError: naming the folder, and how to choose another.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(
            f"the disk of the picture cache '{root}' is full; free some space, or set DDPM_CACHE to a folder on "
            "another disk"
        ) from error


def _publish(folder: Path, work: Path) -> Kept:
    for _ in range(3):
        try:
            os.rename(work, folder)
            break
        except OSError:
            # Somebody was faster, or a broken store lies there: theirs is as good as ours, a broken one goes.
            if kept := load(folder):
                return kept
            shutil.rmtree(folder, ignore_errors=True)
    _sync_folder(folder.parent)
    kept = load(folder)
    if kept is None:
        raise DataError(f"the picture cache '{folder}' cannot be written; set DDPM_CACHE to another folder")
    return kept


def _map(folder: Path, record: dict[str, Any]) -> Kept:
    files: dict[str, int] = record["files"]

    def array(name: str, mapped: bool = False) -> NDArray[Any]:
        values: NDArray[Any] = np.load(folder / name, mmap_mode="r" if mapped else None)
        return values

    columns = Columns(
        names=Strings(folder, "names"),
        labels=array("labels.npy") if "labels.npy" in files else None,
        captions=Strings(folder, "captions") if "captions.npy" in files else None,
        splits=array("splits.npy") if "splits.npy" in files else None,
        numbers={name: array(f"number{i}.npy") for i, name in enumerate(record["numbers"])},
    )
    return Kept(array("pictures.npy", mapped=True), columns, record)


def _is_complete(folder: Path, files: dict[str, int]) -> bool:
    return "pictures.npy" in files and all((folder / name).stat().st_size == size for name, size in files.items())


def _save_array(path: Path, values: NDArray[Any] | None) -> None:
    if values is not None:
        with open(path, "wb") as file:
            np.save(file, values)
            _flush(file)


def _save_text(work: Path, name: str, values: Sequence[str] | None) -> None:
    if values is None:
        return
    ends = np.zeros(len(values), dtype=np.int64)
    end = 0
    with open(work / f"{name}.txt", "wb") as file:
        for i, value in enumerate(values):
            end += file.write(value.encode("utf-8", "surrogateescape"))
            ends[i] = end
        _flush(file)
    _save_array(work / f"{name}.npy", ends)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(root: Path) -> None:
    """Remove what writers that were killed long ago have left."""
    for path in root.glob(".writing-*"):
        try:
            touched = max(entry.stat().st_mtime for entry in [path, *path.iterdir()])
            if time.time() - touched > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
