"""One shard of streamed data: a WebDataset tar or a parquet file, on the disk or behind an http address.

In a WebDataset tar, members that share their name up to its first dot are one sample: ``0001.jpg`` with ``0001.cls``,
its class; ``0001.txt``, its caption; ``0001.json``, its columns.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from ddpm.config import DataConfig
from ddpm.data.decode import MAX_BYTES
from ddpm.data.sources.archive import DAMAGE
from ddpm.data.sources.base import Example, Source, by_nature, stat_stamp
from ddpm.data.sources.columns import LABEL_NAMES, TEXT_NAMES, find_column, to_label
from ddpm.data.sources.layout import EXTENSIONS
from ddpm.data.sources.parquet import ParquetSource
from ddpm.errors import DataError

_TRIES = 4
_CHUNK = 2**20
_END = 1024  # bytes of zeros at the end of a tar
_TIMEOUT = 60.0  # seconds without a byte
_BESIDE = {"cls", "txt", "text", "caption", "json"}


def is_address(place: str) -> bool:
    """Whether a place is read over the network."""
    return place.startswith(("http://", "https://"))


class ShardSource(Source):
    """A WebDataset tar."""

    noun = "pictures in the shard"

    def __init__(self, path: Path, config: DataConfig, place: str) -> None:
        """Remember where; nothing is read yet.

        Args:
            path: the file, if it is one.
            config: how pictures are read.
            place: path or address.
        """
        super().__init__(path, config)
        self.place = place

    @property
    def name(self) -> str:
        """Path or address."""
        return self.place

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take no single path: the list of shards says what they are."""
        return False

    def stamp(self) -> Iterator[str]:
        """Yield the address, or what changes with the file; and the classes, whose numbers are stored."""
        yield self.place if is_address(self.place) else stat_stamp(str(self.path.resolve()), self.path)
        yield "\0".join(self.config.classes)

    def prepare(self, scratch: Path) -> None:
        """Fetch the shard, and read all but its pictures."""
        self.file = fetched(self.place, scratch)
        self._check_end()
        self.samples: dict[int, tuple[str, str]] = {}
        beside: dict[str, dict[str, bytes]] = {}
        for position, member, archive in self._members():
            key, _, kind = _key_of(member.name)
            self.facts.seen += 1
            if f".{kind.rsplit('.', 1)[-1]}" in EXTENSIONS:
                self.samples[position] = (key, member.name)
            elif kind in _BESIDE:
                stream = archive.extractfile(member)
                beside.setdefault(key, {})[kind] = stream.read(MAX_BYTES) if stream else b""
            else:
                self.facts.ignore(f".{kind}" if kind else "no extension")
        self._read_columns(beside)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.samples)

    def examples(self) -> Iterator[Example]:
        """Yield one example a picture."""
        for position, member, archive in self._members():
            if position in self.samples:
                key, name = self.samples[position]
                stream = archive.extractfile(member)
                data = stream.read(MAX_BYTES + 1) if stream else b""
                yield Example(
                    name,
                    partial(BytesIO, data),
                    label=self.labels.get(key),
                    caption=self.captions.get(key),
                    numbers=self.numbers.get(key, (float("nan"),) * len(self.facts.number_names)),
                )

    def _check_end(self) -> None:
        """Refuse a tar that breaks off, which Python's reader takes for its end; compressed ones tell by themselves."""
        with self.file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END))
            ends = not any(file.read())
        if self.file.suffix.lower() == ".tar" and not (ends and size >= _END):
            raise self._damaged("it breaks off before its end")

    def _damaged(self, why: object) -> DataError:
        return DataError(f"the shard '{self.place}' is damaged: {why}; download or pack it again, or leave it out")

    def _members(self) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
        try:
            with tarfile.open(self.file, "r|*") as archive:
                for position, member in enumerate(archive):
                    if member.isfile():
                        yield position, member, archive
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _read_columns(self, beside: dict[str, dict[str, bytes]]) -> None:
        rows = {key: _row(self.place, key, files) for key, files in beside.items()}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        label = find_column(self.config.label_column, names, ["cls", *LABEL_NAMES], "data.label_column")
        text = find_column(self.config.text_column, names, ["txt", "caption", *TEXT_NAMES], "data.text_column")
        numeric = [
            name
            for name in names
            if name not in (label, text) and all(_is_number(row.get(name, 0)) for row in rows.values())
        ]
        self.facts.number_names = tuple(sorted(numeric))
        self.numbers = {
            key: tuple(float(row.get(name, "nan")) for name in self.facts.number_names) for key, row in rows.items()
        }
        found = {key: to_label(row.get(label)) for key, row in rows.items()} if label else {}
        self.labels = {key: self._class_of(value) for key, value in found.items() if value is not None}
        self.captions = {key: str(row[text]) for key, row in rows.items() if text and row.get(text) is not None}
        self.facts.classes = self.config.classes or by_nature(set(self.labels.values())) or None

    def _class_of(self, label: str) -> str:
        """Return the name of a class, which ``.cls`` may give by its number."""
        known = self.config.classes
        if not known or label in known:
            return label
        if label.isdigit() and int(label) < len(known):
            return known[int(label)]
        raise DataError(
            f"the shard '{self.place}' has a picture of class '{label}', which data.classes does not name "
            f"({', '.join(known[:8])}{', ...' if len(known) > 8 else ''}); name all classes there"
        )


