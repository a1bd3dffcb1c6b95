"""What pictures were asked to be, beside them: a table, and a grid with a row for each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm.codec import Pictures
from ddpm.conditions.asked import Asked
from ddpm.errors import RunError
from ddpm.files import write_text

_WIDEST = 40  # pictures in a row of the grid


def write_labels(path: Path, names: Sequence[str], asks: Sequence[Asked]) -> None:
    """Write a table with a row a picture: its file, then what it was asked to be; an empty cell is "none".

    `ddpm` reads such a table, under the name metadata.csv, as data with labels.

    Args:
        path: of the CSV file.
        names: of the pictures.
        asks: what they were asked to be.

    Raises:
        RunError: if it cannot be written.
    """
    words = {
        "label": [each.label for each in asks],
        "text": [each.text for each in asks],
        "image": [str(each.image) if isinstance(each.image, str | Path) else None for each in asks],
    }
    columns = {name: values for name, values in words.items() if any(value is not None for value in values)}
    for name in dict.fromkeys(name for each in asks for name in each.numbers):
        columns[name] = [f"{each.numbers[name]:.9g}" if name in each.numbers else None for each in asks]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", *columns])
    writer.writerows(zip(names, *columns.values(), strict=True))
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}; free some space") from error


def grouped(pictures: Pictures, asks: Sequence[Asked], value_range: tuple[float, float]) -> tuple[Pictures, int | None]:
    """Return pictures for a grid, and its columns: a row for each class, or text, filled up with white.

    Without any, with one picture a text, or with so many of one that a row would be too long, they stay as they are.

    Args:
        pictures: [N, H, W, C].
        asks: what they were asked to be, the first N of them.
        value_range: black and white.
    """
    shown = asks[: len(pictures)]
    by_text = all(each.label is None for each in shown)
    labels = [each.text if by_text else each.label for each in shown]
    rows = {label: [i for i, own in enumerate(labels) if own == label] for label in dict.fromkeys(labels)}
    widest = max(map(len, rows.values()), default=0)
    if len(rows) < 2 or widest > _WIDEST or (by_text and widest == 1):
        return pictures, None
    sheet = np.full((len(rows), widest, *pictures.shape[1:]), value_range[1], dtype=pictures.dtype)
    for row, label in zip(sheet, sorted(rows, key=lambda label: rows[label][0]), strict=True):
        row[: len(rows[label])] = pictures[rows[label]]
    return sheet.reshape(-1, *pictures.shape[1:]), widest
