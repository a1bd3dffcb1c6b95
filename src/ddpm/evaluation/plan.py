"""Everything decided before the first picture is made: what is scored, against what, how; and all refusals."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.config import DataConfig, from_tree
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.errors import ConfigError, DataError, DdpmError, ModelFileError
from ddpm.evaluation.features import Extractor, load_extractor
from ddpm.evaluation.pixel_scores import LEAST as PIXELS_LEAST
from ddpm.evaluation.pixel_scores import MAX_DIMENSIONS
from ddpm.evaluation.scores import FEATURE_METRICS, METRICS, parse_metrics
from ddpm.evaluation.shards import Job, digest, work_root
from ddpm.evaluation.subject import PictureSource, Place, Sampled, Stored, model_fingerprint, scale_of, spread
from ddpm.model import Model
from ddpm.model_file import MODEL_NAME, locate
from ddpm.training.engine import choose_engine
from ddpm.version import __version__

MOST_REFERENCE = 50_000
"""Pictures of the training split that samples are compared with, evenly spread: the number of published scores."""

FEW_SAMPLES, SAMPLES = 1000, 2048
"""Samples of a model by default: of small pictures, and of others."""


@dataclass(frozen=True)
class Request:
    """What a user asks for; every field has the meaning that `ddpm.evaluate` gives it."""

    data: str | Path | None = None
    metrics: Sequence[str] | None = None
    n: int | None = None
    features: str | Path | None = None
    size: tuple[int, int] | None = None
    sampler: str | None = None
    steps: int | None = None
    seed: int = 0
    processes: int = 1
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class Plan:
    """An evaluation that can begin.

    Attributes:
        title: what is scored, in few words.
        model: the model that is sampled; None for pictures.
        store: the data.
        count: how many samples.
        metrics: groups of scores, in the order of the report.
        left_out: groups that are not to be had here -> why.
        samples: the work on the samples; train, held_out: on the two splits of the data.
        recipe: of the scores: "samples" says what is scored, "measure" how, "software" by what.
        notes: what the reader must know.
        processes: how many share the work.
        seed: of the samples and of random subsets.
    """

    title: str
    model: Model | None
    store: Store
    count: int
    metrics: tuple[str, ...]
    left_out: dict[str, str]
    samples: Job
    train: Job
    held_out: Job
    recipe: dict[str, Any]
    notes: tuple[str, ...]
    processes: int
    seed: int


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is scored, opened, with the data that it is compared with.

    Attributes:
        title: in few words.
        model: of a model.
        store: the data.
        most: how many pictures there are; None: as many as are wanted.
        recipe: what says where the pictures come from.
        notes: what was noticed.
    """

    title: str
    model: Model | None
    store: Store
    pictures: Store | None
    recipe: dict[str, Any]
    notes: tuple[str, ...] = ()
    places: dict[str, Place | Path] = field(default_factory=dict)


