"""A folder of pictures on disk: flat, nested, or one folder a class."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ddpm.data.sources.base import Example, Source, open_file
from ddpm.data.sources.layout import EXTENSIONS, Layout, ignored_as, read_layout
from ddpm.errors import DataError
from ddpm.words import counted


class FolderSource(Source):
    """Every picture below a folder, in the order of their names; links are followed, each folder once."""

    noun = "picture files"
    waits_for_disk = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take any folder."""
        return path.is_dir()

    def stamp(self) -> Iterator[str]:
        """Yield name, size and time of every picture."""
        self.names: list[str] = []
        yield str(self.path.resolve())
        try:
            yield from self._list()
        except OSError as error:
            raise DataError(f"the folder '{self.path}' cannot be listed: {error.strerror}") from error

    def prepare(self, scratch: Path) -> None:
        """Read the classes off the layout."""
        self.layout: Layout = read_layout(self.names)
        self.facts.classes = self.layout.classes or None
        self.facts.notes.append(self.layout.note)
        self.rows = [i for i in range(len(self.names)) if not self._unused(i)]
        if len(self.rows) < len(self.names):
            self.facts.ignore("unused splits", len(self.names) - len(self.rows))

    def __len__(self) -> int:
        """Return the number of picture files."""
        return len(self.rows)

    def examples(self) -> Iterator[Example]:
        """Yield one example a file."""
        for i in self.rows:
            name = self.names[i]
            label = self.layout.labels[i] if self.layout.labels is not None else None
            split = self.layout.splits[i] if self.layout.splits is not None else None
            yield Example(name, partial(open_file, self.path / name), label=label, split=split)

    def _unused(self, i: int) -> bool:
        return self.layout.splits is not None and self.layout.splits[i] is None

    def _list(self) -> Iterator[str]:
        for name in walk(self.path):
            self.facts.seen += 1
            reason = ignored_as(name.split("/"))
            if reason is not None:
                self.facts.ignore(reason)
                continue
            try:
                status = os.stat(self.path / name)
            except OSError as error:
                self.facts.bad.append(
                    (name, "a link that leads nowhere" if (self.path / name).is_symlink() else str(error.strerror))
                )
                continue
            if not stat.S_ISREG(status.st_mode):
                self.facts.bad.append((name, "no regular file"))
                continue
            self.names.append(name)
            yield f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
        if not self.names:
            self.facts.hint = _hint(self.path)


def walk(root: Path) -> Iterator[str]:
    """Yield the relative names of all files below `root`, sorted folder by folder, with forward slashes.

    A folder that was already visited is not entered again, so links in a circle end; one that may not be read is left
    out.
    """
    visited: set[tuple[int, int]] = set()
    waiting: list[tuple[str, bool]] = [("", True)]
    while waiting:
        name, is_folder = waiting.pop()
        if not is_folder:
            yield name
            continue
        path = root / name
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(path) as entries:
                found = sorted(((entry.name, _is_folder(entry)) for entry in entries), reverse=True)
        except PermissionError:
            if not name:
                raise
            continue
        waiting += [(f"{name}/{entry}" if name else entry, folder) for entry, folder in found]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _hint(path: Path) -> str:
    """Say what would work in place of a folder without pictures."""
    others = sorted(p.name for p in path.iterdir() if p.suffix.lower() in {".zip", ".tar", ".npz", ".npy", ".csv"})
    if others:
        return f"it holds '{others[0]}': give that file itself"
    parent = path.resolve().parent
    try:
        above = sum(1 for p in parent.iterdir() if p.suffix.lower() in EXTENSIONS)
    except OSError:
        above = 0
    return f"'{parent}', one level up, holds {counted(above, 'picture')}" if above else ""
