"""Everything decided before the first picture is made: what is scored, against what, how; and all refusals."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.conditions import Condition
from ddpm.conditions.of_data import conditions_for
from ddpm.data import ProgressFactory, Store
from ddpm.engine import choose_engine
from ddpm.errors import ConfigError, DataError, DdpmError
from ddpm.evaluation.extractors.features import Extractor, load_extractor
from ddpm.evaluation.extractors.trained_classifier import ClassifierExtractor
from ddpm.evaluation.metrics import FEATURE_METRICS, LIKELIHOODS, METRICS, SEED, parse_metrics
from ddpm.evaluation.opening import Request, Subject, open_subject
from ddpm.evaluation.scores.pixel_scores import LEAST as PIXELS_LEAST
from ddpm.evaluation.scores.pixel_scores import MAX_DIMENSIONS
from ddpm.evaluation.scores.spread import spread
from ddpm.evaluation.shards import Job, digest, work_root
from ddpm.evaluation.subject import PictureSource, Place, Sampled, Stored, scale_of
from ddpm.model import Model
from ddpm.version import __version__
from ddpm.words import counted

FEW_SAMPLES, SAMPLES = 1000, 2048
"""Samples of a model by default: of small pictures, and of others."""

MOST_REFERENCE = 50_000
"""Pictures of the training split that samples are compared with, evenly spread: the number of published scores."""

_BY_DEFAULT = tuple(name for name in METRICS if name not in ("sfid", "is", *LIKELIHOODS))  # these take long


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
        is_demand: whether a score that turns out not to be had is an error.
        classes: of the classifier that gives the features; empty where none does.
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
    is_demand: bool
    classes: tuple[str, ...] = ()

    @property
    def needs_samples(self) -> bool:
        """Whether any score is of samples, rather than of the model itself."""
        return not set(self.metrics) <= set(LIKELIHOODS)


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
    if request.n is not None and request.n < 2:
        raise ConfigError(f"{counted(request.n, 'picture')}; expected at least 2, as scores are of distributions")
    if not 0 <= request.seed < 2**64:
        raise ConfigError(f"seed {request.seed}; expected 0 to 2^64 - 1")
    engine = choose_engine(request.device, request.precision)
    opened = open_subject(subject, request, progress)
    store = opened.store
    count = _count(opened, request)
    offer = _offer(request, wanted, store, engine.device)
    extractor = offer.extractor
    metrics, left_out = _metrics(wanted, opened, offer, count)
    if "memorization" in metrics and offer.reason:
        left_out["memorization by features"] = offer.reason
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
            "reference": f"{counted(len(train_rows), 'picture')} of the training split",
            "reference_pictures": len(train_rows),
            "held_out_pictures": len(store.held_out),
            "features": features,
            "subsets_seed": SEED,
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
        is_demand=_is_demand(wanted),
        classes=classes_of(extractor),
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
    return "pixels" if is_small(store) else "inception"


def _count(opened: Subject, request: Request) -> int:
    if opened.pictures is None:
        return request.n or (FEW_SAMPLES if is_small(opened.store) else SAMPLES)
    if request.n is not None and request.n > len(opened.pictures):
        raise DataError(
            f"{counted(request.n, 'picture is', 'pictures are')} asked for, but '{opened.title}' holds "
            f"{len(opened.pictures):,}"
        )
    return request.n or len(opened.pictures)


def _source(opened: Subject, request: Request, precision: str, count: int) -> PictureSource:
    elsewhere = request.processes > 1
    if opened.model is not None:
        path = opened.places.get("model")
        return Sampled(
            model=path if elsewhere and isinstance(path, Path) else opened.model,
            sampling=opened.model.sampling.as_tree(),
            fingerprint=opened.recipe["model_fingerprint"],
            seed=request.seed,
            precision=precision,
            conditions=drawn_conditions(opened.model, opened.store, request.seed),
        )
    assert opened.pictures is not None
    place = opened.places["pictures"]
    rows = spread(np.arange(len(opened.pictures), dtype=np.int64), count)
    store = place if elsewhere and isinstance(place, Place) else opened.pictures
    return Stored(store, opened.pictures.fingerprint, rows, scale_of(opened.store))


def drawn_conditions(model: Model, store: Store, seed: int) -> Callable[[Sequence[int]], Condition] | None:
    """Return conditions drawn from the training split, for a model that makes pictures from pictures; else None."""
    if model.conditions.picture is None:
        return None
    rows = conditions_for(store, model.conditions, model.provenance)
    assert rows is not None  # the model has conditions
    return lambda numbers: rows.drawn(store, model.codec, numbers, seed)


def is_small(store: Store) -> bool:
    """Whether distances between raw pixels say something of what is in the pictures."""
    return int(np.prod(store.pictures.shape[1:])) <= MAX_DIMENSIONS


@dataclass(frozen=True, eq=False)
class _Offer:
    """What makes features here.

    Attributes:
        extractor: None where there is none.
        reason: why there is none.
        parts: the features that it gives of these data: "pooled", "spatial", "probabilities".
    """

    extractor: Extractor | None = None
    reason: str = ""
    parts: frozenset[str] = frozenset()


def _offer(request: Request, wanted: tuple[str, ...] | None, store: Store, device: str) -> _Offer:
    """Load what makes features, and try it on two pictures of the data, so that it fails before the work begins."""
    of_features = [name for name in wanted or METRICS if name in FEATURE_METRICS or name == "agreement"]
    if not of_features and "memorization" not in (wanted or METRICS):
        return _Offer()
    must_be = request.features is not None or (_is_demand(wanted) and bool(of_features))
    try:
        extractor = load_extractor(str(request.features or default_features(store)), device=device)
    except DdpmError as error:
        if must_be:
            raise
        return _Offer(reason=str(error))
    tried = extractor(np.asarray(store.pictures[store.train[:2]]), store.value_range)
    given = {"pooled": tried.pooled, "spatial": tried.spatial, "probabilities": tried.probabilities}
    return _Offer(extractor, parts=frozenset(name for name, values in given.items() if values is not None))


def _is_demand(wanted: tuple[str, ...] | None) -> bool:
    """Whether scores were named, so that one that is not to be had is an error."""
    return wanted is not None and set(wanted) != set(METRICS)


def _metrics(
    wanted: tuple[str, ...] | None, opened: Subject, offer: _Offer, count: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the groups of scores that are to be had, and why the others are not.

    Raises:
        DataError: if one that was named is not to be had.
    """
    asked = wanted or _BY_DEFAULT
    obstacles = {name: _obstacle(name, opened, offer, count) for name in asked}
    missing = {name: why for name, why in obstacles.items() if why}
    if missing and _is_demand(wanted):
        raise DataError("; ".join(f"no {name} here: {why}" for name, why in missing.items()))
    if len(missing) == len(asked):
        raise DataError(f"no score is to be had here: {'; '.join(dict.fromkeys(missing.values()))}")
    if wanted is None:  # what nobody would expect
        if not is_small(opened.store):
            missing.pop("pixels")
        if opened.model is None or not opened.model.conditions.classes:
            missing.pop("agreement")
    if not opened.store.is_points:
        missing.pop("energy", None)
    return tuple(name for name in asked if not obstacles[name]), missing


