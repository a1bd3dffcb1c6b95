"""The one contract between where pictures come from and everything after: a source lists examples.

A new source is one class that derives from `Source`, registered in `ddpm.data.sources.SOURCES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from numpy.typing import NDArray

from ddpm.config import DataConfig

Split = Literal["train", "held_out"]
Opener = Callable[[], "BinaryIO | NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Example:
    """One picture that has not been read yet.

    Attributes:
        name: what messages call it.
        open: gives the encoded file as a binary stream, or the numbers themselves as an array [H, W, C]. It is called
            from several threads, and more than once.
        label: the class by its name, or None.
        caption: the text that goes with the picture, or None.
        split: the part of the data that its source puts it in, or None where the source has no parts.
        numbers: the values of the numeric columns, in the order of `Facts.number_names`.
    """

    name: str
    open: Opener
    label: str | None = None
    caption: str | None = None
    split: Split | None = None
    numbers: tuple[float, ...] = ()


@dataclass(slots=True)
class Facts:
    """What a source knows before a single picture is read.

    Attributes:
        seen: number of files or rows met.
        ignored: how many were left aside, by reason or extension.
        bad: (name, reason) of what should be a picture and is known not to be one.
        classes: names of the classes in their stated order; None: sorted from the labels.
        number_names: names of the numeric columns.
        value_range: range of the numbers where the source states it.
        levels: number of values a channel can take where the source states it.
        as_is: the numbers are no pictures to convert or scale, such as points in the plane.
        notes: sentences for the report, such as the rule by which a layout was read.
        hint: what to try when nothing was found.
    """

    seen: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    number_names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    levels: int | None = None
    as_is: bool = False
    notes: list[str] = field(default_factory=list)
    hint: str = ""

    def ignore(self, reason: str, count: int = 1) -> None:
        """Count something that was left aside."""
        self.ignored[reason] = self.ignored.get(reason, 0) + count


class Source(ABC):
    """A place that pictures come from. Building one lists what is there; it reads no picture."""

    noun: str = "pictures"
    """What error messages call its contents."""

    waits_for_disk: bool = False
    """Whether each picture is a file of its own, so that opening one waits for the disk."""

    in_memory: bool = False
    """Whether it is so small that a cache on disk would be of no use."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        """Remember where and how; subclasses list their contents in `prepare`."""
        self.path = path
        self.config = config
        self.facts = Facts()

    @property
    def name(self) -> str:
        """What the user typed, resolved."""
        return str(self.path)

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Say whether an existing path is of this kind."""

    @abstractmethod
    def stamp(self) -> Iterator[str]:
        """Yield what changes when the content changes (names, sizes, times), cheaply: the key of the cache.

        Called before `prepare`; it may do part of its work.
        """

    @abstractmethod
    def prepare(self, scratch: Path) -> None:
        """List the contents and fill `facts`.

        Args:
            scratch: an empty folder for temporary files; it is removed when the pictures are read.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples; valid after `prepare`."""

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Yield the examples, always in the same order; valid after `prepare`, as often as one likes."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Release open files."""


def open_file(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes."""
    return open(path, "rb")


def stat_stamp(name: str, path: Path) -> str:
    """Return a line with a file's name, size and time of change."""
    status = path.stat()
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"


def by_nature(names: Mapping[str, Any] | set[str]) -> tuple[str, ...]:
    """Sort class names: as numbers where all are whole numbers, else as text."""
    if all(name.lstrip("-").isascii() and name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))
