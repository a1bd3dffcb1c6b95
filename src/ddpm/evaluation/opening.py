"""Opening what is scored and the data that it is compared with; what does not go together is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm.config import DataConfig, from_tree
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.errors import ConfigError, DataError, ModelFileError
from ddpm.evaluation.subject import Place, model_fingerprint, scale_of
from ddpm.model import Model
from ddpm.model_file import MODEL_NAME, locate
from ddpm.words import counted


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
    guidance: float | None = None
    seed: int = 0
    processes: int = 1
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class Subject:
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


def open_subject(subject: Model | str | Path, request: Request, progress: ProgressFactory | None) -> Subject:
    """Open a model, its file or its run folder, or any pictures; and the data.

    Raises:
        DdpmError: for what cannot be opened, or does not go with the data.
    """
    return _open_model(subject, request, progress) or _open_pictures(subject, request, progress)


def _open_model(subject: Model | str | Path, request: Request, progress: ProgressFactory | None) -> Subject | None:
    """Return a model with its data, or None if the subject is no model."""
    if not isinstance(subject, Model) and not looks_like_model(Path(subject)):
        return None
    if isinstance(subject, Model) and request.processes > 1:
        raise ConfigError("a model in memory is sampled by one process; save it, and give its file")
    if request.size is not None:
        raise ConfigError("--size is for pictures: a model says itself at which size its data are read")
    loaded = subject if isinstance(subject, Model) else Model.load(subject)
    model = loaded.with_sampling(sampler=request.sampler, steps=request.steps, guidance=request.guidance)
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
    _refuse_processes(model, request)
    same = store.fingerprint == provenance.get("data_fingerprint")
    sampling = model.sampling.as_tree()
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
    words = (
        f"{recipe['model']} ({model.sampling.sampler}, {counted(model.sampling.steps, 'step')}, seed {request.seed})"
    )
    notes = () if same else (f"the model was trained on other data than {store.source}: a copy cannot be found there",)
    places: dict[str, Place | Path] = {"data": place}
    if not isinstance(subject, Model):
        places["model"] = locate(Path(subject))
    return Subject(words, model, store, None, recipe, notes, places)


def _refuse_processes(model: Model, request: Request) -> None:
    if model.conditions.picture is not None and request.processes > 1:
        raise ConfigError("a model that makes pictures from pictures is sampled by one process; use --processes 1")


def looks_like_model(path: Path) -> bool:
    """Whether a path is meant to be a model: a file of weights, or a run folder, even one that has no model yet."""
    if path.is_dir():
        return (path / MODEL_NAME).is_file() or (path / "metrics.jsonl").is_file()
    return path.suffix in (".safetensors", ".pt", ".pth", ".ckpt")


def _open_pictures(subject: Model | str | Path, request: Request, progress: ProgressFactory | None) -> Subject:
    assert not isinstance(subject, Model)  # that is one
    given = {"sampler": request.sampler, "steps": request.steps, "guidance": request.guidance}
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
        notes.append(
            f"{counted(len(bad), 'file')} of {subject} cannot be read and enter no score: {bad[0][0]} ({bad[0][1]})"
        )
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
    return Subject(str(subject), None, store, pictures, recipe, tuple(notes), places)


def _refuse_other_shape(name: str, shape: Sequence[int], store: Store) -> None:
    data = store.pictures.shape[1:]
    if tuple(shape) != data:
        height, width, channels = shape
        raise DataError(
            f"pictures of {name} are {height}x{width} with {counted(channels, 'channel')}, those of '{store.source}' "
            f"{data[0]}x{data[1]} with {data[2]}; nothing is resized silently: make them equal, or read the data at "
            f"the pictures' size with --size {height}x{width}"
        )
