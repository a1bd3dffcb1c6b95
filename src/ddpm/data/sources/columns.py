"""Which column of a table is what: by type where the table says it, else by its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ddpm.errors import DataError, nearest

PICTURE_NAMES = ("image", "img", "picture", "photo", "file_name", "filename", "file", "path", "image_path", "filepath")
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "y", "fine_label")
TEXT_NAMES = ("text", "caption", "captions", "prompt", "description", "title")
SPLIT_NAMES = ("split", "subset", "partition")


def find_column(asked: str | None, names: Sequence[str], known: Iterable[str], option: str) -> str | None:
    """Return the column that was asked for, else the first of the known names, else None.

    Args:
        asked: the configured name, or None.
        names: the columns of the table.
        known: names that mean this kind of column, in lower case, the likeliest first.
        option: configuration key, for the message.

    Raises:
        DataError: if the column that was asked for does not exist.
    """
    if asked is not None:
        if asked not in names:
            raise DataError(f"{option} is '{asked}', but the columns are {', '.join(names)}{nearest(asked, names)}")
        return asked
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)


def to_label(value: object) -> str | None:
    """Return the name of a class as text; None for a missing one."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def to_number(value: object) -> float | None:
    """Return a cell as a number; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
