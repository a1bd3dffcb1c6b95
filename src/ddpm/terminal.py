"""Talking to people: progress bars and lines on standard error; results go to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ddpm.data.progress import Progress


@contextmanager
def bar(total: int | None, description: str) -> Iterator[Progress]:
    """Show a progress bar with an ETA, for as long as there is something to wait for."""
    with tqdm(
        total=total, desc=description, unit="", leave=False, delay=0.5, dynamic_ncols=True, mininterval=interval()
    ) as shown:
        yield shown


def interval() -> float:
    """Return the seconds between two redraws of a bar: a terminal overwrites the old one, a log file keeps all."""
    return 0.1 if sys.stderr.isatty() else 30.0


def say(text: str) -> None:
    """Print a line for the user, above any progress bar."""
    tqdm.write(text, file=sys.stderr)


def in_bytes(count: int) -> str:
    """Return a number of bytes for people."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def in_time(seconds: float) -> str:
    """Return a duration for people, in the largest unit that there are at least two of."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return "a second"
