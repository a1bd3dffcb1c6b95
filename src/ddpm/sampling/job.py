"""One sampling job: a model, numbers and a folder in; files that carry their recipe out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from ddpm.codec import Pictures
from ddpm.conditions.asked import Asked
from ddpm.config import explain, parse_assignments
from ddpm.config.sampling import SAMPLER_OPTIONS, SamplingConfig, not_taken
from ddpm.data import render_grid, save_png, to_image
from ddpm.data.pictures import save_tiff
from ddpm.data.progress import ProgressFactory
from ddpm.engine import Engine
from ddpm.errors import RunError, SamplingError
from ddpm.files import write_atomically, write_text
from ddpm.model import Model
from ddpm.model_file import ADAPTER_NAME, MODEL_NAME
from ddpm.sampling.batches import Conditions, Forecast, forecast, make_pictures
from ddpm.sampling.films import Film, FilmKind, check_film, save_film
from ddpm.sampling.labels import grouped, write_labels
from ddpm.sampling.recipe import TEXT_KEY, Recipe, condition_tree, recipe_of
from ddpm.text.encoding import check_texts
from ddpm.words import counted

Format = Literal["png", "tiff", "npy"]

MOST_IN_GRID = 1024
"""Most pictures in grid.png: more would be too large to look at, and to hold."""

PICTURES, POINTS = 64, 2000
"""How many are sampled where nobody says how many."""

_LONGEST_OPTIONS = 120  # bytes of a folder's name, for texts may be long


@dataclass(frozen=True)
class Job:
    """What to sample, how, and where to.

    Attributes:
        model: with its sampling advice already changed to what was asked for.
        file: that the model was read from.
        numbers: of the pictures.
        seed: of the noise.
        engine: in which precision.
        folder: of the files.
        batch_size: pictures at once; none: what fits.
        format: of the files.
        films: how to show the way.
        asks: what each picture is asked to be; empty for an unconditional model.

    Raises:
        SamplingError: for what cannot be sampled, before any work is done.
    """

    model: Model
    file: Path
    numbers: Sequence[int]
    seed: int
    engine: Engine
    folder: Path
    batch_size: int | None = None
    format: Format = "png"
    films: tuple[FilmKind, ...] = ()
    asks: Sequence[Asked] = ()

    def __post_init__(self) -> None:
        self.model.sampling_batches(len(self.numbers), seed=self.seed, batch_size=self.batch_size)
        for kind in self.films:
            check_film(kind)
        if self.is_points and self.format == "tiff":
            raise SamplingError("points in the plane are no TIFF; leave out --format (points.csv), or use --format npy")
        if self.asks:
            self.model.encode(self.asks[:1])  # refuses a picture to begin with, before the network runs
        if (spec := self.model.conditions.text) is not None:
            texts = (*(each.text for each in self.asks), self.model.sampling.negative)
            check_texts(spec, list(dict.fromkeys(text for text in texts if text is not None)))

    def conditions(self) -> Conditions | None:
        """Return the conditions of pictures by their numbers."""
        if not self.asks:
            return None
        asked = dict(zip(self.numbers, self.asks, strict=True))
        return lambda numbers: self.model.encode([asked[i] for i in numbers])

    @property
    def noun(self) -> str:
        """What the samples are called."""
        return "points" if self.is_points else "pictures"

    @property
    def is_points(self) -> bool:
        """Whether these are points, and no pictures."""
        return makes_points(self.model)


def makes_points(model: Model) -> bool:
    """Whether a model makes points in the plane, and no pictures."""
    return model.picture_shape == (1, 1, 2)


def with_options(model: Model, *, sampler: str | None, steps: int | None, assignments: Sequence[str]) -> Model:
    """Return the model with its sampling advice changed.

    Args:
        model: to change.
        sampler: its name; none: what the model recommends.
        steps: of the sampler; none: what the model recommends.
        assignments: options, such as "eta=0.5".

    Raises:
        SamplingError: for a value that is not valid, or an option that this sampler does not take.
        ConfigError: for an unknown option.
    """
    tree = parse_assignments([f"sampling.{item.strip().removeprefix('sampling.')}" for item in assignments])
    asked = {"sampler": sampler, "steps": steps}
    options: dict[str, Any] = tree.get("sampling", {})
    changed = model.with_sampling(**{**options, **{key: value for key, value in asked.items() if value is not None}})
    name = changed.sampling.sampler
    if "variance" in options and "variance" not in SAMPLER_OPTIONS[name]:  # as advice it is good for more than sampling
        raise SamplingError(not_taken(name, "variance"))
    return changed


def sampling_of(recipe: Recipe) -> SamplingConfig:
    """Return the sampling advice of a recipe.

    Raises:
        SamplingError: if it is not valid in this version.
    """
    try:
        return SamplingConfig.model_validate_json(json.dumps(recipe.sampling))
    except ValidationError as error:
        raise SamplingError(
            f"the recipe was written by ddpm {recipe.version}, and this version cannot follow it: "
            f"{explain(error, 'sampling')}"
        ) from error


def run_job(job: Job, *, progress: ProgressFactory, tell: Callable[[str], object]) -> Forecast:
    """Sample and write; what was written is there even if a later batch fails.

    Args:
        job: what to do.
        progress: makes the bar.
        tell: told how long it will take, before the first step.

    Raises:
        RunError: if the folder cannot be written.
        SamplingError: if the network returns numbers that are not finite, or nothing fits into memory.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to '{job.folder}' ({error.strerror}); use another --out") from error
    model = replace(job.model, network=job.engine.place(job.model.network))
    recipe = recipe_of(model, job.file, job.folder, seed=job.seed, engine=job.engine)
    ahead = forecast(model, len(job.numbers), job.engine, batch_size=job.batch_size)
    tell(
        f"{ahead.as_words()}: {counted(len(job.numbers), job.noun.removesuffix('s'))}, {ahead.batch_size:,} at once, "
        f"by {recipe.short_words()}: {ahead.evaluations:,} network evaluations a batch, "
        f"on {job.engine.device} in {job.engine.precision}"
    )
    film = Film(model, job.numbers, job.seed) if job.films else None
    kept = _make_and_write(job, model, recipe, ahead, film, progress)
    _write_summary(job, recipe, kept)
    if job.asks:
        write_labels(job.folder / "labels.csv", _names(job), job.asks)
    if film is not None:
        moments = film.moments()
        for kind in job.films:
            tell(f"film: {save_film(moments, model.codec, job.folder, kind)}")
    return ahead


