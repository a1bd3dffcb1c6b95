"""What a classifier is trained on, how and where to: everything decided before the first step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ddpm.codec import PixelCodec
from ddpm.config import MIN_SIZE, ClassifierConfig, ScheduleName, explain, merge
from ddpm.config.classifier_presets import CLASSIFIER_PRESET_NAMES, classifier_preset_tree
from ddpm.config.presets import default_preset
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.engine import choose_engine
from ddpm.errors import ConfigError, DataError, RunError, nearest
from ddpm.model_file import read_model_file
from ddpm.training.batches import balanced_rows
from ddpm.training.plan import default_out
from ddpm.words import counted

LEAST_A_CLASS = 5
"""Fewest training pictures of a class: with fewer, nothing is learned that held-out pictures could confirm."""


@dataclass(frozen=True, eq=False)
class ClassifierPlan:
    """What will be trained on what, where to.

    Attributes:
        config: the resolved tree.
        preset: the preset it started from.
        store: the data, with classes.
        out: the file.
        schedule: of x_t; none: clean pictures.
        schedule_name: where the schedule comes from, in words.
    """

    config: ClassifierConfig
    preset: str
    store: Store
    out: Path
    schedule: NoiseSchedule | None
    schedule_name: str

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every picture of the store, int64 [N]."""
        assert self.store.labels is not None  # `plan_classifier` refuses data without
        return self.store.labels

    @property
    def codec(self) -> PixelCodec:
        """Pictures <-> x_0, from what the data are."""
        return PixelCodec(self.store.levels, self.store.value_range, self.store.pictures.dtype.name)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.store.pictures.shape[1:]
        return height, width, channels

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of an epoch: those to train on; where balanced, each class repeated to the size of the largest."""
        rows = self.store.train
        if not self.config.balanced:
            return rows
        return balanced_rows(rows, self.labels)


def plan_classifier(
    data: str | Path,
    overrides: Mapping[str, Any],
    *,
    preset: str | None = None,
    schedule_of: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> ClassifierPlan:
    """Open the data and resolve the configuration; nothing is written but the data cache.

    Args:
        data: a path, an embedded name, or a Hub data set, with classes.
        overrides: tree of configuration values that override the preset's.
        preset: "digits", "mnist" or "auto"; none: the one of the data's name, else "auto".
        schedule_of: for a noisy one: a model whose schedule to take, or the name of a schedule.
        out: the file; none: ``runs/NAME-classifier.safetensors``.
        overwrite: whether an existing file may be replaced.
        cache_dir: of decoded pictures.
        progress: shows the decoding.

    Raises:
        ConfigError: for an unknown preset, key or value.
        DataError: if the data cannot be used, have no classes, only one, or a class with too few pictures.
        ModelFileError: if `schedule_of` is a file, but no model.
        RunError: if the file exists and may not be replaced, or cannot be written.
    """
    name = preset or default_preset(str(data), CLASSIFIER_PRESET_NAMES)
    if name not in CLASSIFIER_PRESET_NAMES:
        classifier_preset_tree(name, size=(1, 1), count=1)  # raises, naming the nearest
    early = _validated({key: value for key, value in overrides.items() if key != "network"})
    choose_engine(early.training.device, early.training.precision)
    if schedule_of is not None and not early.noisy:
        raise ConfigError(f"a schedule ('{schedule_of}') for a classifier of clean pictures; add --noisy, or leave it")
    stem = default_out(data)
    file = Path(out) if out is not None else stem.parent / f"{stem.name}{'-noisy' * early.noisy}-classifier.safetensors"
    _check_file(file, overwrite)
    schedule, schedule_name = _schedule(early, schedule_of)
    store = open_store(data, early.data, cache_dir=cache_dir, progress=progress)
    _check_classes(store)
    height, width = store.pictures.shape[1:3]
    recipe = classifier_preset_tree(name, size=(height, width), count=len(store.train), noisy=early.noisy)
    config = _validated(merge(merge(recipe, overrides), {"data": {"size": [height, width]}}))
    return ClassifierPlan(config, name, store, file, schedule, schedule_name)


def _validated(tree: Mapping[str, Any]) -> ClassifierConfig:
    try:
        return ClassifierConfig.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _schedule(config: ClassifierConfig, schedule_of: str | None) -> tuple[NoiseSchedule | None, str]:
    if not config.noisy:
        return None, "none"
    if schedule_of is not None and Path(schedule_of).exists():
        return NoiseSchedule(read_model_file(Path(schedule_of))[1]["schedule.betas"]), f"that of {schedule_of}"
    section = config.schedule
    name = section.name if schedule_of is None else schedule_of
    known = get_args(ScheduleName)
    if name not in known:
        raise ConfigError(
            f"'{name}' is neither a model nor a schedule{nearest(name, known)}; expected a model file, a run "
            f"folder, or one of {', '.join(known)}"
        )
    made = make_schedule(name, section.num_timesteps, zero_terminal_snr=section.zero_terminal_snr)
    return made, f"{name}, {counted(len(made), 'timestep')}"


def _check_file(file: Path, overwrite: bool) -> None:
    if file.is_dir():
        raise RunError(f"'{file}' is a folder; expected the name of a file, such as {file}/classifier.safetensors")
    if file.exists() and not overwrite:
        raise RunError(f"'{file}' exists already; add --overwrite to replace it, or choose another --out")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to '{file.parent}' ({error.strerror}); use another --out") from error
    if not os.access(file.parent, os.W_OK):
        raise RunError(f"cannot write to '{file.parent}' (no permission); use another --out")


def _check_classes(store: Store) -> None:
    source = store.source
    if store.labels is None or not store.classes:
        raise DataError(
            f"'{source}' has no classes, which a classifier needs; put the pictures of each class into a folder of its "
            "own, or name the column of a table with --set data.label_column=NAME"
        )
    if min(store.pictures.shape[1:3]) < MIN_SIZE:
        height, width = store.pictures.shape[1:3]
        raise DataError(f"pictures of '{source}' are {height}x{width}; expected sides of at least {MIN_SIZE} pixels")
    if len(store.classes) < 2:
        raise DataError(f"'{source}' has one class only ('{store.classes[0]}'); expected at least two")
    counts = np.bincount(store.labels[store.train], minlength=len(store.classes))
    small = [f"'{store.classes[k]}' ({counts[k]})" for k in np.flatnonzero(counts < LEAST_A_CLASS)]
    if small:
        more = f" and {len(small) - 3} more" if len(small) > 3 else ""
        raise DataError(
            f"too few pictures to train on in class {', '.join(small[:3])}{more}; expected at least {LEAST_A_CLASS} in "
            "each: add pictures, or leave these classes out"
        )
