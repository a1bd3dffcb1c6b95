"""CSV and JSON-lines files with a column of picture paths, and labels, texts, splits or numbers beside it.

Paths are relative to the table's folder. A folder with a ``metadata.csv`` or ``metadata.jsonl`` is read through it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from ddpm.config import DataConfig
from ddpm.data.sources.base import Example, Source, Split, open_file, stat_stamp
from ddpm.data.sources.columns import (
    LABEL_NAMES,
    PICTURE_NAMES,
    SPLIT_NAMES,
    TEXT_NAMES,
    find_column,
    to_label,
    to_number,
)
from ddpm.data.sources.layout import EXTENSIONS, choose_splits
from ddpm.errors import DataError

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
METADATA = ("metadata.csv", "metadata.jsonl")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table, its cells already understood."""

    path: str
    label: str | None
    caption: str | None
    split: str | None
    numbers: tuple[float, ...]


class TableSource(Source):
    """Pictures that a table lists."""

    noun = "rows"
    waits_for_disk = True

    def __init__(self, path: Path, config: DataConfig) -> None:
        """Remember where; `stamp` reads the table."""
        super().__init__(path, config)
        self.lines: list[Line] = []

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take a .csv, .tsv or .jsonl file, or a folder with a metadata file."""
        if path.is_dir():
            return any((path / name).is_file() for name in METADATA)
        return path.suffix.lower() in TABLE_SUFFIXES

    def stamp(self) -> Iterator[str]:
        """Yield size and time of the table and of every picture that it lists."""
        table = self._table()
        yield stat_stamp(str(table.resolve()), table)
        self._read(table)
        for line in self.lines:
            picture = table.parent / line.path
            yield stat_stamp(line.path, picture) if picture.is_file() else line.path

    def prepare(self, scratch: Path) -> None:
        """Choose what the splits are used for; `stamp` has read the table."""
        names = sorted({line.split for line in self.lines if line.split is not None})
        self.uses = choose_splits(names) or {}
        if self.uses:
            before = len(self.lines)
            self.lines = [line for line in self.lines if line.split is None or self.uses[line.split]]
            if before > len(self.lines):
                self.facts.ignore("rows of unused splits", before - len(self.lines))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lines)

    def examples(self) -> Iterator[Example]:
        """Yield one example a row."""
        folder = self._table().parent
        for line in self.lines:
            split: Split | None = self.uses.get(line.split) if line.split else None
            opener = partial(open_file, folder / line.path)
            yield Example(line.path, opener, line.label, line.caption, split, line.numbers)

    def _table(self) -> Path:
        if not self.path.is_dir():
            return self.path
        return next(self.path / name for name in METADATA if (self.path / name).is_file())

    def _read(self, table: Path) -> None:
        names = read_header(table)
        config = self.config
        first = next(read_rows(table, True), None)
        known = [*PICTURE_NAMES, *_path_like(first or {})]
        path = find_column(config.picture_column, names, known, "data.picture_column")
        if path is None:
            raise DataError(
                f"'{table}' has no column of picture paths (columns: {', '.join(names)}); expected one called "
                f"{', '.join(PICTURE_NAMES[:5])} ..., or set data.picture_column"
            )
        label = find_column(config.label_column, names, LABEL_NAMES, "data.label_column")
        text = find_column(config.text_column, names, TEXT_NAMES, "data.text_column")
        split = find_column(None, names, SPLIT_NAMES, "")
        others = [name for name in names if name not in (path, label, text, split)]
        numeric = _numeric(table, others)
        self.facts.number_names = tuple(numeric)
        for number, row in enumerate(read_rows(table, True), 1):
            self.facts.seen += 1
            if not isinstance(row.get(path), str) or not row[path].strip():
                self.facts.bad.append((f"row {number}", f"no path in column '{path}'"))
                continue
            values = [to_number(row.get(name)) for name in numeric]
            self.lines.append(
                Line(
                    path=row[path].strip(),
                    label=to_label(row.get(label)) if label else None,
                    caption=str(row.get(text) or "") if text else None,
                    split=to_label(row.get(split)) if split else None,
                    numbers=tuple(float("nan") if value is None else value for value in values),
                )
            )


def read_header(path: Path) -> list[str]:
    """Return the names of a table's columns, as its first line has them.

    Raises:
        DataError: if the file is empty or no table.
    """
    if _is_json(path):
        first = next(read_rows(path, True), None)
        if first is None:
            raise DataError(f"'{path}' is empty; expected a JSON object a line")
        return list(first)
    with _reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=_delimiter(path)), [])
    if not names:
        raise DataError(f"'{path}' is empty; expected a first line with the names of the columns")
    return names


def read_rows(path: Path, has_header: bool) -> Iterator[Row]:
    """Yield the rows of a table by column name; without a header the columns are called 0, 1, ...

    Raises:
        DataError: naming the line that is not of the table's kind.
    """
    with _reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        if _is_json(path):
            yield from _json_rows(path, file)
            return
        reader = csv.reader(file, delimiter=_delimiter(path))
        names = next(reader, []) if has_header else None
        for cells in reader:
            if cells:
                yield dict(zip(names or map(str, range(len(cells))), cells, strict=False))


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"'{path}' line {number} is no JSON: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"'{path}' line {number} is a JSON {type(row).__name__}; expected an object a line")
        yield row


class _reading:  # noqa: N801 - reads as a statement
    """Turn what the readers of text say into one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeDecodeError | csv.Error):
            raise DataError(f"'{self.path}' is no table of UTF-8 text: {error}; save it again as UTF-8") from error


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in {".jsonl", ".ndjson"}


def _delimiter(path: Path) -> str:
    """Return the separator of which the first line has most."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        line = file.readline()
    return max(",;\t", key=line.count)


def _path_like(row: Row) -> list[str]:
    """Return the columns, in lower case, whose first cell ends like a picture's name."""
    cells = ((name, value) for name, value in row.items() if isinstance(value, str))
    return [name.strip().lower() for name, value in cells if PurePath(value).suffix.lower() in EXTENSIONS]


def _numeric(table: Path, names: list[str]) -> list[str]:
    """Return the columns whose cells are all numbers or empty, and not all empty."""
    possible = dict.fromkeys(names, False)
    for row in read_rows(table, True):
        for name in list(possible):
            value = row.get(name)
            if value is None or value == "":
                continue
            if to_number(value) is None:
                del possible[name]
            else:
                possible[name] = True
    return [name for name, filled in possible.items() if filled]
