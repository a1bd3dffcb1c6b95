"""Zip and tar archives of pictures, read in place: nothing is ever unpacked to the disk.

Members with absolute names or ``..`` in them, and links, are ignored and counted.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from ddpm.data.decode import MAX_BYTES, BadPictureError
from ddpm.data.sources.base import Example, Opener, Source, Split, stat_stamp
from ddpm.data.sources.layout import ignored_as, read_layout
from ddpm.errors import DataError

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class ArchiveSource(Source):
    """The pictures inside one file; its members are laid out like a folder."""

    noun = "picture files in the archive"

    def stamp(self) -> Iterator[str]:
        """Yield place, name, size and time of the archive."""
        yield stat_stamp(str(self.path.resolve()), self.path)

    def prepare(self, scratch: Path) -> None:
        """List the members, and read the classes off their names."""
        self.names: dict[int, str] = {}
        with self._damage():
            for position, (name, kind) in enumerate(self._members()):
                if kind == "folder":
                    continue
                self.facts.seen += 1
                parts = name.replace("\\", "/").split("/")
                reason = _refused(parts, kind) or ignored_as([part for part in parts if part != "."])
                if reason is not None:
                    self.facts.ignore(reason)
                else:
                    self.names[position] = "/".join(part for part in parts if part != ".")
        layout = read_layout(list(self.names.values()))
        self.facts.classes = layout.classes or None
        self.facts.notes.append(layout.note)
        self.labels = dict(zip(self.names, layout.labels, strict=True)) if layout.labels else {}
        self.splits: dict[int, Split | None] = {}
        if layout.splits is not None:
            self.splits = dict(zip(self.names, layout.splits, strict=True))
            unused = [position for position, split in self.splits.items() if split is None]
            for position in unused:
                del self.names[position]
            if unused:
                self.facts.ignore("unused splits", len(unused))

    def __len__(self) -> int:
        """Return the number of picture members."""
        return len(self.names)

    def example(self, position: int, opener: Opener) -> Example:
        """Return the example of a member."""
        name = self.names[position]
        return Example(name, opener, label=self.labels.get(position), split=self.splits.get(position))

    @abstractmethod
    def _members(self) -> Iterable[tuple[str, str]]:
        """Yield name and kind (``file``, ``folder``, ``links``) of all members, in order."""

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise DataError(
                f"the archive '{self.path}' is damaged or no archive: {error}; download or pack it again"
            ) from error


class ZipSource(ArchiveSource):
    """A .zip file."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take files named .zip."""
        return path.is_file() and path.suffix.lower() == ".zip"

    def _members(self) -> Iterator[tuple[str, str]]:
        self.archive = zipfile.ZipFile(self.path)
        self.infos = self.archive.infolist()
        for info in self.infos:
            is_link = info.external_attr >> 28 == 0xA
            yield info.filename, "folder" if info.is_dir() else "links" if is_link else "file"

    def examples(self) -> Iterator[Example]:
        """Yield one example a picture member; the threads decompress."""
        for position in self.names:
            yield self.example(position, partial(_open_member, self.archive, self.infos[position]))

    def close(self) -> None:
        """Close the archive."""
        if hasattr(self, "archive"):
            self.archive.close()


class TarSource(ArchiveSource):
    """A .tar file, plain or compressed; read from front to back, as compressed ones cannot be searched."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take files named .tar, .tgz, .tbz2, .txz, .tar.gz, .tar.bz2 or .tar.xz."""
        endings = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
        return path.is_file() and path.name.lower().endswith(endings)

    def _members(self) -> Iterator[tuple[str, str]]:
        with tarfile.open(self.path, "r|*") as archive:
            for member in archive:
                yield member.name, "folder" if member.isdir() else "file" if member.isfile() else "links"

    def examples(self) -> Iterator[Example]:
        """Yield one example a picture member."""
        with self._damage(), tarfile.open(self.path, "r|*") as archive:
            for position, member in enumerate(archive):
                if position in self.names:
                    stream = archive.extractfile(member)
                    data = stream.read(MAX_BYTES + 1) if stream else b""
                    yield self.example(position, partial(BytesIO, data))


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    if info.flag_bits & 1:
        raise BadPictureError("encrypted")
    if info.file_size > MAX_BYTES:
        raise BadPictureError(f"more than {MAX_BYTES // 2**20} MiB")
    try:
        return cast("BinaryIO", archive.open(info))
    except (RuntimeError, *DAMAGE) as error:
        raise BadPictureError(f"damaged in the archive: {error}") from error


def _refused(parts: list[str], kind: str) -> str | None:
    if kind != "file":
        return kind
    absolute = parts[0] == "" or parts[0].endswith(":")
    return "unsafe names" if absolute or ".." in parts else None