def make_plan(subject: Model | str | Path, request: Request, *, progress: ProgressFactory | None = None) -> Plan:
    """Decide everything, and refuse what cannot be done.

    Args:
        subject: a model, its file, its run folder; or any pictures that `open_store` reads.
        request: what is asked for.
        progress: told of the pictures that are read.

    Raises:
        DdpmError: with the reason, before any work is done.
    """
    wanted = parse_metrics(request.metrics) if request.metrics is not None else None
    if request.processes < 1:
        raise ConfigError(f"{request.processes} processes; expected at least 1")
    if not 0 <= request.seed < 2**64:
        raise ConfigError(f"seed {request.seed}; expected 0 to 2^64 - 1")
    engine = choose_engine(request.device, request.precision)
    opened = _open_model(subject, request, progress) or _open_pictures(subject, request, progress)
    store = opened.store
    count = _count(opened, request)
    extractor, reason = _extractor(request, wanted, store, engine.device)
    metrics, left_out = _metrics(wanted, opened, extractor, reason, count)
    source = _source(opened, request, engine.precision, count)
    train_rows = spread(store.train, MOST_REFERENCE)
    features = None if extractor is None else {"sha256": extractor.sha256, **extractor.recipe()}
    base = _Base(store, opened.places.get("data"), extractor, request, features or {}, "sfid" in metrics, engine.device)
    recipe = {
        "samples": {**opened.recipe, **({"precision": engine.precision} if opened.model is not None else {})},
        "measure": {
            "samples": count,
            "values": [store.levels, list(store.value_range)],
            "data": store.source,
            "data_fingerprint": store.fingerprint,
            "reference": f"{len(train_rows)} pictures of the training split",
            "reference_pictures": len(train_rows),
            "held_out_pictures": len(store.held_out),
            "features": features,
            "seed": request.seed,
        },
        "software": {"ddpm": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    return Plan(
        title=opened.title,
        model=opened.model,
        store=store,
        count=count,
        metrics=metrics,
        left_out=left_out,
        samples=base.job(source, count, keeps_pictures=opened.model is not None),
        train=base.real(train_rows),
        held_out=base.real(store.held_out),
        recipe=recipe,
        notes=opened.notes,
        processes=request.processes,
        seed=request.seed,
    )


@dataclass(frozen=True, eq=False)
class _Base:
    """What the three jobs of a plan share."""

    store: Store
    place: Place | Path | None
    extractor: Extractor | None
    request: Request
    key: Mapping[str, Any]
    with_spatial: bool
    device: str

    def job(self, source: PictureSource, count: int, *, keeps_pictures: bool) -> Job:
        elsewhere = self.request.processes > 1 and self.extractor is not None
        name = str(self.request.features or default_features(self.store)) if elsewhere else None
        return Job(
            source=source,
            count=count,
            scale=self.store.value_range,
            extractor=name or self.extractor,
            extractor_key=self.key,
            with_spatial=self.with_spatial,
            keeps_pictures=keeps_pictures,
            device=self.device,
            root=work_root(),
        )

    def real(self, rows: NDArray[np.int64]) -> Job:
        elsewhere = self.request.processes > 1 and isinstance(self.place, Place)
        store = self.place if elsewhere and isinstance(self.place, Place) else self.store
        source = Stored(store, self.store.fingerprint, rows, scale_of(self.store))
        return self.job(source, len(rows), keeps_pictures=False)


def default_features(store: Store) -> str:
    """Return the extractor for data that nobody chose one for: raw pixels of small pictures, else Inception."""
    return "pixels" if _is_small(store) else "inception"


def _is_small(store: Store) -> bool:
    return int(np.prod(store.pictures.shape[1:])) <= MAX_DIMENSIONS


def _open_model(subject: Model | str | Path, request: Request, progress: ProgressFactory | None) -> _Subject | None:
    """Return a model with its data, or None if the subject is no model."""
    if not isinstance(subject, Model) and not looks_like_model(Path(subject)):
        return None
    if isinstance(subject, Model) and request.processes > 1:
        raise ConfigError("a model in memory is sampled by one process; save it, and give its file")
    if request.size is not None:
        raise ConfigError("--size is for pictures: a model says itself at which size its data are read")
    loaded = subject if isinstance(subject, Model) else Model.load(subject)
    model = loaded.with_sampling(sampler=request.sampler, steps=request.steps)
    provenance = model.provenance
    name = "the model" if isinstance(subject, Model) else f"'{subject}'"
    if "config" not in provenance or (request.data is None and "data" not in provenance):
        raise ModelFileError(f"{name} does not say what it was trained on; expected a model that 'ddpm train' wrote")
    model.sampling_batches(1 if request.n is None else request.n, seed=request.seed)  # refuses
    config = from_tree(provenance["config"]).data
    place = Place(str(request.data or provenance["data"]), config)
    store = open_store(place.source, config, progress=progress)
    if (store.levels, store.value_range) != (model.codec.levels, model.codec.value_range):
        raise DataError(
            f"'{store.source}' has {store.levels} levels in {store.value_range}, the model's pictures have "
            f"{model.codec.levels} in {model.codec.value_range}; expected the same"
        )
    _refuse_other_shape(name, model.picture_shape, store)
    same = store.fingerprint == provenance.get("data_fingerprint")
    sampling = json.loads(model.sampling.model_dump_json())
    recipe = {
        "kind": "model",
        "model": "in memory" if isinstance(subject, Model) else str(subject),
        "model_fingerprint": model_fingerprint(model),
        "step": provenance.get("step"),
        "weights": provenance.get("weights"),
        "trained_on_same_data": same,
        "seed": request.seed,
        **sampling,
    }
    words = f"{recipe['model']} ({model.sampling.sampler}, {model.sampling.steps} steps, seed {request.seed})"
    notes = () if same else (f"the model was trained on other data than {store.source}: a copy cannot be found there",)
    places: dict[str, Place | Path] = {"data": place}
    if not isinstance(subject, Model):
        places["model"] = locate(Path(subject))
    return _Subject(words, model, store, None, recipe, notes, places)


def looks_like_model(path: Path) -> bool:
    """Whether a path is meant to be a model: a file of weights, or a run folder, even one that has no model yet."""
    if path.is_dir():
        return (path / MODEL_NAME).is_file() or (path / "metrics.jsonl").is_file()
    return path.suffix in (".safetensors", ".pt", ".pth", ".ckpt")


def _open_pictures(subject: Model | str | Path, request: Request, progress: ProgressFactory | None) -> _Subject:
    assert not isinstance(subject, Model)  # that is one
    given = {"sampler": request.sampler, "steps": request.steps}
    if asked := [f"--{name}" for name, value in given.items() if value is not None]:
        raise ConfigError(f"{' and '.join(asked)} with pictures '{subject}'; only a model is sampled")
    pictures = open_store(subject, DataConfig(), progress=progress)
    if request.data is None:
        raise ConfigError(f"--data is needed with pictures '{subject}': the data that they are compared with")
    place = Place(str(request.data), DataConfig(size=request.size))
    store = open_store(place.source, place.config, progress=progress)
    height, width = pictures.pictures.shape[1:3]
    sizes = pictures.report.sizes or {}
    if sizes and set(sizes) != {f"{height}x{width}"}:
        listed = ", ".join(f"{count:,} of {size}" for size, count in list(sizes.items())[:4])
        raise DataError(f"the pictures '{subject}' are of several sizes, or too large ({listed}); expected one size")
    _refuse_other_shape(f"'{subject}'", pictures.pictures.shape[1:], store)
    notes = [f"of {subject}: {line}" for line in pictures.report.conversions]
    if pictures.report.bad:
        bad = pictures.report.bad
        notes.append(f"{len(bad):,} files of {subject} cannot be read and are not scored: {bad[0][0]} ({bad[0][1]})")
    if scale_of(pictures) != scale_of(store):
        notes.append(
            f"{pictures.levels} levels of {subject} are read as the data's {store.levels}, rounded to the nearest"
        )
    recipe = {
        "kind": "pictures",
        "pictures": pictures.source,
        "pictures_fingerprint": pictures.fingerprint,
        "levels": pictures.levels,
    }
    places: dict[str, Place | Path] = {"data": place, "pictures": Place(str(subject), DataConfig())}
    return _Subject(str(subject), None, store, pictures, recipe, tuple(notes), places)


def _refuse_other_shape(name: str, shape: Sequence[int], store: Store) -> None:
    data = store.pictures.shape[1:]
    if tuple(shape) != data:
        height, width, channels = shape
        raise DataError(
            f"pictures of {name} are {height}x{width} with {channels} channels, those of '{store.source}' "
            f"{data[0]}x{data[1]} with {data[2]}; nothing is resized silently: make them equal, or read the data at "
            f"the pictures' size with --size {height}x{width}"
        )


def _count(opened: _Subject, request: Request) -> int:
    if request.n is not None and request.n < 2:
        raise ConfigError(f"{request.n} pictures; expected at least 2, as scores are of distributions")
    if opened.pictures is None:
        return request.n or (FEW_SAMPLES if _is_small(opened.store) else SAMPLES)
    if request.n is not None and request.n > len(opened.pictures):
        raise DataError(f"{request.n:,} pictures are asked for, but '{opened.title}' holds {len(opened.pictures):,}")
    return request.n or len(opened.pictures)


def _source(opened: _Subject, request: Request, precision: str, count: int) -> PictureSource:
    elsewhere = request.processes > 1
    if opened.model is not None:
        path = opened.places.get("model")
        return Sampled(
            model=path if elsewhere and isinstance(path, Path) else opened.model,
            sampling=json.loads(opened.model.sampling.model_dump_json()),
            fingerprint=opened.recipe["model_fingerprint"],
            seed=request.seed,
            precision=precision,
        )
    assert opened.pictures is not None
    place = opened.places["pictures"]
    rows = spread(np.arange(len(opened.pictures), dtype=np.int64), count)
    store = place if elsewhere and isinstance(place, Place) else opened.pictures
    return Stored(store, opened.pictures.fingerprint, rows, scale_of(opened.store))


def _extractor(
    request: Request, wanted: tuple[str, ...] | None, store: Store, device: str
) -> tuple[Extractor | None, str]:
    """Return what makes features, or None and why there is none."""
    needed = wanted is None or any(name in FEATURE_METRICS or name == "memorization" for name in wanted)
    if not needed:
        return None, ""
    name = str(request.features or default_features(store))
    try:
        return load_extractor(name, device=device), ""
    except DdpmError as error:
        if request.features is not None or wanted is not None:
            raise
        return None, str(error)


def _metrics(
    wanted: tuple[str, ...] | None, opened: _Subject, extractor: Extractor | None, reason: str, count: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the groups of scores that are to be had, and why the others are not.

    Raises:
        DataError: if one that was named is not to be had.
    """
    obstacles = {name: _obstacle(name, opened, extractor, reason, count) for name in METRICS}
    if wanted is None:  # the bound takes as long as sampling: only if it is asked for
        chosen = tuple(name for name in METRICS if not obstacles[name] and name not in ("bits", "is", "sfid"))
        missing = {name: obstacles[name] for name in ("kid", "fid", "prdc", "memorization") if obstacles[name]}
    elif set(wanted) == set(METRICS):
        chosen = tuple(name for name in METRICS if not obstacles[name])
        missing = {name: obstacle for name, obstacle in obstacles.items() if obstacle}
    else:
        for name in wanted:
            if obstacles[name]:
                raise DataError(f"no {name} here: {obstacles[name]}")
        chosen, missing = wanted, {}
    if not chosen:
        raise DataError(f"no score is to be had here: {'; '.join(sorted(set(missing.values())))}")
    return chosen, missing


def _obstacle(name: str, opened: _Subject, extractor: Extractor | None, reason: str, count: int) -> str:
    """Return why a group of scores is not to be had, or an empty string."""
    metric = FEATURE_METRICS.get(name)
    least = metric.least if metric else PIXELS_LEAST if name == "pixels" else 2
    needs_extractor = metric is not None or name == "memorization"
    if needs_extractor and extractor is None:
        return reason
    if name != "bits" and min(count, len(opened.store.train)) < least:
        return f"{count} samples and {len(opened.store.train)} training pictures; it needs at least {least} of each"
    if name == "bits" and opened.model is None:
        return "bits per dimension are of a model, not of its samples"
    if name == "pixels" and not _is_small(opened.store):
        return f"scores over raw pixels mean something up to {MAX_DIMENSIONS:,} values a picture"
    if name == "pixels" and len(opened.store.held_out) < least:
        return f"{len(opened.store.held_out)} held-out pictures; it needs at least {least}"
    return ""


def report_name(plan: Plan) -> str:
    """Return a name for the files of a report: what is scored, and a hash of the recipe."""
    model = plan.model
    stem = f"{model.sampling.sampler}-{model.sampling.steps}" if model is not None else "pictures"
    return f"{stem}-n{plan.count}-{digest(plan.recipe)[:8]}"
