"""What is in the data, what is broken, and what a person should know before training on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.config import DataConfig
from ddpm.data.report import LoadReport
from ddpm.data.store import Store
from ddpm.words import counted

CHUNK = 512
FEW_PICTURES = 1000
IMBALANCE = 10
ASYMMETRY = 0.08
"""Above it pictures are mirrored noticeably: handwritten digits have 0.11, photographs of things less than 0.05."""

MOST_MIRRORED_CLASSES = 100
MOST_BINS = 256
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, eq=False)
class Inspection:
    """The facts about a store.

    Attributes:
        source: what was opened.
        shape: [H, W, C] of every picture as the network sees it.
        dtype: uint8, uint16 or float32.
        levels: number of values a channel can take, or None.
        value_range: least and largest value of the type.
        count: number of pictures; `train` and `held_out` are its parts.
        classes: pictures a class, in the order of the labels.
        captions: the first few texts.
        bad: (name, reason) of files that cannot be read.
        duplicates: names of pictures that are equal in every pixel, group by group.
        constant: names of pictures of one single value.
        histogram: [C, bins] int64, counts of values over all pixels.
        bin_edges: [bins + 1] float64.
        mean: [C] float64, over all pixels of all pictures, in the data's own units.
        std: [C] float64.
        asymmetry: 0 where the pictures are alike their mirror images on average, 1 where not at all.
        warnings: sentences, the gravest first.
        report: what happened while loading.
    """

    source: str
    shape: tuple[int, ...]
    dtype: str
    levels: int | None
    value_range: tuple[float, float]
    count: int
    train: int
    held_out: int
    classes: dict[str, int]
    captions: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    constant: tuple[str, ...]
    histogram: NDArray[np.int64]
    bin_edges: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    asymmetry: float
    warnings: tuple[str, ...]
    report: LoadReport

    def lines(self) -> list[str]:
        """Return everything but the histogram as sentences, for a terminal."""
        height, width, channels = self.shape
        range_words = f"{self.value_range[0]:g} to {self.value_range[1]:g}"
        depth = f"{self.dtype}, {range_words}" + (f", {self.levels:,} levels" if self.levels else "")
        lines = [
            f"{self.source}: {counted(self.count, 'picture')}, {self.train:,} to train on, {self.held_out:,} held out",
            f"the network sees {height}x{width} pixels, {counted(channels, 'channel')}, {depth}",
            *self.report.lines()[1:],
        ]
        for what, found in (("modes", self.report.modes), ("sizes", self.report.sizes)):
            if found:
                lines.append(f"{what} of the files: " + ", ".join(f"{name} {n:,}" for name, n in found.items()))
        if self.classes:
            lines.append("classes: " + ", ".join(f"{name} {count:,}" for name, count in self.classes.items()))
        if self.captions:
            lines.append("captions such as: " + "; ".join(f"'{caption}'" for caption in self.captions))
        moments = ", ".join(f"{mean:.4g} ± {std:.4g}" for mean, std in zip(self.mean, self.std, strict=True))
        lines.append(f"mean ± standard deviation of each channel: {moments}")
        lines += [
            f"histogram of channel {channel}, {range_words}: {sparkline(counts)}"
            for channel, counts in enumerate(self.histogram)
        ]
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


def sparkline(counts: NDArray[np.int64], width: int = 32) -> str:
    """Return a histogram as a line of blocks, their heights by the square root of the counts: rare values show too."""
    parts = np.array([part.sum() for part in np.array_split(counts, min(width, len(counts)))], dtype=np.float64)
    heights = np.ceil(np.sqrt(parts / max(1.0, parts.max())) * (len(_BLOCKS) - 1)).astype(np.int64)
    return "".join(_BLOCKS[height] for height in heights)


def inspect(store: Store, config: DataConfig | None = None) -> Inspection:
    """Look at every picture of a store once, as the network sees it.

    Args:
        store: an open store; it may be larger than memory.
        config: settings to be checked against the data (flip).
    """
    config = config or DataConfig()
    values = _Values(store)
    groups: dict[bytes, list[int]] = {}
    constant: list[int] = []
    for start, chunk in _chunks(store.pictures):
        values.add(chunk)
        for i, picture in enumerate(chunk):
            groups.setdefault(hashlib.blake2b(picture.tobytes(), digest_size=16).digest(), []).append(start + i)
        if chunk[0].size > chunk.shape[-1]:
            flat = chunk.reshape(len(chunk), -1, chunk.shape[-1])
            constant += (start + np.flatnonzero((flat == flat[:, :1]).all(axis=(1, 2)))).tolist()
    duplicates = [rows for rows in groups.values() if len(rows) > 1]
    classes = _class_counts(store)
    asymmetry = _asymmetry(store)
    return Inspection(
        source=store.source,
        shape=store.pictures.shape[1:],
        dtype=store.pictures.dtype.name,
        levels=store.levels,
        value_range=store.value_range,
        count=len(store.pictures),
        train=len(store.train),
        held_out=len(store.held_out),
        classes=classes,
        captions=tuple(store.captions[i] for i in range(min(3, len(store)))) if store.captions else (),
        bad=store.report.bad,
        duplicates=tuple(tuple(store.names[i] for i in rows) for rows in duplicates),
        constant=tuple(store.names[i] for i in constant),
        histogram=values.histogram,
        bin_edges=values.edges,
        mean=values.mean(),
        std=values.std(),
        asymmetry=asymmetry,
        warnings=tuple(
            _warnings(store, classes, duplicates, constant, asymmetry if config.flip and not store.is_points else None)
        ),
        report=store.report,
    )


class _Values:
    """Histogram and moments of each channel, chunk by chunk."""

    def __init__(self, store: Store) -> None:
        channels = store.pictures.shape[-1]
        low, high = store.value_range
        self.levels = store.levels or MOST_BINS
        self.bins = min(self.levels, MOST_BINS)
        # Whole numbers sit in the middle of their bins.
        top = high if store.levels is None else low + store.levels
        self.edges = np.linspace(low, top, self.bins + 1)
        self.histogram = np.zeros((channels, self.bins), dtype=np.int64)
        self.count = 0
        self.sum = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, chunk: NDArray[Any]) -> None:
        flat = chunk.reshape(-1, chunk.shape[-1])
        for c in range(flat.shape[1]):
            self.histogram[c] += np.bincount(self._place(flat[:, c]), minlength=self.bins)
            values = flat[:, c].astype(np.float64)
            self.sum[c] += values.sum()
            self.squares[c] += values @ values
        self.count += len(flat)

    def _place(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the bin of each value."""
        if values.dtype.kind == "u":
            return values if self.levels <= self.bins else values // (self.levels // self.bins)
        width = (self.edges[-1] - self.edges[0]) / self.bins or 1.0
        place: NDArray[Any] = np.clip((values - self.edges[0]) / width, 0, self.bins - 1).astype(np.int64)
        return place

    def mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.sum / self.count
        return mean

    def std(self) -> NDArray[np.float64]:
        variance: NDArray[np.float64] = np.maximum(self.squares / self.count - np.square(self.mean()), 0.0)
        return np.sqrt(variance)


