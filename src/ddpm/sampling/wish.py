"""What a user asks of pictures in words: classes, numbers, pictures to begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm.conditions.asked import Asked, ask
from ddpm.config.conditions import ConditionSpec
from ddpm.data.sources.layout import EXTENSIONS, GRID_NAME
from ddpm.errors import SamplingError


@dataclass(frozen=True)
class Wish:
    """What pictures are asked to be, in the words of the command line.

    Attributes:
        label: a class, several with commas between, or "all".
        numbers: words such as "age=3.5".
        texts: what the pictures show, in turn.
        image: a picture to begin with, or a folder of them.
    """

    label: str | None = None
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    image: Path | None = None

    def asks(self, spec: ConditionSpec, pictures: Sequence[int], seed: int) -> list[Asked]:
        """Return what each picture is asked to be; nothing for an unconditional model.

        Raises:
            SamplingError: for a class, a column or a picture that the model does not know what to do with.
        """
        labels = None if self.label is None else _split(self.label, spec)
        numbers = {} if not self.numbers else dict(_number(word) for item in self.numbers for word in item.split(","))
        images = None if self.image is None else _images(self.image)
        asks = ask(spec, pictures, seed, label=labels, numbers=numbers, text=self.texts or None, image=images)
        return asks if spec.any else []

    def words(self) -> list[str]:
        """Return it in words that can stand in the name of a folder."""
        label = [] if self.label is None else [f"label={self.label}"]
        texts = [f"text={text}" for text in self.texts]
        return [*label, *self.numbers, *texts, *([] if self.image is None else [f"image={self.image.stem}"])]


def _split(text: str, spec: ConditionSpec) -> list[str]:
    """Return the classes of a text: itself where that is a class, for a name may hold a comma."""
    return [text] if text in spec.classes else [part.strip() for part in text.split(",")]


def _number(word: str) -> tuple[str, float]:
    name, sign, text = (part.strip() for part in word.partition("="))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not sign or not name or not math.isfinite(value):
        raise SamplingError(f"numbers '{word}'; expected COLUMN=VALUE, for example age=3.5")
    return name, value


def _images(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.absolute()]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and p.name != GRID_NAME)
    if not found:
        raise SamplingError(f"no picture in the folder '{path}'; expected some to begin with")
    return [file.absolute() for file in found]