class ParquetShard(ParquetSource):
    """A parquet file of a list of such."""

    def __init__(self, path: Path, config: DataConfig, place: str) -> None:
        """Remember where; as `ShardSource`."""
        super().__init__(path, config)
        self.place = place

    @property
    def name(self) -> str:
        """Path or address."""
        return self.place

    def stamp(self) -> Iterator[str]:
        """Yield the address, or what changes with the file."""
        if is_address(self.place):
            yield self.place
        else:
            yield from super().stamp()

    def prepare(self, scratch: Path) -> None:
        """Fetch the shard, and find its columns."""
        self.path = fetched(self.place, scratch)
        super().prepare(scratch)


def fetched(place: str, scratch: Path) -> Path:
    """Return the file of a shard, downloaded into `scratch` if it is behind an address.

    Raises:
        DataError: if it cannot be had.
    """
    if not is_address(place):
        return Path(place)
    target = scratch / PurePosixPath(place.split("?")[0]).name
    for attempt in range(1, _TRIES + 1):
        try:
            return _download(place, target)
        except (OSError, HTTPException) as error:
            if attempt == _TRIES or 400 <= getattr(error, "code", 0) < 500:
                raise DataError(
                    f"the shard '{place}' cannot be fetched ({error}); check the address and the connection, then run "
                    "the same command again to go on"
                ) from error
            time.sleep(2.0 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")


def _download(place: str, target: Path) -> Path:
    with urllib.request.urlopen(place, timeout=_TIMEOUT) as answer, target.open("wb") as file:
        expected, received = answer.headers.get("Content-Length"), 0
        while chunk := answer.read(_CHUNK):
            received += file.write(chunk)
    if expected is not None and received != int(expected):
        raise OSError(f"only {received:,} of {int(expected):,} bytes came")
    return target


def _key_of(name: str) -> tuple[str, str, str]:
    """Return the name of a sample, a dot, and what follows its first one in the file's name, in lower case."""
    path = PurePosixPath(name)
    stem, dot, kind = path.name.partition(".")
    return str(path.parent / stem), dot, kind.lower()


def _row(place: str, key: str, files: dict[str, bytes]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    try:
        if "json" in files:
            columns = json.loads(files["json"])
            row = dict(columns) if isinstance(columns, dict) else {}
        for kind in ("cls", "txt", "text", "caption"):
            if kind in files:
                row[kind] = files[kind].decode("utf-8").strip()
    except ValueError as error:
        raise DataError(f"'{key}' in the shard '{place}' has a text that cannot be read: {error}") from error
    return row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
