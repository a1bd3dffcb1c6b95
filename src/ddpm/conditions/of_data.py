"""The conditions that data hold: what a model can be conditioned on, and the condition of each row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Codec, PixelCodec
from ddpm.conditions import Condition
from ddpm.conditions.asked import standardised
from ddpm.conditions.paired import derived, random_holes, with_place
from ddpm.config import DataConfig
from ddpm.config.conditions import ConditionsConfig, ConditionSpec, NumberColumn, PairedPicture, TextSpec
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.data.cache import cache_root
from ddpm.data.progress import silent
from ddpm.diffusion.noise import stream
from ddpm.errors import ConfigError, DataError, nearest
from ddpm.text.encoding import CaptionTokens, caption_tokens, text_spec
from ddpm.words import counted

MOST_EXAMPLES = 1000
"""Rows of the training data that a model with numbers keeps, to draw conditions from."""

_IMBALANCED = 3
"""How many times the pictures of the smallest class the largest has, from which on it is said."""

_PAIRED_FOLDERS = ("targets", "inputs")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Paired pictures.

    Attributes:
        store: which holds them.
        rows: int64 [N], where that of each picture of the data is.
    """

    store: Store
    rows: NDArray[np.int64]

    def encode(self, rows: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> Tensor:
        """Return the pictures that belong to rows of the data, [B, C', H, W] in [-1, 1]."""
        pictures = self.store.pictures[self.rows[rows]]
        pictures[mirrored] = pictures[mirrored][:, :, ::-1]
        codec = PixelCodec(self.store.levels, self.store.value_range, self.store.pictures.dtype.name)
        return codec.encode(pictures)


@dataclass(frozen=True, eq=False)
class DataConditions:
    """The condition of each row of the data.

    Attributes:
        spec: what is said of a picture.
        labels: int64 [N], numbers of the spec's classes; None without.
        numbers: float64 [N, K], the spec's columns; None without.
        pairs: the paired pictures; None where they are made from the pictures themselves.
        texts: the tokens of the captions; None without.
    """

    spec: ConditionSpec
    labels: NDArray[np.int64] | None = None
    numbers: NDArray[np.float64] | None = None
    pairs: Pairs | None = None
    texts: CaptionTokens | None = None

    def of(
        self,
        rows: NDArray[np.int64],
        x_0: Tensor,
        *,
        seed: int,
        pictures: Sequence[int] | NDArray[np.int64],
        mirrored: NDArray[np.bool_] | None = None,
    ) -> Condition:
        """Return the conditions of rows.

        Args:
            rows: int64 [B].
            x_0: their pictures, [B, C, H, W].
            seed: of masks.
            pictures: their numbers, by which masks are drawn.
            mirrored: bool [B], which of `x_0` are mirrored; None: none.
        """
        label = None if self.labels is None else torch.from_numpy(self.labels[rows])
        numbers = None if self.numbers is None else standardised(self.spec, self.numbers[rows])
        picture: Tensor | None = None
        if self.pairs is not None:
            flipped = np.zeros(len(rows), dtype=np.bool_) if mirrored is None else mirrored
            picture = with_place(self.pairs.encode(rows, flipped))
        elif self.spec.picture is not None:
            picture = derived(self.spec.picture, x_0, random_holes(seed, [int(i) for i in pictures], *x_0.shape[2:]))
        tokens = None if self.texts is None else self.texts.of(rows)
        return Condition(label=label, numbers=numbers, picture=picture, tokens=tokens)

    def drawn(self, store: Store, codec: Codec, pictures: Sequence[int], seed: int) -> Condition:
        """Return the conditions of training rows that are drawn by (seed, number) for pictures of these numbers."""
        places = [int(stream(seed, "row", int(i)).integers(len(store.train))) for i in pictures]
        rows = store.train[places]
        return self.of(rows, codec.encode(store.pictures[rows]), seed=seed, pictures=pictures)


def declare(
    store: Store,
    config: ConditionsConfig,
    data: DataConfig,
    *,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> DataConditions | None:
    """Return the conditions that a configuration asks for; None where it asks for none.

    Raises:
        DataError: if the data do not have them, or not for every picture.
        ConfigError: if they do not go with pictures of this kind, or a text encoder cannot be had.
        TextError: if a caption is too long.
    """
    if not config.any:
        if config.balanced:
            raise ConfigError("conditions.balanced without classes; add --condition label")
        return None
    if config.balanced and not config.label:
        raise ConfigError("conditions.balanced is of classes; add --condition label")
    pairs = _open_pairs(store, config, data, cache_dir, progress) if config.picture == "paired" else None
    columns = tuple(_column(store, name) for name in config.numbers)
    classes = (data.classes or _classes(store)) if config.label else ()  # a first shard may lack some
    text = None if config.text is None else text_spec(config.text, _captions(store), store.train, config.text_tokens)
    texts = None if text is None else _texts(store, text, cache_dir, progress)
    picture = _paired(store, config, pairs)
    return _with_rows(store, classes, columns, picture, text, config.dropout, pairs, texts)


def conditions_of(
    store: Store,
    spec: ConditionSpec,
    config: ConditionsConfig,
    data: DataConfig,
    *,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> DataConditions | None:
    """Return the conditions of data as a trained model knows them; None for an unconditional one.

    How often each class is there, and the examples of numbers, are these data's.

    Args:
        store: the data.
        spec: what the model is conditioned on.
        config: of its training, which says where paired pictures are.
        data: how pictures are read.
        cache_dir: of decoded pictures.
        progress: shows the decoding.

    Raises:
        DataError: if the data do not have them, or a class that the model does not know.
        TextError: if a caption is too long for the model.
    """
    if not spec.any:
        return None
    paired = spec.picture is not None and spec.picture.kind == "paired"
    pairs = _open_pairs(store, config, data, cache_dir, progress) if paired else None
    texts = None if spec.text is None else _texts(store, spec.text, cache_dir, progress)
    return _with_rows(store, spec.classes, spec.numbers, spec.picture, spec.text, spec.dropout, pairs, texts)


def conditions_for(store: Store, spec: ConditionSpec, provenance: Mapping[str, Any]) -> DataConditions | None:
    """Return the conditions of data as a model knows them, from what its file says of its training."""
    tree = provenance.get("config", {})
    config = ConditionsConfig.model_validate_json(json.dumps(tree.get("conditions", {})))
    data = DataConfig.model_validate_json(json.dumps(tree.get("data", {})))
    return conditions_of(store, spec, config, data)


def _with_rows(
    store: Store,
    classes: tuple[str, ...],
    columns: tuple[NumberColumn, ...],
    picture: PairedPicture | None,
    text: TextSpec | None,
    dropout: float,
    pairs: Pairs | None,
    texts: CaptionTokens | None,
) -> DataConditions:
    labels = _labels(store, classes) if classes else None
    numbers = np.stack([_values(store, column.name) for column in columns], axis=1) if columns else None
    counts = () if labels is None else np.bincount(labels[store.train], minlength=len(classes))
    spec = ConditionSpec(
        classes=classes,
        class_counts=tuple(int(count) for count in counts),
        numbers=columns,
        examples=() if numbers is None else _examples(store, labels, numbers),
        picture=picture,
        text=text,
        dropout=dropout,
    )
    return DataConditions(spec, labels, numbers, pairs, texts)


def _texts(store: Store, text: TextSpec, cache_dir: Path | None, progress: ProgressFactory | None) -> CaptionTokens:
    """Return the tokens of all captions; features of a frozen encoder are kept beside the decoded pictures."""
    root = cache_root(cache_dir).parent / "texts"
    return caption_tokens(text, _captions(store), root, progress=progress or silent)


def _captions(store: Store) -> Sequence[str]:
    """Return the captions, of which none is blank."""
    if store.captions is None:
        raise DataError(
            f"'{store.source}' has no captions to condition on; put them into a column 'text' of a table, or name the "
            "column with --set data.text_column=NAME"
        )
    blank = [row for row, text in enumerate(store.captions) if not text.strip()]
    if blank:
        raise DataError(
            f"the captions of '{store.source}' are missing for {len(blank):,} of {len(store):,} pictures, the first is "
            f"{store.names[blank[0]]}; fill them in, or leave these rows out"
        )
    return store.captions


def _labels(store: Store, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the labels of all rows as numbers of these classes."""
    labels = _known_labels(store)
    if unknown := [name for name in store.classes if name not in classes]:
        raise DataError(
            f"'{store.source}' has a class '{unknown[0]}', which the model does not know{nearest(unknown[0], classes)}"
        )
    place = np.asarray([classes.index(name) for name in store.classes], dtype=np.int64)
    return place[labels]


def _known_labels(store: Store) -> NDArray[np.int64]:
    if store.labels is None or not store.classes:
        why = next((note for note in store.report.notes if "no label" in note), None)
        raise DataError(
            f"'{store.source}' has no classes to condition on{f' ({why})' if why else ''}; put the pictures of each "
            "class into a folder of its own, or name the column of a table with --set data.label_column=NAME"
        )
    return store.labels


def _classes(store: Store) -> tuple[str, ...]:
    """Return the classes, of which each has a training picture."""
    counts = np.bincount(_known_labels(store)[store.train], minlength=len(store.classes))
    if empty := [store.classes[k] for k in np.flatnonzero(counts == 0)]:
        raise DataError(f"no training picture of '{store.source}' is of class '{empty[0]}'; leave the class out")
    return store.classes


def _values(store: Store, name: str) -> NDArray[np.float64]:
    """Return a numeric column, finite everywhere."""
    if name not in store.numbers:
        known = list(store.numbers)
        listed = f"; the numeric columns are {', '.join(known)}" if known else "; there is no numeric column"
        raise DataError(f"'{store.source}' has no numeric column '{name}'{nearest(name, known)}{listed}")
    values = np.asarray(store.numbers[name], dtype=np.float64)
    missing = np.flatnonzero(~np.isfinite(values))
    if len(missing):
        raise DataError(
            f"column '{name}' of '{store.source}' has no number for {len(missing):,} of {len(values):,} pictures, the "
            f"first is {store.names[int(missing[0])]}; fill them in, leave these rows out, or use another column"
        )
    return values


def _column(store: Store, name: str) -> NumberColumn:
    values = _values(store, name)[store.train]
    mean, std = float(values.mean()), float(values.std())
    if std == 0:
        raise DataError(f"column '{name}' of '{store.source}' is {mean:g} for every training picture: it says nothing")
    return NumberColumn(name=name, mean=mean, std=std, low=float(values.min()), high=float(values.max()))


def _examples(
    store: Store, labels: NDArray[np.int64] | None, numbers: NDArray[np.float64]
) -> tuple[tuple[float, ...], ...]:
    count = min(len(store.train), MOST_EXAMPLES)
    rows = store.train[np.arange(count) * len(store.train) // count]  # evenly spread: data are often sorted by class
    own = np.full(len(rows), -1) if labels is None else labels[rows]
    return tuple((float(label), *map(float, values)) for label, values in zip(own, numbers[rows], strict=True))


def _paired(store: Store, config: ConditionsConfig, pairs: Pairs | None) -> PairedPicture | None:
    if config.picture is None:
        return None
    height, width, channels = store.pictures.shape[1:]
    if store.is_points:
        raise ConfigError("conditions.picture is for pictures, and these data are points; leave it out")
    if config.picture == "gray" and channels < 3:
        raise ConfigError("conditions.picture is 'gray', and so are these pictures; expected colour to bring back")
    if config.picture == "low_resolution" and (height % config.factor or width % config.factor):
        raise ConfigError(
            f"conditions.factor is {config.factor}, which does not divide {height}x{width}; use another factor or size"
        )
    if pairs is not None:
        channels = pairs.store.pictures.shape[3]
    return PairedPicture(
        kind=config.picture, channels=1 if config.picture == "gray" else channels, factor=config.factor
    )


def place_of_pictures(source: str | Path, config: ConditionsConfig) -> str | Path:
    """Return where the pictures themselves are: in ``targets``, where ``inputs`` with paired ones lies beside it."""
    folders = [Path(source) / name for name in _PAIRED_FOLDERS]
    beside = config.picture == "paired" and config.inputs is None and all(folder.is_dir() for folder in folders)
    return folders[0] if beside else source


def _open_pairs(
    store: Store,
    config: ConditionsConfig,
    data: DataConfig,
    cache_dir: Path | None,
    progress: ProgressFactory | None,
) -> Pairs:
    height, width = store.pictures.shape[1:3]
    read = data.model_copy(update={"size": (height, width), "channels": "auto"})
    source = Path(store.source)
    folder = Path(config.inputs) if config.inputs is not None else source.parent / _PAIRED_FOLDERS[1]
    if folder.is_dir() and source.is_dir():
        return _matched(store, open_store(folder, read, cache_dir=cache_dir, progress=progress))
    if config.inputs is None or source.is_dir():
        raise DataError(
            f"no paired pictures for '{store.source}'; put them into a folder 'inputs' and the pictures to be made, of "
            "the same names, into 'targets' beside it; or name a folder or a column with --set conditions.inputs=NAME"
        )
    read = read.model_copy(update={"picture_column": config.inputs})
    other = open_store(source, read, cache_dir=cache_dir, progress=progress)
    if len(other) != len(store):
        raise DataError(
            f"column '{config.inputs}' of '{store.source}' has {len(other):,} readable pictures for {len(store):,} of "
            "the data; expected one for each"
        )
    return Pairs(other, np.arange(len(store), dtype=np.int64))


def _matched(store: Store, other: Store) -> Pairs:
    place = {_stem(name): row for row, name in enumerate(other.names)}
    missing = [name for name in store.names if _stem(name) not in place]
    if missing:
        raise DataError(
            f"no paired picture in '{other.source}' for {len(missing):,} of {counted(len(store), 'picture')}, the "
            "first is "
            f"{missing[0]}; expected files of the same names"
        )
    return Pairs(other, np.asarray([place[_stem(name)] for name in store.names], dtype=np.int64))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def told_of_conditions(store: Store, conditions: DataConditions | None, *, balanced: bool) -> list[str]:
    """Return what a user should know of the conditions of a run, in lines.

    Args:
        store: the data.
        conditions: of the run; None: there are none.
        balanced: whether every class is trained on equally often.
    """
    if conditions is None:
        unused = len(store.classes) > 1 and store.labels is not None
        return [
            f"{counted(len(store.classes), 'class is', 'classes are')} known and not used; --condition label trains "
            "on them"
        ] * unused
    spec, lines = conditions.spec, conditions.spec.words()
    if not spec.classes:
        return lines
    order = np.argsort(spec.class_counts)
    small, large = int(order[0]), int(order[-1])
    counts = [f"'{spec.classes[k]}' {spec.class_counts[k]:,}" for k in (small, large)]
    if spec.class_counts[large] >= _IMBALANCED * spec.class_counts[small]:
        advice = "each is trained on equally often" if balanced else "--set conditions.balanced=true evens them out"
        lines.append(f"classes are of very different size, from {counts[0]} to {counts[1]} training pictures; {advice}")
    return lines
