"""Where pictures come from, and how a name on the command line finds its source.

A name is looked up in this order: an existing path; an embedded name; ``hf:owner/name``, a data set on the Hub; a bare
``owner/name``, the same, but only where no folder called ``owner`` or nearly so exists. Anything else is an error: a
mistyped path never reaches the network.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ddpm.config import DataConfig
from ddpm.data.sources.archive import TarSource, ZipSource
from ddpm.data.sources.arrays import ArraySource
from ddpm.data.sources.base import Source
from ddpm.data.sources.embedded import EMBEDDED, EmbeddedSource
from ddpm.data.sources.folder import FolderSource
from ddpm.data.sources.layout import EXTENSIONS
from ddpm.data.sources.parquet import HubSource, ParquetSource
from ddpm.data.sources.points import PointsSource
from ddpm.data.sources.table import TableSource
from ddpm.errors import DataError

SOURCES: tuple[type[Source], ...] = (
    ZipSource,
    TarSource,
    ArraySource,
    PointsSource,
    TableSource,
    ParquetSource,
    FolderSource,
)
"""Sources of existing paths; the first that accepts a path reads it."""

FILE_SUFFIXES = EXTENSIONS | {".zip", ".tar", ".tgz", ".gz", ".csv", ".tsv", ".jsonl", ".parquet", ".npz", ".npy"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
KINDS = (
    "a folder of pictures, .zip, .tar, .csv, .jsonl, .parquet, .npz or .npy; "
    f"or one of {', '.join(EMBEDDED)}; or hf:owner/name"
)


def resolve(source: str | Path, config: DataConfig) -> Source:
    """Find the source that a name means, without reading a picture.

    Raises:
        DataError: if it means nothing; the nearest thing that would work is named.
    """
    text = str(source)
    path = Path(text).expanduser()
    if not text.strip():
        raise DataError(f"the name of the data is empty; expected {KINDS}")
    if _exists(path):
        return _of_path(path, config)
    if EmbeddedSource.accepts(Path(text)):
        return EmbeddedSource(Path(text), config)
    if isinstance(source, str) and _is_hub_name(text):
        return HubSource(Path(text.removeprefix("hf:")), config)
    if any(sign in text for sign in "{*") or text.startswith(("http://", "https://")):
        raise DataError(
            f"'{text}' is a list of shards, which only 'ddpm train' without --init streams; name one of them here"
        )
    raise DataError(f"no data at '{text}': expected {KINDS}{_suggest(text, path)}")


def _of_path(path: Path, config: DataConfig) -> Source:
    for kind in SOURCES:
        if kind.accepts(path):
            return kind(path, config)
    raise DataError(f"'{path}' is not a kind of data that can be read: expected {KINDS}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or a zero byte inside
        return False


def _is_hub_name(text: str) -> bool:
    if text.startswith("hf:"):
        name = text.removeprefix("hf:")
        if not HUB_NAME.fullmatch(name):
            raise DataError(f"'{text}' is no name of a data set on the Hub; expected hf:owner/name")
        return True
    if not HUB_NAME.fullmatch(text) or Path(text).suffix.lower() in FILE_SUFFIXES:
        return False
    owner = text.split("/")[0]
    # A folder of nearly this name makes a typing error likelier than a Hub name.
    return not _exists(Path(owner)) and not difflib.get_close_matches(owner, _entries(Path(".")), 1, 0.8)


def _suggest(text: str, path: Path) -> str:
    """Name the nearest thing that would work: beside the missing path, or among the embedded names."""
    parent = path.parent
    while not _exists(parent) and parent != parent.parent:
        path, parent = parent, parent.parent
    beside = difflib.get_close_matches(path.name, _entries(parent), 1, 0.5)
    if beside:
        return f"; did you mean '{parent / beside[0]}'?"
    embedded = difflib.get_close_matches(text.lower(), EMBEDDED, 1, 0.5)
    if embedded:
        return f"; did you mean '{embedded[0]}'?"
    if HUB_NAME.fullmatch(text):
        return f"; for a data set on the Hub, write 'hf:{text}'"
    return ""


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