def _chunks(pictures: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(pictures), CHUNK):
        yield start, np.asarray(pictures[start : start + CHUNK])


def _class_counts(store: Store) -> dict[str, int]:
    if store.labels is None:
        return {}
    counts = np.bincount(store.labels, minlength=len(store.classes))
    return {name: int(count) for name, count in zip(store.classes, counts, strict=True)}


def _asymmetry(store: Store) -> float:
    """Return how much the mean picture of a class differs from its mirror image, beyond chance.

    The mean picture m splits into an even part, m + mirrored m, and an odd one, m - mirrored m. The result is the odd
    part's share of the energy of both, over all classes. Chance alone makes a mean over few pictures a little odd; what
    is expected of that is subtracted.
    """
    height, width, channels = store.pictures.shape[1:]
    if width < 2:
        return 0.0
    by_class = store.labels is not None and len(store.classes) <= MOST_MIRRORED_CLASSES
    groups = len(store.classes) if by_class else 1
    sums = np.zeros((groups, height, width, channels))
    squares = np.zeros(groups)
    counts = np.zeros(groups)
    for start, chunk in _chunks(store.pictures):
        x = chunk.astype(np.float64)
        label = store.labels[start : start + len(x)] if by_class and store.labels is not None else np.zeros(len(x), int)
        energy = np.square(x - x[:, :, ::-1]).sum(axis=(1, 2, 3))
        member = (np.arange(groups)[:, None] == label).astype(np.float64)
        sums += (member @ x.reshape(len(x), -1)).reshape(sums.shape)
        squares += member @ energy
        counts += member.sum(axis=1)
    excess = total = 0.0
    for group in np.flatnonzero(counts):
        mean = sums[group] / counts[group]
        odd = float(np.square(mean - mean[:, ::-1]).sum())
        excess += max(0.0, odd - squares[group] / counts[group] ** 2)
        even = mean + mean[:, ::-1]
        total += odd + float(np.square(even - even.mean(axis=(0, 1))).sum())
    return excess / total if total else 0.0


