"""Plans of `quality`: which samplers at which numbers of steps, against which data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ddpm.config import from_tree
from ddpm.data import Store, open_store
from ddpm.data.progress import ProgressFactory
from ddpm.engine import choose_engine
from ddpm.errors import DataError, ModelFileError, RunError, SamplingError
from ddpm.evaluation.extractors.features import load_extractor
from ddpm.evaluation.plan import drawn_conditions
from ddpm.model import Model
from ddpm.model_file import locate
from ddpm.sampling.frechet_score import FrechetScore
from ddpm.sampling.job import with_options
from ddpm.sampling.quality import Comparison, read_cells
from ddpm.sampling.recipe import file_sha256
from ddpm.version import __version__

USUAL = ("unipc", "dpm_solver_pp", "heun", "ddim", "ddpm")
"""Samplers that are compared when none are named."""

USUAL_STEPS = (5, 10, 20, 50)
"""Numbers of steps that are compared when none are named."""


def plan_comparison(
    path: Path,
    *,
    samplers: Sequence[str] | None,
    steps: str | None,
    count: int,
    seed: int,
    data: str | None,
    features: str,
    file: Path | None,
    device: str,
    progress: ProgressFactory,
) -> Comparison:
    """Return a comparison; everything that can be refused is refused here, before anything is sampled.

    Raises:
        SamplingError: for samplers, steps, a number or a seed that are not valid, or a file of other results.
        ModelFileError: for a model that does not say what it was trained on.
        DataError: for data of another kind.
        RunError: if the results cannot be written.
    """
    source = locate(path)
    engine = choose_engine(device)
    model = Model.load(source, device=engine.device)
    models = [
        with_options(model, sampler=name, steps=number, assignments=())
        for name in samplers or _usual_samplers(model)
        for number in (_usual_steps(model) if steps is None else parse_steps(steps))
    ]
    for each in models:
        each.sampling_batches(count, seed=seed)
    engine.place(model.network)
    extractor = load_extractor(features, device=engine.device)
    store = open_data(source, model, data, progress)
    conditions = {
        "model": file_sha256(source),
        "data": store.fingerprint,
        "features": extractor.recipe(),
        "number": count,
        "seed": seed,
        "precision": engine.precision,
        "device": engine.device,
        "version": __version__,
    }
    results = file if file is not None else source.parent / f"{source.stem}-samplers.json"
    read_cells(results, conditions)
    if not os.access(results.parent, os.W_OK | os.X_OK):
        raise RunError(f"cannot write '{results}': its folder is missing or read-only; use another --json")
    score = FrechetScore(store, count, extractor)
    drawn = drawn_conditions(model, store, seed)
    return Comparison(models, conditions, count, seed, engine, score, results, drawn)


def _usual_samplers(model: Model) -> tuple[str, ...]:
    own = model.sampling.sampler
    return (own,) if model.is_distilled else tuple(dict.fromkeys((own, *USUAL)))


def _usual_steps(model: Model) -> list[int]:
    """Return what a distilled model was made for, or the usual numbers of steps, as far as the schedule goes."""
    if model.is_distilled:
        return [model.sampling.steps]
    return [steps for steps in USUAL_STEPS if steps <= len(model.schedule)] or [len(model.schedule)]


def parse_steps(text: str) -> list[int]:
    """Return the numbers of steps of a text such as "5,10,20".

    Raises:
        SamplingError: if it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise SamplingError(f"steps '{text}'; expected whole numbers, for example 5,10,20,50")
    return list(dict.fromkeys(int(part) for part in parts))


def open_data(file: Path, model: Model, data: str | None, progress: ProgressFactory) -> Store:
    """Return the pictures that a model was trained on, or others of their kind, read as those were.

    Raises:
        ModelFileError: for a model that does not say what it was trained on.
        DataError: for data of another kind.
    """
    provenance = model.provenance
    if "config" not in provenance or (data is None and "data" not in provenance):
        raise ModelFileError(f"'{file}' does not say what it was trained on; expected a model that 'ddpm train' wrote")
    store = open_store(data or provenance["data"], from_tree(provenance["config"]).data, progress=progress)
    same = (store.levels, store.value_range) == (model.codec.levels, model.codec.value_range)
    if not same or store.pictures.shape[1:] != model.picture_shape:
        raise DataError(
            f"the pictures of '{store.source}' are not of the model's kind; expected such as it was trained on"
        )
    return store
