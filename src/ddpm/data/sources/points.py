"""A CSV file of points in the plane: two columns of numbers, or columns ``x`` and ``y`` with or without a label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.data.sources.base import Example, Source, by_nature, stat_stamp
from ddpm.data.sources.columns import LABEL_NAMES, find_column, to_label, to_number
from ddpm.data.sources.table import TABLE_SUFFIXES, read_header, read_rows
from ddpm.errors import DataError


class PointsSource(Source):
    """Points as pictures [1, 1, 2] of float32; their range is that of the file."""

    noun = "points"
    in_memory = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take a CSV file whose columns say that it holds points."""
        return path.is_file() and path.suffix.lower() in TABLE_SUFFIXES and _point_columns(path) is not None

    def stamp(self) -> Iterator[str]:
        """Yield place, name, size and time of the file."""
        yield stat_stamp(str(self.path.resolve()), self.path)

    def prepare(self, scratch: Path) -> None:
        """Read the whole file: points are small."""
        columns = _point_columns(self.path)
        if columns is None:
            raise DataError(f"'{self.path}' holds no points: expected two columns of numbers")
        x, y, has_header = columns
        names = read_header(self.path)
        label = find_column(self.config.label_column, names, LABEL_NAMES, "data.label_column") if has_header else None
        label = None if label in (x, y) else label
        points: list[tuple[float, float]] = []
        self.labels: list[str | None] = []
        for number, row in enumerate(read_rows(self.path, has_header), 1):
            self.facts.seen += 1
            first, second = to_number(row.get(x, "")), to_number(row.get(y, ""))
            if first is None or second is None or not math.isfinite(first + second):
                self.facts.bad.append((f"row {number}", "not two finite numbers"))
                continue
            points.append((first, second))
            self.labels.append(to_label(row.get(label)) if label else None)
        self.points = np.asarray(points, dtype=np.float32).reshape(-1, 1, 1, 2)
        self.facts.as_is = True
        self.facts.classes = by_nature({name for name in self.labels if name is not None}) or None
        if points:
            self.facts.value_range = float(self.points.min()), float(self.points.max())
        self.facts.notes.append(f"points in the plane from the columns {x} and {y}, scaled by their common range")

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.points)

    def examples(self) -> Iterator[Example]:
        """Yield one example a point."""
        for i, point in enumerate(self.points):
            yield Example(f"point {i}", partial(_same, point), label=self.labels[i])


def _point_columns(path: Path) -> tuple[str, str, bool] | None:
    """Return the two columns and whether the file has a header, or None where it holds no points."""
    try:
        names = read_header(path)
    except (OSError, DataError):
        return None
    if len(names) == 2 and all(to_number(name) is not None for name in names):
        return "0", "1", False
    lower = {name.strip().lower(): name for name in names}
    if {"x", "y"} <= set(lower) and set(lower) - {"x", "y"} <= set(LABEL_NAMES):
        return lower["x"], lower["y"], True
    first = next(read_rows(path, True), None) if len(names) == 2 else None
    if first is not None and all(to_number(first.get(name)) is not None for name in names):
        return names[0], names[1], True
    return None


def _same(point: NDArray[np.float32]) -> NDArray[np.float32]:
    return point
