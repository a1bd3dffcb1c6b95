"""Quality against steps: which sampler gives the best pictures for the network evaluations that one can afford."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from ddpm.codec import Pictures
from ddpm.data.progress import ProgressFactory
from ddpm.engine import Engine
from ddpm.errors import RunError, SamplingError
from ddpm.files import write_atomically, write_text
from ddpm.model import Model
from ddpm.sampling.batches import Conditions, forecast, make_pictures
from ddpm.words import counted


class Score(Protocol):
    """A distance of pictures to the training split."""

    @property
    def name(self) -> str:
        """What is measured, over which features."""
        ...

    @property
    def floor(self) -> float:
        """What as many held-out pictures reach."""
        ...

    def __call__(self, pictures: Pictures) -> tuple[float, float]:
        """Return the distance and its standard error."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One sampler at one number of steps.

    Attributes:
        sampler: its name.
        steps: of the sampler.
        evaluations: of the network, a picture: samplers of second order take two a step.
        seconds: for all pictures.
        score: distance to the training split.
        error: its standard error.
    """

    sampler: str
    steps: int
    evaluations: float
    seconds: float
    score: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """What is compared, under what conditions; results of other conditions never mix.

    Attributes:
        models: the model with each sampler and number of steps.
        conditions: plain JSON values: model, data, number, seed, precision, features.
        count: pictures a cell.
        seed: of the noise.
        engine: in which precision.
        score: the distance.
        file: of the results, JSON.
        drawn: conditions of the pictures, where the models cannot draw them themselves.
    """

    models: Sequence[Model]
    conditions: dict[str, Any]
    count: int
    seed: int
    engine: Engine
    score: Score
    file: Path
    drawn: Conditions | None = None


def compare(comparison: Comparison, *, progress: ProgressFactory, tell: Callable[[str], object]) -> Iterator[Cell]:
    """Yield each cell, measured, or read from the file of a comparison that was interrupted; write it after each.

    Args:
        comparison: what to compare.
        progress: makes a bar for each cell.
        tell: told of what was found.

    Raises:
        SamplingError: if the file holds results of other conditions.
        RunError: if it cannot be written.
    """
    found = {(cell.sampler, cell.steps): cell for cell in read_cells(comparison.file, comparison.conditions)}
    if found:
        tell(f"going on: {counted(len(found), 'cell is', 'cells are')} in {comparison.file}")
    for model in comparison.models:
        key = (model.sampling.sampler, model.sampling.steps)
        if key not in found:
            found[key] = measure(comparison, model, progress)
            _write(comparison, list(found.values()))
        yield found[key]


def measure(comparison: Comparison, model: Model, progress: ProgressFactory) -> Cell:
    """Sample with one sampler, and score the pictures."""
    advice, engine = model.sampling, comparison.engine
    ahead = forecast(model, comparison.count, engine)
    numbers = range(comparison.count)
    calls = _Calls(model.network)
    made: list[Pictures] = []
    total = -(-comparison.count // ahead.batch_size) * advice.steps
    try:
        with progress(total, f"{advice.sampler}, {counted(advice.steps, 'step')}") as shown:
            start = time.perf_counter()
            for _, pictures in make_pictures(
                model,
                numbers,
                seed=comparison.seed,
                engine=engine,
                batch_size=ahead.batch_size,
                conditions=comparison.drawn,
                on_step=lambda batch, step: shown.update(1),
            ):
                made.append(pictures)
            seconds = time.perf_counter() - start
    finally:
        calls.close()
    score, error = comparison.score(np.concatenate(made))
    return Cell(advice.sampler, advice.steps, calls.rows / comparison.count, seconds, score, error)


class _Calls:
    """Counts the pictures that go through a network."""

    def __init__(self, network: nn.Module) -> None:
        self.rows = 0
        self._handle = network.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        self.rows += len(inputs[0])

    def close(self) -> None:
        self._handle.remove()


def read_cells(file: Path, conditions: dict[str, Any]) -> list[Cell]:
    """Return the cells of a file of results; none where there is no file.

    Raises:
        SamplingError: if it is no such file, or of other conditions.
    """
    if not file.exists():
        return []
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        cells = [Cell(**cell) for cell in tree["cells"]]
        before = tree["conditions"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SamplingError(f"'{file}' is no file of 'ddpm compare-samplers'; use another --json") from error
    if before != conditions:
        other = sorted(key for key in conditions if before.get(key) != conditions[key]) or ["conditions"]
        raise SamplingError(
            f"'{file}' holds results of another {', '.join(other)}, which cannot be compared; use another --json"
        )
    return cells


def _write(comparison: Comparison, cells: list[Cell]) -> None:
    tree = {
        "score": comparison.score.name,
        "floor": comparison.score.floor,
        "conditions": comparison.conditions,
        "cells": [asdict(cell) for cell in cells],
    }
    try:
        write_text(comparison.file, json.dumps(tree, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write '{comparison.file}': {error.strerror or error}; use another --json") from error


def table(cells: Sequence[Cell], score: Score) -> str:
    """Return the cells as lines for people, the best of each number of steps marked."""
    best = {steps: min(cell.score for cell in cells if cell.steps == steps) for steps in {c.steps for c in cells}}
    lines = [f"{'sampler':<16}{'steps':>6}{'evaluations':>13}{'seconds':>9}   {score.name}"]
    for cell in cells:
        mark = "  best at these steps" if cell.score == best[cell.steps] else ""
        lines.append(
            f"{cell.sampler:<16}{cell.steps:>6}{cell.evaluations:>13.4g}{cell.seconds:>9.1f}   "
            f"{cell.score:.4g} ± {cell.error:.2g}{mark}"
        )
    return "\n".join([*lines, f"{'held-out pictures':<44}   {score.floor:.4g}"])


def plot(cells: Sequence[Cell], score: Score, path: Path) -> None:
    """Draw score against network evaluations, a line a sampler, with error bars and the floor of held-out pictures.

    Raises:
        SamplingError: if matplotlib is not installed.
        RunError: if the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter
    except ImportError as error:
        raise SamplingError("no plot without matplotlib; get it with: pip install 'ddpm[figures]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for sampler in dict.fromkeys(cell.sampler for cell in cells):
        line = sorted((c for c in cells if c.sampler == sampler), key=lambda c: c.evaluations)
        axes.errorbar(
            [c.evaluations for c in line],
            [c.score for c in line],
            yerr=[c.error for c in line],
            marker="o",
            capsize=3,
            label=sampler,
        )
    axes.axhline(score.floor, color="gray", linestyle="--", label="held-out pictures")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a picture", ylabel=score.name)
    axes.xaxis.set_major_locator(FixedLocator(sorted({cell.evaluations for cell in cells})))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    axes.legend()
    try:
        write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=120))
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}; use another --json") from error
