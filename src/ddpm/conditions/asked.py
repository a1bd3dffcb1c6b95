"""From what one asks of a picture, in words and numbers, to the tensors that the network reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.conditions.paired import given, given_file
from ddpm.config.conditions import ConditionSpec, TextSpec
from ddpm.diffusion.noise import stream
from ddpm.errors import SamplingError, nearest
from ddpm.text.encoding import encode_texts
from ddpm.words import counted

Label = str | int
Image = str | Path | NDArray[Any]
"""A picture to begin with: its file, or [H, W, C] in uint8, uint16, or float32 from 0 to 1."""

ALL_CLASSES = "all"
"""The name by which all classes in turn are asked for, unless a class is called so."""

NO_CLASS = "none"
"""The name by which "no class" is asked for, unless a class is called so."""

_NAMED = 12  # classes that a message lists


@dataclass(frozen=True, slots=True)
class Asked:
    """What one picture is asked to be, as plain values.

    Attributes:
        label: name of its class; None: none.
        numbers: value of each numeric column; empty: none.
        text: what it shows; None or blank: none.
        image: the picture to begin with; None: none.
    """

    label: str | None = None
    numbers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    text: str | None = None
    image: Image | None = field(default=None, compare=False)

    def as_tree(self) -> dict[str, Any]:
        """Return what is asked for as JSON values, a picture by its file; `asked_of` inverts it."""
        words = {"label": self.label, "text": self.text}
        tree: dict[str, Any] = {name: value for name, value in words.items() if value is not None}
        if self.numbers:
            tree["numbers"] = dict(self.numbers)
        if isinstance(self.image, str | Path):
            tree["image"] = str(self.image)
        return tree


def asked_of(tree: Mapping[str, Any]) -> Asked:
    """Return what `Asked.as_tree` has written down.

    Raises:
        SamplingError: if it is something else.
    """
    label, text, image = (tree.get(name) for name in ("label", "text", "image"))
    numbers = tree.get("numbers", {})
    words = all(value is None or isinstance(value, str) for value in (label, text, image))
    if not words or not isinstance(numbers, dict):
        raise SamplingError(f"the condition {dict(tree)} is not one that this program wrote")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers.values()):
        raise SamplingError(f"the condition {dict(tree)} holds something else than numbers")
    return Asked(label, {name: float(value) for name, value in numbers.items()}, text, image)


def class_named(spec: ConditionSpec, name: str | int) -> str | None:
    """Return the class of that name, or of that number where no class has it as its name; None for `NO_CLASS`.

    Raises:
        SamplingError: if there is none, naming the nearest, or if the model has no classes.
    """
    text = str(name).strip()
    if not spec.classes:
        raise SamplingError(f"label '{text}', but this model was trained without labels; leave it out")
    if text in spec.classes:
        return text
    if text == NO_CLASS:
        _refuse_undropped(spec)
        return None
    if text.isascii() and text.isdigit() and int(text) < len(spec.classes):
        return spec.classes[int(text)]
    listed = ", ".join(spec.classes[:_NAMED]) + (", ..." if len(spec.classes) > _NAMED else "")
    raise SamplingError(
        f"no class '{text}'{nearest(text, spec.classes)}; {counted(len(spec.classes), 'class is', 'classes are')} "
        f"known: {listed}"
    )


def ask(
    spec: ConditionSpec,
    pictures: Sequence[int],
    seed: int,
    *,
    label: Label | Sequence[Label] | None = None,
    numbers: Mapping[str, float] | None = None,
    text: str | Sequence[str] | None = None,
    image: Image | Sequence[Image] | None = None,
) -> list[Asked]:
    """Return what each picture is asked to be; what is not said is drawn as often as the training data have it.

    Args:
        spec: what the model is conditioned on.
        pictures: their numbers.
        seed: of the draws.
        label: a class, by name or number; "all"; or several: picture i has number i mod K of them.
        numbers: values of some columns.
        text: what the pictures show; several: picture i shows number i mod K of them.
        image: a picture to begin with; or several: picture i has number i mod K of them.

    Raises:
        SamplingError: for a class, a column or a picture that the model does not know what to do with.
    """
    if not 0 <= seed < 2**64:
        raise SamplingError(f"seed {seed}; expected 0 to 2^64 - 1")
    labels = None if label is None else _classes_named(spec, [label] if isinstance(label, str | int) else label)
    images = [image] if isinstance(image, str | Path | np.ndarray) else image
    if spec.picture is None and images is not None:
        raise SamplingError("a picture to begin with, but this model makes its pictures from nothing; leave it out")
    if spec.picture is not None and not images:
        raise SamplingError("this model makes a picture from another one; name it, with --image or image=")
    texts = [text] if isinstance(text, str) else text
    if texts is not None and not texts:
        raise SamplingError("no text; expected at least one, or leave it out")
    asks = draw(spec, pictures, seed, labels=labels, numbers=numbers, texts=texts)
    if not images:
        return asks
    return [replace(each, image=images[int(i) % len(images)]) for i, each in zip(pictures, asks, strict=True)]


def _classes_named(spec: ConditionSpec, names: Sequence[Label]) -> list[str | None]:
    if list(names) == [ALL_CLASSES] and spec.classes and ALL_CLASSES not in spec.classes:
        return list(spec.classes)
    if not names:
        raise SamplingError("no label; expected at least one, or leave it out")
    return [class_named(spec, name) for name in names]


def draw(
    spec: ConditionSpec,
    pictures: Sequence[int],
    seed: int,
    *,
    labels: Sequence[str | None] | None = None,
    numbers: Mapping[str, float] | None = None,
    texts: Sequence[str] | None = None,
) -> list[Asked]:
    """Return what each picture is asked to be; what is not given is drawn as often as the training data have it.

    Drawn conditions are a function of (seed, number of the picture), as its noise is.

    Args:
        spec: what the model is conditioned on.
        pictures: their numbers.
        seed: of the draws.
        labels: classes, picture i has number i mod K of them; None: drawn.
        numbers: values of some columns; those of the others are drawn, of the same class.
        texts: picture i shows number i mod K of them; None: captions are drawn.

    Raises:
        SamplingError: for a column that the model does not know, or for texts where it reads none.
    """
    if texts and spec.text is None:
        raise SamplingError(f"text '{texts[0]}', but this model was trained without texts; leave it out")
    for name in numbers or {}:
        known = [column.name for column in spec.numbers]
        if name not in known:
            what = f"the columns are {', '.join(known)}" if known else "this model was trained without numbers"
            raise SamplingError(f"no column '{name}'{nearest(name, known)}; {what}")
    asks = [_draw_one(spec, int(i), seed, labels, numbers or {}) for i in pictures]
    if spec.text is None:
        return asks
    return [replace(ask, text=_text_of(spec.text, int(i), seed, texts)) for ask, i in zip(asks, pictures, strict=True)]


def _text_of(spec: TextSpec, number: int, seed: int, texts: Sequence[str] | None) -> str | None:
    if texts:
        return texts[number % len(texts)]
    if not spec.captions:
        return None
    return spec.captions[int(stream(seed, "caption", number).integers(len(spec.captions)))]


def _draw_one(
    spec: ConditionSpec, number: int, seed: int, labels: Sequence[str | None] | None, numbers: Mapping[str, float]
) -> Asked:
    source = stream(seed, "condition", number)
    if labels is not None:
        label = labels[number % len(labels)]
    elif spec.classes and not spec.numbers:
        ends = np.cumsum(spec.class_counts)
        label = spec.classes[int(np.searchsorted(ends, source.integers(ends[-1]), side="right"))]
    else:
        label = None
    if not spec.numbers:
        return Asked(label)
    index = spec.classes.index(label) if label is not None else -1
    rows = [row for row in spec.examples if row[0] == index] if labels is not None else []
    rows = rows or list(spec.examples)
    row = rows[int(source.integers(len(rows)))]
    if labels is None and spec.classes:
        label = spec.classes[int(row[0])]
    drawn = {column.name: value for column, value in zip(spec.numbers, row[1:], strict=True)}
    return Asked(label, {**drawn, **numbers})


def encode(spec: ConditionSpec, asks: Sequence[Asked], size: tuple[int, int] = (1, 1)) -> Condition:
    """Return the condition that the network reads, on the CPU.

    Args:
        spec: what the model is conditioned on.
        asks: one for each picture.
        size: (H, W) of the pictures.

    Raises:
        SamplingError: for a class that there is not, or a picture that cannot be read, or does not fit.
        TextError: if a text is too long.
        ConfigError: if the text encoder that the model was trained with cannot be had.
    """
    label: Tensor | None = None
    numbers: Tensor | None = None
    if spec.classes:
        place = {name: i for i, name in enumerate(spec.classes)}
        if unknown := [each.label for each in asks if each.label is not None and each.label not in place]:
            class_named(spec, unknown[0])  # raises, naming the nearest
        label = torch.tensor([-1 if each.label is None else place[each.label] for each in asks], dtype=torch.int64)
    if spec.numbers:
        rows = [[each.numbers.get(column.name, math.nan) for column in spec.numbers] for each in asks]
        numbers = standardised(spec, np.asarray(rows, dtype=np.float64).reshape(len(asks), len(spec.numbers)))
    picture = torch.stack([_picture(spec, each.image, size) for each in asks]) if spec.picture is not None else None
    tokens = None if spec.text is None else encode_texts(spec.text, [each.text or "" for each in asks])
    return Condition(label=label, numbers=numbers, picture=picture, tokens=tokens)


def _picture(spec: ConditionSpec, image: Image | None, size: tuple[int, int]) -> Tensor:
    """Return what the network reads of a picture, [C' + 1, H, W]; zeros for none."""
    assert spec.picture is not None
    if image is None:
        return torch.zeros(spec.picture_channels, *size)
    if isinstance(image, str | Path):
        return given_file(spec.picture, Path(image), size)
    return given(spec.picture, image, size)


def standardised(spec: ConditionSpec, values: NDArray[np.float64]) -> Tensor:
    """Return numbers [B, K] in units of the training data's deviations from their means, float32."""
    mean = np.asarray([column.mean for column in spec.numbers])
    std = np.asarray([column.std for column in spec.numbers])
    return torch.from_numpy(((values - mean) / std).astype(np.float32))


def _refuse_undropped(spec: ConditionSpec) -> None:
    if spec.dropout == 0:
        raise SamplingError(
            "this model was trained with conditions.dropout=0, and knows no pictures without condition; ask for a class"
        )