def _warnings(
    store: Store, classes: dict[str, int], duplicates: list[list[int]], constant: list[int], asymmetry: float | None
) -> Iterator[str]:
    count = len(store)
    if store.report.bad:
        yield f"{counted(len(store.report.bad), 'file is', 'files are')} left out: no pictures, or damaged ones"
    if count < FEW_PICTURES:
        yield (
            f"{counted(count, 'picture is', 'pictures are')} few: with fewer than {FEW_PICTURES:,} a network tends "
            "to learn them by heart; "
            "watch the held-out loss"
        )
    present = {name: n for name, n in classes.items() if n}
    if len(present) < len(classes):
        yield "classes without a picture: " + ", ".join(name for name, n in classes.items() if not n)
    if present and max(present.values()) > IMBALANCE * min(present.values()):
        least, most = min(present, key=present.__getitem__), max(present, key=present.__getitem__)
        yield f"classes are uneven: '{most}' has {counted(present[most], 'picture')}, '{least}' only {present[least]:,}"
    if duplicates:
        extra = sum(len(rows) - 1 for rows in duplicates)
        first = " = ".join(store.names[i] for i in duplicates[0][:3])
        yield f"{counted(extra, 'picture is an exact copy', 'pictures are exact copies')} of others, such as {first}"
        held_out = set(store.held_out.tolist())
        shared = sum(1 for rows in duplicates if 0 < sum(i in held_out for i in rows) < len(rows))
        if shared:
            yield (
                f"{counted(shared, 'picture is', 'pictures are')} both trained on and held out, as copies: the "
                "held-out loss will flatter"
            )
    if constant:
        yield (
            f"{counted(len(constant), 'picture has', 'pictures have')} one single colour, such as "
            f"{store.names[constant[0]]}"
        )
    enlarged = [line for line in store.report.conversions if "enlarged" in line]
    if enlarged:
        yield f"some pictures are blurred by enlarging: {enlarged[0]}"
    if asymmetry is not None:
        yield _flip_warning(asymmetry)


def _flip_warning(asymmetry: float) -> str:
    if asymmetry > ASYMMETRY:
        return (
            f"data.flip is on, but the pictures differ from their mirror images (asymmetry {asymmetry:.2f} of 1): "
            "text, digits and the like would be drawn mirrored; turn it off"
        )
    return "data.flip is on: if the pictures hold text or other things with a left and a right, turn it off"
