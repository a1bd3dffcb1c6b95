"""Parquet files on disk and data sets on the Hugging Face Hub, both through `datasets`."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ddpm.config import DataConfig
from ddpm.data.cache import FULL
from ddpm.data.decode import BadPictureError
from ddpm.data.sources.base import Example, Opener, Source, Split, open_file, stat_stamp
from ddpm.data.sources.columns import LABEL_NAMES, PICTURE_NAMES, TEXT_NAMES, find_column, to_label
from ddpm.data.sources.layout import choose_splits, is_split
from ddpm.errors import DataError
from ddpm.words import counted

BATCH = 256
NUMBER_TYPES = frozenset(
    {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)


class DatasetSource(Source):
    """Rows of a `datasets.Dataset`: a column of encoded pictures, and labels, texts or numbers beside it."""

    noun = "rows"

    def __init__(self, path: Path, config: DataConfig) -> None:
        """Remember where; nothing is loaded yet."""
        super().__init__(path, config)
        self.parts: list[tuple[str, Any, Split | None]] = []
        self.local_files = False

    @abstractmethod
    def _load(self, scratch: Path) -> dict[str, Any]:
        """Return the splits, each a `datasets.Dataset`, by name."""

    def prepare(self, scratch: Path) -> None:
        """Load the splits that are used, and find their columns."""
        from datasets import Image

        splits = self._load(scratch)
        uses = choose_splits(list(splits)) or {}
        features = next(iter(splits.values())).features
        names = list(features)
        self._find_columns(features, names)
        wanted = [self.picture, self.label, self.text, *self.facts.number_names]
        for name, dataset in sorted(splits.items(), key=lambda item: uses.get(item[0]) != "train"):
            use = uses.get(name)
            self.facts.seen += len(dataset)
            if uses and use is None:
                self.facts.ignore(f"rows of the unused split '{name}'", len(dataset))
                continue
            if list(dataset.features) != names:
                raise DataError(f"the splits of '{self.name}' have different columns; expected the same in all")
            kept = dataset.select_columns([column for column in names if column in wanted])
            self.parts.append((name, kept.cast_column(self.picture, Image(decode=False)), use))

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(len(dataset) for _, dataset, _ in self.parts)

    def examples(self) -> Iterator[Example]:
        """Yield one example a row, in batches: memory stays flat."""
        for name, dataset, split in self.parts:
            row = 0
            for batch in dataset.iter(batch_size=BATCH):
                for i, picture in enumerate(batch[self.picture]):
                    yield self._example(f"{name} row {row}", picture, batch, i, split)
                    row += 1

    def _example(self, name: str, picture: Any, batch: dict[str, list[Any]], i: int, split: Split | None) -> Example:
        return Example(
            name,
            self._opener(picture),
            label=self._label_name(batch[self.label][i]) if self.label else None,
            caption=_caption(batch[self.text][i]) if self.text else None,
            split=split,
            numbers=tuple(_number(batch[column][i]) for column in self.facts.number_names),
        )

    def _opener(self, picture: Any) -> Opener:
        if picture and picture.get("bytes") is not None:
            return partial(BytesIO, picture["bytes"])
        if picture and picture.get("path") and self.local_files:
            return partial(open_file, picture["path"])
        return partial(_nothing)

    def _find_columns(self, features: Any, names: Sequence[str]) -> None:
        from datasets import ClassLabel, Image

        config = self.config
        typed = [name for name in names if isinstance(features[name], Image)]
        binary = [name for name in names if _holds_bytes(features[name])]
        picture = find_column(config.picture_column, names, typed + binary, "data.picture_column")
        if picture is None:
            likely = [name for name in PICTURE_NAMES if name in names]
            what = f"column '{likely[0]}' holds no encoded pictures" if likely else "no column holds encoded pictures"
            raise DataError(
                f"'{self.name}': {what} (columns: {', '.join(names)}); expected PNG or JPEG bytes in a column, "
                "or set data.picture_column"
            )
        if picture not in typed + binary:
            raise DataError(f"data.picture_column is '{picture}', which holds no encoded pictures")
        classes = [name for name in names if isinstance(features[name], ClassLabel)]
        self.picture = picture
        self.label = find_column(config.label_column, names, [*classes, *LABEL_NAMES], "data.label_column")
        self.text = find_column(config.text_column, names, TEXT_NAMES, "data.text_column")
        self.stated = list(features[self.label].names) if self.label in classes else None
        self.facts.classes = tuple(self.stated) if self.stated else None
        taken = {self.picture, self.label, self.text, *classes}
        self.facts.number_names = tuple(
            name for name in names if name not in taken and getattr(features[name], "dtype", "") in NUMBER_TYPES
        )

    def _label_name(self, value: Any) -> str | None:
        if self.stated is not None and isinstance(value, int):
            return self.stated[value] if 0 <= value < len(self.stated) else None
        return to_label(value)


class ParquetSource(DatasetSource):
    """One parquet file, or a folder of them; files named after splits are splits."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take a .parquet file, or a folder that holds one at most one folder down."""
        if path.is_dir():
            return any(True for pattern in ("*.parquet", "*/*.parquet") for _ in path.glob(pattern))
        return path.suffix.lower() == ".parquet"

    def stamp(self) -> Iterator[str]:
        """Yield name, size and time of every file."""
        yield str(self.path.resolve())
        for file in self._files():
            yield stat_stamp(file.name, file)

    def _root(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        return sorted([*self.path.glob("*.parquet"), *self.path.glob("*/*.parquet")])

    def _load(self, scratch: Path) -> dict[str, Any]:
        from datasets import load_dataset

        self.facts.notes.append(f"parquet: {counted(len(self._files()), 'file')}")
        files: dict[str, list[str]] = {}
        for file in self._files():
            files.setdefault(_split_name(file.relative_to(self._root())), []).append(str(file))
        try:
            with _quiet():
                loaded: dict[str, Any] = dict(load_dataset("parquet", data_files=files, cache_dir=str(scratch)))
        except Exception as error:  # datasets wraps what pyarrow says in errors of its own
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and cause.errno in FULL:
                raise cause from None
            text = " ".join(str(cause).split())[:160]
            raise DataError(f"'{self.name}' cannot be read as parquet: {text}; download or write it again") from error
        return loaded


class HubSource(DatasetSource):
    """A data set on the Hub, ``owner/name`` or ``owner/name:configuration``; the only source that uses the network."""

    @property
    def name(self) -> str:
        """The name with its prefix."""
        return f"hf:{self.path.as_posix()}"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take no path: the resolver decides what a Hub name is."""
        return False

    def stamp(self) -> Iterator[str]:
        """Yield the files that `datasets` holds for it, by name and size; they are named by their content."""
        yield self.name
        for split, dataset in self._splits().items():
            yield f"{split}\0{len(dataset)}\0{dataset.features}"
            for file in dataset.cache_files:
                yield stat_stamp(str(file["filename"]), Path(file["filename"]))

    def _load(self, scratch: Path) -> dict[str, Any]:
        return self._splits()

    def _splits(self) -> dict[str, Any]:
        if not hasattr(self, "_loaded"):
            self._loaded = self._download()
        return self._loaded

    def _download(self) -> dict[str, Any]:
        from datasets import load_dataset

        name, _, configuration = self.path.as_posix().partition(":")
        if Path(name).exists():
            raise DataError(f"'{self.name}' names a data set on the Hub, but a folder '{name}' lies here and hides it")
        self.local_files = True
        try:
            loaded: dict[str, Any] = dict(load_dataset(name, configuration or None))
        except Exception as error:  # the network and the Hub fail in too many ways to list
            text = " ".join(str(error).split())[:200]
            raise DataError(
                f"the data set '{name}' cannot be loaded from the Hub: {text}; check its name at "
                "https://huggingface.co/datasets and the connection"
            ) from error
        return loaded


def _split_name(file: Path) -> str:
    """Return the split that a file's name or folder states, or ``train``."""
    words = (word for part in file.parts for word in re.split(r"[-_.]", part.lower()))
    return next((word for word in words if is_split(word)), "train")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the progress bars of `datasets` for a moment."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _holds_bytes(feature: Any) -> bool:
    inner = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(inner, "dtype", "") in ("binary", "large_binary")


def _caption(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _nothing() -> BinaryIO:
    raise BadPictureError("no picture in this row")