def _make_and_write(
    job: Job, model: Model, recipe: Recipe, ahead: Forecast, film: Film | None, progress: ProgressFactory
) -> Pictures:
    """Write pictures as they come; return those that are written together at the end."""
    whole = job.is_points or job.format == "npy"
    trees = {i: condition_tree(each, job.folder) for i, each in zip(job.numbers, job.asks, strict=False)}
    kept: list[Pictures] = []
    steps = -(-len(job.numbers) // ahead.batch_size) * model.sampling.steps
    with progress(steps, recipe.short_words()) as shown:

        def on_step(numbers: Sequence[int], step: Any) -> None:
            shown.update(1)
            if film is not None:
                film.record(numbers, step)

        for numbers, pictures in make_pictures(
            model,
            job.numbers,
            seed=job.seed,
            engine=job.engine,
            batch_size=ahead.batch_size,
            conditions=job.conditions(),
            on_step=on_step,
        ):
            if whole or sum(map(len, kept)) < MOST_IN_GRID:
                kept.append(pictures)
            if not whole:
                for number, picture in zip(numbers, pictures, strict=True):
                    own = replace(recipe, picture=number, condition=trees.get(number, {}))
                    _write_picture(job, picture, own)
    return np.concatenate(kept)


def _write_picture(job: Job, picture: Pictures, recipe: Recipe) -> None:
    codec, path = job.model.codec, job.folder / f"{recipe.picture:05d}.{job.format}"
    if job.format == "tiff":
        save_tiff(picture, path, levels=codec.levels, value_range=codec.value_range, description=recipe.as_text())
    else:
        image = to_image(picture, levels=codec.levels, value_range=codec.value_range)
        save_png(image, path, {TEXT_KEY: recipe.as_text()})


def _write_summary(job: Job, recipe: Recipe, kept: Pictures) -> None:
    codec, folder = job.model.codec, job.folder
    in_grid, columns = (kept, None) if job.is_points else grouped(kept[:MOST_IN_GRID], job.asks, codec.value_range)
    grid = render_grid(in_grid, columns, levels=codec.levels, value_range=codec.value_range)
    save_png(grid, folder / "grid.png")
    try:
        if job.format == "npy":
            array = kept.reshape(len(kept), -1) if job.is_points else kept
            write_atomically(folder / f"{job.noun}.npy", lambda part: _save_array(part, array))
        elif job.is_points:
            _write_points(kept, folder / "points.csv")
        else:
            return
        common = {**json.loads(recipe.as_text()), "pictures": list(job.numbers)}
        del common["picture"], common["condition"]
        write_text(folder / "recipe.json", json.dumps(common) + "\n")
    except OSError as error:
        raise RunError(f"cannot write to '{folder}': {error.strerror or error}; free some space") from error


def _names(job: Job) -> list[str]:
    """Return what the table of labels calls each picture: its file, or its place in the one file."""
    whole = job.is_points or job.format == "npy"
    return [str(i) if whole else f"{i:05d}.{job.format}" for i in job.numbers]


def _save_array(part: Path, pictures: Pictures) -> None:
    with part.open("wb") as file:  # a name without .npy would get it
        np.save(file, pictures)


def _write_points(points: Pictures, file: Path) -> None:
    """Write points [n, 1, 1, C] as a table with a column a coordinate."""
    rows = [",".join(f"{value:.6g}" for value in point.ravel()) for point in points]
    header = ",".join(["x", "y", "z"][: points.shape[-1]])
    write_text(file, "\n".join([header, *rows]) + "\n")


def default_folder(
    file: Path, model: Model, seed: int, assignments: Sequence[str] = (), asked: Sequence[str] = ()
) -> Path:
    """Return a folder beside the model whose name is the recipe, so that two recipes never mix.

    Args:
        file: of the model.
        model: with its sampling advice.
        seed: of the noise.
        assignments: options of the sampler that were set.
        asked: what the pictures are asked to be, in words such as "label=3".
    """
    advice = model.sampling
    stem = "" if file.name == "model.safetensors" else f"{file.stem}-"
    options = "".join(f"-{item.replace('=', '')}" for item in [*sorted(assignments), *asked])
    options = "".join(f"-{_short_name(Path(each.file))}-{each.scale:g}" for each in model.adapters) + options
    options += "" if model.prompt is None else f"-like-{Path(model.prompt.file).stem}"
    if model.guide is not None:
        kind = "-".join(str(value) for value in model.guide.as_tree().values())
        options = f"-{kind}-{_short_name(model.guide.file)}" + options
    safe = "".join(sign if sign.isalnum() or sign in "-._" else "_" for sign in options)
    if len(safe.encode()) > _LONGEST_OPTIONS:
        digest = hashlib.sha256(options.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        safe = f"{safe.encode()[:_LONGEST_OPTIONS].decode(errors='ignore')}-{digest}"
    return file.parent / "samples" / f"{stem}{advice.sampler}-{advice.steps}{safe}-seed{seed}"


def _short_name(adapter: Path) -> str:
    return adapter.absolute().parent.name if adapter.name in (ADAPTER_NAME, MODEL_NAME) else adapter.stem


def difference(first: Path, second: Path) -> float | None:
    """Return the largest difference of two picture files, as a share of white; none where the shapes differ."""
    arrays = []
    for path in (first, second):
        with Image.open(path) as image:
            arrays.append(np.asarray(image))
    one, other = arrays
    if one.shape != other.shape or one.dtype != other.dtype:
        return None
    white = float(np.iinfo(one.dtype).max) if one.dtype.kind in "iu" else 1.0
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max() / white)
