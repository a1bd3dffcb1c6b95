"""Data that need no file: scikit-learn's digits, and generated sets of 2-D points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.config import DataConfig
from ddpm.data.sources.base import Example, Source, Split

POINTS = 10_000
"""Number of points in a generated set."""


@dataclass(frozen=True)
class Embedded:
    """A small data set in memory; the fields are those of `ddpm.data.Store`."""

    pictures: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    held_out: NDArray[np.int64]
    levels: int | None
    value_range: tuple[float, float]
    words: str


def digits() -> Embedded:
    """Return 1,797 handwritten digits [N, 8, 8, 1] of 17 gray levels; 1,437 to train on, 360 held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    target = np.asarray(bunch.target, dtype=np.int64)
    rows = np.arange(len(target))
    _, held_out = train_test_split(rows, test_size=360, stratify=target, random_state=0)
    return Embedded(
        pictures=np.asarray(bunch.images).astype(np.uint8)[..., None],
        labels=target,
        classes=tuple(str(i) for i in range(10)),
        held_out=np.asarray(held_out, dtype=np.int64),
        levels=17,
        value_range=(0.0, 16.0),
        words="1,797 scans of 8x8 pixels, from scikit-learn",
    )


def swissroll() -> Embedded:
    """Return points on a spiral sheet seen from its side: radius and angle grow together."""
    rng = np.random.default_rng(0)
    angle = 1.5 * np.pi * (1 + 2 * rng.random(POINTS))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / (4.9 * np.pi)
    return _points(points, 0.02 * rng.standard_normal(points.shape), None, ())


def moons() -> Embedded:
    """Return points on two interleaved half circles, each a class."""
    rng = np.random.default_rng(0)
    label = np.arange(POINTS) % 2
    angle = np.pi * rng.random(POINTS)
    upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
    points = np.where(label[:, None] == 0, upper, -upper) / 1.7
    return _points(points, 0.03 * rng.standard_normal(points.shape), label, ("upper", "lower"))


def spirals() -> Embedded:
    """Return points on two spiral arms that turn around each other, each a class."""
    rng = np.random.default_rng(0)
    label = np.arange(POINTS) % 2
    turn = np.sqrt(rng.random(POINTS))
    angle = 3.0 * np.pi * turn + np.pi * label
    points = 0.95 * turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _points(points, 0.015 * rng.standard_normal(points.shape), label, ("first", "second"))


EMBEDDED: dict[str, Callable[[], Embedded]] = {
    "digits": digits,
    "swissroll": swissroll,
    "moons": moons,
    "spirals": spirals,
}
"""The names that work without any file."""


def _points(
    points: NDArray[np.float64], noise: NDArray[np.float64], label: NDArray[np.int64] | None, classes: Sequence[str]
) -> Embedded:
    """Wrap points in [-1, 1] as pictures [N, 1, 1, 2]; a tenth is held out."""
    noisy = np.clip(points + noise, -1.0, 1.0).astype(np.float32)
    rows = np.arange(len(noisy), dtype=np.int64)
    kept_back = rows // 2 % 10 == 9  # pairs, so that both classes are held out alike
    return Embedded(
        pictures=noisy[:, None, None, :],
        labels=None if label is None else label.astype(np.int64),
        classes=tuple(classes),
        held_out=rows[kept_back],
        levels=None,
        value_range=(-1.0, 1.0),
        words=f"{len(noisy):,} generated points in the plane",
    )


class EmbeddedSource(Source):
    """A data set that needs no file, by its name."""

    in_memory = True

    def __init__(self, path: Path, config: DataConfig) -> None:
        """Make the data; `path` is the bare name."""
        super().__init__(path, config)
        self.data = EMBEDDED[str(path)]()
        if self.data.levels is not None and config.size not in (None, self.data.pictures.shape[1:3]):
            # Scaling makes values between the levels: it needs the full range of 8 bits.
            full = np.rint(self.data.pictures * (255 / (self.data.levels - 1))).astype(np.uint8)
            self.data = replace(self.data, pictures=full, levels=256, value_range=(0.0, 255.0))
        self.facts.seen = len(self.data.pictures)
        self.facts.classes = self.data.classes or None
        self.facts.levels = self.data.levels
        self.facts.value_range = self.data.value_range
        self.facts.as_is = self.data.pictures.shape[1:] == (1, 1, 2)
        self.facts.notes.append(self.data.words)

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Take one of the known names."""
        return str(path) in EMBEDDED

    def stamp(self) -> Iterator[str]:
        """Yield the name."""
        yield self.name

    def prepare(self, scratch: Path) -> None:
        """Do nothing: all is there."""

    def __len__(self) -> int:
        """Return the number of pictures or points."""
        return len(self.data.pictures)

    def examples(self) -> Iterator[Example]:
        """Yield one example a picture or point."""
        held_out = set(self.data.held_out.tolist())
        for i, picture in enumerate(self.data.pictures):
            label = None if self.data.labels is None else self.data.classes[self.data.labels[i]]
            split: Split = "held_out" if i in held_out else "train"
            yield Example(f"{self.name} {i}", partial(_same, picture), label=label, split=split)


def _same(picture: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.uint8] | NDArray[np.float32]:
    return picture
