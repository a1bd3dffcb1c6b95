"""What the places of files say: which are pictures, their classes, their split. One rule for folders and archives.

The rule, in order:

1. Hidden files (a leading dot), ``__MACOSX``, ``Thumbs.db`` and ``desktop.ini`` are ignored; so are ``grid.png``, the
   overview that ``ddpm sample`` writes beside its pictures, and every file whose extension is not a picture's.
   Extensions count in any case.
2. Leading folders that all pictures share say nothing and are ignored.
3. If the first folders are then named like splits (``train`` and ``test``, ``val`` ...), they are splits.
4. If every picture then lies exactly one folder down, in two or more folders, the folders are its classes. Any other
   layout has no classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ddpm.data.sources.base import Split, by_nature
from ddpm.words import counted

EXTENSIONS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif"}
)
"""Extensions of files that are opened as pictures, in lower case."""

SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Names, in lower case, that operating systems leave behind."""

GRID_NAME = "grid.png"
"""Name of the overview of many pictures that lies beside them."""

TRAIN_NAMES = frozenset({"train", "training"})
VALIDATION_NAMES = frozenset({"validation", "valid", "val", "dev"})
TEST_NAMES = frozenset({"test", "testing"})


@dataclass(frozen=True)
class Layout:
    """Labels and splits of a list of names.

    Attributes:
        labels: class of each name, or None where the layout has no classes.
        splits: split of each name; None where there are none; ``unused`` marks what neither trains nor tests.
        classes: names of the classes, sorted.
        note: the layout in words.
    """

    labels: Sequence[str] | None
    splits: Sequence[Split | None] | None
    classes: tuple[str, ...]
    note: str


def ignored_as(parts: Sequence[str]) -> str | None:
    """Return why a file is no candidate (``hidden``, ``system files``, its extension), or None for a picture."""
    if any(part.lower() in SYSTEM_NAMES for part in parts):
        return "system files"
    if any(part.startswith(".") for part in parts):
        return "hidden files"
    if parts[-1] == GRID_NAME:
        return "overview grids"
    extension = PurePosixPath(parts[-1]).suffix.lower()
    return None if extension in EXTENSIONS else extension or "no extension"


def choose_splits(names: Sequence[str]) -> dict[str, Split | None] | None:
    """Map split names to what they are used for, or return None where they are no splits.

    Held out is the validation split where there is one, else the test split; without a split to train on, or without
    one to hold out, there is nothing to choose. Further splits map to None: they are not used.
    """
    known = {name: name.lower() for name in names}
    train = [name for name, low in known.items() if low in TRAIN_NAMES]
    validation = [name for name, low in known.items() if low in VALIDATION_NAMES]
    test = [name for name, low in known.items() if low in TEST_NAMES]
    held_out = validation or test
    if not train or not held_out:
        return None
    uses: dict[str, Split | None] = dict.fromkeys(names)
    uses.update(dict.fromkeys(train, "train"))
    uses.update(dict.fromkeys(held_out, "held_out"))
    return uses


def read_layout(names: Sequence[str]) -> Layout:
    """Read classes and splits off relative names with forward slashes."""
    folders = [name.split("/")[:-1] for name in names]
    folders = _without_shared(folders)
    splits: list[Split | None] | None = None
    tops = sorted({parts[0] for parts in folders if parts}) if all(folders) else []
    uses = choose_splits(tops)
    if uses is not None and all(is_split(top) for top in tops):
        splits = [uses[parts[0]] for parts in folders]
        folders = [parts[1:] for parts in folders]
    classes = {parts[0] for parts in folders if parts}
    if all(len(parts) == 1 for parts in folders) and len(classes) >= 2:
        words = f"class folders: {counted(len(classes), 'class', 'classes')}, one for each folder"
        return Layout([parts[0] for parts in folders], splits, by_nature(classes), words)
    words = "nested folders, read without classes" if any(folders) else "one flat folder, no classes"
    return Layout(None, splits, (), words)


def is_split(name: str) -> bool:
    """Say whether a folder, file or table names a split."""
    return name.lower() in TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES


def _without_shared(folders: list[list[str]]) -> list[list[str]]:
    """Drop the leading folders that all have in common."""
    if not folders:
        return folders
    shared = min(folders, key=len)
    depth = len(shared)
    for parts in folders:
        while parts[:depth] != shared[:depth]:
            depth -= 1
    return [parts[depth:] for parts in folders]