def _obstacle(name: str, opened: Subject, offer: _Offer, count: int) -> str:
    """Return why a group of scores is not to be had, or an empty string."""
    metric = FEATURE_METRICS.get(name)
    least = metric.least if metric else PIXELS_LEAST if name == "pixels" else 2
    if metric is not None and offer.extractor is None:
        return offer.reason
    if metric is not None and metric.needs not in offer.parts:
        return f"the extractor gives no {metric.needs} features; use another --features, such as inception"
    if name == "agreement":
        return _no_agreement(opened, offer)
    if name == "colour" and opened.store.is_points:
        return "points have no colours"
    if name == "energy" and not opened.store.is_points:
        return "the energy distance is of points in the plane; of pictures, use kid"
    if name in LIKELIHOODS and opened.model is None:
        return "bits per dimension are of a model, not of its samples"
    if name == "bits" and opened.store.levels is None:
        return "the bound is of pictures with levels, and these data are continuous; use ode"
    if name in LIKELIHOODS and len(opened.store.held_out) < 2:
        return f"{len(opened.store.held_out)} held-out pictures; it needs at least 2"
    if name not in LIKELIHOODS and min(count, len(opened.store.train)) < least:
        return (
            f"{counted(count, 'sample')} and {counted(len(opened.store.train), 'training picture')}; it needs at "
            f"least {least} of each"
        )
    if name == "pixels" and not is_small(opened.store):
        return f"scores over raw pixels mean something up to {MAX_DIMENSIONS:,} values a picture"
    if name == "pixels" and len(opened.store.held_out) < least:
        return f"{len(opened.store.held_out)} held-out pictures; it needs at least {least}"
    return ""


def classes_of(extractor: Extractor | None) -> tuple[str, ...]:
    """Return the classes of a classifier that gives features; of any other extractor none."""
    return extractor.classes if isinstance(extractor, ClassifierExtractor) else ()


def _no_agreement(opened: Subject, offer: _Offer) -> str:
    """Return why no classifier can say whether samples show the classes that were asked for, or an empty string."""
    if opened.model is None or not opened.model.conditions.classes:
        return "it is of the classes that samples are asked to show, of a model with labels"
    classes = classes_of(offer.extractor)
    if not classes:
        return "the features are not of a classifier; train one with `ddpm train-classifier`, and give it as --features"
    if unknown := [name for name in opened.model.conditions.classes if name not in classes]:
        return f"the classifier does not know the class '{unknown[0]}'"
    return ""


def report_name(plan: Plan) -> str:
    """Return a name for the files of a report: what is scored, and a hash of the recipe and of which scores."""
    model = plan.model
    stem = f"{model.sampling.sampler}-{model.sampling.steps}" if model is not None else "pictures"
    return f"{stem}-n{plan.count}-{digest([plan.recipe, plan.metrics])[:8]}"
