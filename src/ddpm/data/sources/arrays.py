"""Numpy files: pictures as arrays in .npy, or with labels and splits in .npz. No pickle is ever loaded.

Shapes: [N, H, W] is gray; [N, H, W, C] with C = 1, 3 or 4 last; else [N, C, H, W] with C = 1, 3 or 4 second. Where both
readings fit, the first counts. [N, 2] float arrays are points in the plane. Numbers: uint8, uint16, bool (0 and 255)
or float; no other, as the range of an int64 is not known.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.sources.base import Example, Source, Split, stat_stamp
from ddpm.data.sources.columns import LABEL_NAMES, PICTURE_NAMES, to_label
from ddpm.data.sources.layout import choose_splits, is_split
from ddpm.errors import DataError

PICTURE_KEYS = ("x", "images", "pictures", "data", "arr_0", *PICTURE_NAMES)
LABEL_KEYS = (*LABEL_NAMES, "targets", "arr_1")
CHANNEL_COUNTS = (1, 3, 4)


@dataclass(frozen=True)
class Part:
    """One split of a file: its pictures [N, ...] as stored, and the labels."""

    name: str
    pictures: NDArray[Any]
    labels: NDArray[Any] | None


class ArraySource(Source):
    """Pictures that are arrays already."""

    noun = "arrays"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take .npy and .npz files."""
        return path.is_file() and path.suffix.lower() in {".npy", ".npz"}

    def stamp(self) -> Iterator[str]:
        """Yield place, name, size and time of the file."""
        yield stat_stamp(str(self.path.resolve()), self.path)

    def prepare(self, scratch: Path) -> None:
        """Find the arrays and the meaning of their axes."""
        parts = self._parts()
        uses = choose_splits([part.name for part in parts]) or {}
        self.parts: list[tuple[Part, Split | None]] = []
        for part in parts:
            self.facts.seen += len(part.pictures)
            if uses and uses[part.name] is None:
                self.facts.ignore(f"pictures of the unused split '{part.name}'", len(part.pictures))
                continue
            self._check(part)
            self.parts.append((part, uses.get(part.name)))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return sum(len(part.pictures) for part, _ in self.parts)

    def examples(self) -> Iterator[Example]:
        """Yield one example a row of the arrays."""
        for part, split in self.parts:
            for i in range(len(part.pictures)):
                label = to_label(part.labels[i].item()) if part.labels is not None else None
                name = f"{part.name} {i}".strip()
                yield Example(name, partial(_picture, part.pictures, i), label=label, split=split)

    def _parts(self) -> list[Part]:
        try:
            # An array that is mapped is read row by row: it may be larger than memory.
            loaded = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return [Part("", loaded, None)]
            with loaded:
                return self._grouped({key: loaded[key] for key in loaded.files})
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            text = " ".join(str(error).split())[:160]
            raise DataError(
                f"'{self.path}' cannot be read as a numpy file without pickled objects: {text}; save plain arrays with "
                "numpy.save or numpy.savez"
            ) from error

    def _grouped(self, arrays: dict[str, NDArray[Any]]) -> list[Part]:
        groups: dict[str, dict[str, NDArray[Any]]] = {}
        for key, array in arrays.items():
            words = key.lower().split("_")
            split = next((word for word in words if is_split(word)), "")
            base = "_".join(word for word in words if word != split)
            groups.setdefault(split, {})[base] = array
        parts = []
        for split, group in groups.items():
            named = [name for name in PICTURE_KEYS if name in group and group[name].ndim >= 2]
            shaped = [name for name, array in group.items() if array.ndim >= 3]
            if named or shaped:
                labels = next((group[name] for name in LABEL_KEYS if name in group), None)
                parts.append(Part(split, group[(named + shaped)[0]], labels))
        if not parts:
            found = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
            raise DataError(
                f"'{self.path}' holds no array of pictures (found: {found}); expected 'images' [N, H, W, C]"
            )
        return parts

    def _check(self, part: Part) -> None:
        pictures, labels = part.pictures, part.labels
        kind = pictures.dtype
        if kind.kind not in "bf" and (kind.kind != "u" or kind.itemsize > 2):
            raise DataError(
                f"the pictures in '{self.path}' are of type {kind}, whose range is not known; save them as uint8 "
                "(0 to 255), uint16 (0 to 65535) or float32"
            )
        if pictures.ndim == 2 and pictures.shape[1] == 2 and kind.kind == "f":
            self.facts.as_is = True
            if pictures.size:
                self.facts.value_range = float(np.min(pictures)), float(np.max(pictures))
            self.facts.notes.append("points in the plane, scaled by their common range")
        elif channel_axis(pictures.shape) is None:
            raise DataError(
                f"the array in '{self.path}' has shape {list(pictures.shape)}; expected [N, H, W], [N, H, W, C] or "
                "[N, C, H, W] with C = 1, 3 or 4, or points [N, 2]"
            )
        else:
            axis = {0: "[N, H, W]", 3: "[N, H, W, C]", 1: "[N, C, H, W]"}[channel_axis(pictures.shape) or 0]
            self.facts.notes.append(f"an array {list(pictures.shape)} read as {axis}")
        if labels is not None and (labels.size != len(pictures) or labels.dtype.kind not in "iufUb"):
            raise DataError(
                f"the labels in '{self.path}' are {labels.dtype} {list(labels.shape)} for {len(pictures)} pictures; "
                "expected one whole number or name a picture"
            )


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels: 3 or 1; 0 where there is none (gray); None for no shape of pictures."""
    if len(shape) == 3:
        return 0
    if len(shape) != 4:
        return None
    return next((axis for axis in (3, 1) if shape[axis] in CHANNEL_COUNTS), None)


def _picture(pictures: NDArray[Any], i: int) -> NDArray[Any]:
    """Return picture `i` as [H, W, C] in uint8, uint16 or float32; a point as [1, 1, 2]."""
    values = np.asarray(pictures[i])
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype.kind == "f":
        values = values.astype(np.float32)
    else:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 1:
        return values[None, None]
    axis = channel_axis(pictures.shape)
    return values[..., None] if axis == 0 else values if axis == 3 else values.transpose(1, 2, 0)
