"""Which width an average of a run's weights should have: samples of each, scored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm.codec import Pictures
from ddpm.data.progress import ProgressFactory
from ddpm.engine import Engine, choose_engine
from ddpm.errors import ConfigError, RunError
from ddpm.evaluation.extractors.features import load_extractor
from ddpm.evaluation.plan import drawn_conditions
from ddpm.figures.style import blank, finished, save_figure
from ddpm.model import Model
from ddpm.model.averaging import KeptAverages, exponent
from ddpm.sampling.batches import Conditions, forecast, make_pictures
from ddpm.sampling.comparing import open_data
from ddpm.sampling.frechet_score import FrechetScore

USUAL_WIDTHS = (0.03, 0.05, 0.075, 0.1, 0.15, 0.2)
"""Widths that are tried when none are named."""

FAR = 0.15
"""Misfit from which a profile is not what was asked for: the run kept too few averages for it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One width.

    Attributes:
        width: of the average, as a share of the training.
        misfit: of its profile to what can be made, relative, 0 to 1.
        score: distance of its samples to the training split.
        error: its standard error.
    """

    width: float
    misfit: float
    score: float
    error: float


@dataclass(frozen=True)
class Averages:
    """What is tried.

    Attributes:
        kept: by the run.
        widths: of the averages.
        count: samples of each.
        seed: of the noise, the same for all.
        engine: where and in which precision.
        score: the distance.
        drawn: conditions of the samples, where a model cannot draw them itself.
    """

    kept: KeptAverages
    widths: Sequence[float]
    count: int
    seed: int
    engine: Engine
    score: FrechetScore
    drawn: Conditions | None


def plan_averages(
    run: Path,
    *,
    widths: Sequence[float],
    count: int,
    seed: int,
    data: str | None,
    features: str,
    device: str,
    progress: ProgressFactory,
) -> Averages:
    """Return what will be tried; everything that can be refused is refused here, before anything is sampled.

    Raises:
        ModelFileError: for a run that kept no averages.
        ConfigError: for widths out of range.
        SamplingError: for a number or a seed that are not valid.
        DataError: for data of another kind.
    """
    kept = KeptAverages.of_run(run)
    for width in widths:
        exponent(width)
    engine = choose_engine(device)
    model = Model.load(kept.files[-1])
    model.sampling_batches(count, seed=seed)
    extractor = load_extractor(features, device=engine.device)
    store = open_data(kept.files[-1], model, data, progress)
    score = FrechetScore(store, count, extractor)
    return Averages(kept, widths, count, seed, engine, score, drawn_conditions(model, store, seed))


def parse_widths(text: str) -> list[float]:
    """Return the widths of a text such as "0.05,0.1".

    Raises:
        ConfigError: if it is something else.
    """
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"widths '{text}'; expected shares of the training, for example 0.05,0.1,0.15") from error


def rows(averages: Averages, *, progress: ProgressFactory) -> Iterator[Row]:
    """Yield each width, scored."""
    for width in averages.widths:
        score, error = averages.score(_samples(averages, width, progress))
        yield Row(width, averages.kept.misfit(width), score, error)


def _samples(averages: Averages, width: float, progress: ProgressFactory) -> Pictures:
    engine = averages.engine
    model = averages.kept.model(width).to(engine.device)
    engine.place(model.network)
    batch_size = forecast(model, averages.count, engine).batch_size
    total = -(-averages.count // batch_size) * model.sampling.steps
    with progress(total, f"width {width:g}") as shown:
        made = make_pictures(
            model,
            range(averages.count),
            seed=averages.seed,
            engine=engine,
            batch_size=batch_size,
            conditions=averages.drawn,
            on_step=lambda batch, step: shown.update(1),
        )
        return np.concatenate([pictures for _, pictures in made])


def write_average(kept: KeptAverages, width: float, file: Path) -> None:
    """Write the model of a width.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        kept.model(width).save(file)
    except OSError as error:
        raise RunError(f"cannot write '{file}' ({error.strerror}); use another --out") from error


def check_free(file: Path, *, overwrite: bool) -> None:
    """Refuse a name that is taken or cannot be written.

    Raises:
        ConfigError: for another kind of file.
        RunError: if it is there, or its folder is missing or read-only.
    """
    if file.suffix != ".safetensors":
        raise ConfigError(f"--out {file}; expected the name of a .safetensors file")
    if file.exists() and not overwrite:
        raise RunError(f"'{file}' exists already; add --overwrite to replace it, or choose another --out")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise RunError(f"cannot write '{file}': its folder is missing or read-only; use another --out")


def table(found: Sequence[Row], score: FrechetScore) -> str:
    """Return rows as lines for people, the best marked."""
    best = min(row.score for row in found)
    lines = [f"{'width':>7}   {score.name}"]
    for row in found:
        marks = ["best"] * (row.score == best) + [f"misfit {row.misfit:.2f}"] * (row.misfit > FAR)
        lines.append(f"{row.width:>7g}   {row.score:.4g} ± {row.error:.2g}{'  ' if marks else ''}{', '.join(marks)}")
    return "\n".join([*lines, f"{'':>7}   {score.floor:.4g} for held-out pictures"])


def plot(found: Sequence[Row], score: FrechetScore, path: Path) -> None:
    """Draw score against width, with error bars.

    Raises:
        ConfigError: if matplotlib is not installed.
        RunError: if the picture cannot be written.
    """
    figure, palette = blank("light", 3.0)
    axes = figure.subplots()
    line = sorted(found, key=lambda row: row.width)
    widths = [row.width for row in line]
    axes.errorbar(
        widths, [row.score for row in line], [row.error for row in line], color=palette.series[0], marker="o", capsize=3
    )
    axes.set(xscale="log", xlabel="width of the average, as a share of the training", ylabel=score.name)
    axes.minorticks_off()
    axes.set_xticks(widths, [f"{width:g}" for width in widths])
    save_figure(finished(figure, palette), path, "png")
