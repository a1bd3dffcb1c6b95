"""A plan: everything about a run that is decided before its first step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm.codec import PixelCodec
from ddpm.conditions.of_data import DataConditions, declare, place_of_pictures
from ddpm.config import MIN_SIZE, Config, from_tree, merge, to_tree
from ddpm.config.conditions import ConditionSpec
from ddpm.config.presets import NAMES, auto_preset, default_preset, preset_tree
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.data.shards import Shards, is_list_of_shards, open_shards
from ddpm.diffusion.noise import stream
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.engine import Engine, choose_engine
from ddpm.errors import ConfigError
from ddpm.model import Model
from ddpm.model_file import MODEL_NAME
from ddpm.networks import build_network
from ddpm.networks.levels import recompute_activations
from ddpm.training.batches import WHOLE, BatchSource, balanced_rows
from ddpm.training.loop import Objective
from ddpm.training.preview import Shown, shown_in_previews
from ddpm.training.run_folder import RunFolder
from ddpm.training.streams import STRIDE, Opener, StreamedBatches


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be trained on what, where.

    Attributes:
        config: the resolved tree.
        preset: the preset it started from.
        store: the data.
        out: the run folder.
        conditions: of the data's rows; None: the network is told of nothing.
        shards: what is streamed, where `store` is the first of them; None: `store` is all.
    """

    config: Config
    preset: str
    store: Store
    out: Path
    conditions: DataConditions | None
    shards: Shards | None = field(default=None, kw_only=True)

    @property
    def codec(self) -> PixelCodec:
        """Pictures <-> x_0, from what the data are."""
        return PixelCodec(self.store.levels, self.store.value_range, self.store.pictures.dtype.name)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.store.pictures.shape[1:]
        return height, width, channels

    def choose_engine(self) -> Engine:
        """Return the best of this machine for it."""
        return choose_engine(self.config.training.device, self.config.training.precision)

    def start(self, engine: Engine) -> tuple[nn.Module, Objective]:
        """Return the network of the first step, in its place, and what is minimised."""
        config = self.config
        network = engine.place(self.first_network())
        recompute_activations(network, config.training.gradient_checkpointing)
        objective = Objective(
            schedule=self.schedule(),
            config=config.objective,
            engine=engine,
            levels=self.codec.levels,
            x_0_range=self.codec.clip_range,
            self_conditioning=config.network.self_conditioning,
        )
        return network, objective

    def first_network(self) -> nn.Module:
        """Return the network of the first step, with weights drawn by the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream(self.config.seed, "weights").integers(2**63)))
            learned = self.config.objective.variance == "learned"
            return build_network(
                self.config.network, self.picture_shape, learned_variance=learned, conditions=self.condition_spec
            )

    @property
    def condition_spec(self) -> ConditionSpec:
        """What the network is conditioned on."""
        return ConditionSpec() if self.conditions is None else self.conditions.spec

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of an epoch: those to train on; where balanced, of each class as many as of the largest."""
        rows, labels = self.store.train, self.store.labels
        return balanced_rows(rows, labels) if self.config.conditions.balanced and labels is not None else rows

    def batches(self, num_timesteps: int, part: slice = WHOLE) -> BatchSource:
        """Return where the batches come from, or a part of each, for so many timesteps."""
        kind: Callable[..., BatchSource] = BatchSource
        if self.shards is not None:
            opener = Opener(self.shards, self.config.seed, self.conditions, self.config.conditions)
            kind = partial(StreamedBatches, opener=opener)
        return kind(
            pictures=self.store.pictures,
            rows=self.rows,
            codec=self.codec,
            batch_size=self.config.training.batch_size,
            num_timesteps=num_timesteps,
            seed=self.config.seed,
            flip=self.config.data.flip,
            conditions=self.conditions,
            part=part,
        )

    def name_of(self, row: int) -> str:
        """Return the name of a picture by its row in batches, for messages."""
        if self.shards is None:
            return self.store.names[row]
        number, own = divmod(row, STRIDE)
        return f"{self.shards.places[number]}, {self.shards.open(number).names[own]}"

    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule."""
        section = self.config.schedule
        return make_schedule(section.name, section.num_timesteps, zero_terminal_snr=section.zero_terminal_snr)

    @property
    def result(self) -> str:
        """Name of the file of what is trained."""
        return MODEL_NAME

    def write(self, model: Model, path: Path) -> None:
        """Write what is trained: the model."""
        model.save(path)

    def next_command(self) -> str:
        """Return the command that samples from what is trained."""
        return f"ddpm sample {self.out}"

    def complete(self, model: Model) -> Model:
        """Return the model with what else it needs to be sampled."""
        return model

    def shown(self) -> Shown:
        """Return what previews show."""
        return shown_in_previews(
            self.store, self.codec, self.conditions, self.config.training.previews, self.config.seed
        )

    def lineage(self) -> dict[str, Any]:
        """Return what provenance says of models that this one comes from."""
        return {}

    def shown_beside(self) -> list[Model]:
        """Return the models whose pictures stand beside its own in previews."""
        return []


def make_plan(
    data: str | Path,
    overrides: Mapping[str, Any],
    *,
    preset: str | None = None,
    out: str | Path | None = None,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> Plan:
    """Open the data, resolve the configuration, and choose the run folder; nothing is written but the data cache.

    Args:
        data: a path, an embedded name, or a Hub data set.
        overrides: tree of configuration values that override the preset's.
        preset: its name; none: the one of the data's name, else "auto".
        out: the run folder; none: ``runs/NAME``.
        cache_dir: of decoded pictures.
        progress: shows the decoding.

    Raises:
        ConfigError: for an unknown preset, key or value.
        DataError: if the data cannot be used.
    """
    name = preset or default_preset(str(data))
    if name not in NAMES:
        preset_tree(name, size=(1, 1), count=1)  # raises, naming the nearest
    fixed = {} if name == "auto" else preset_tree(name, size=(1, 1), count=1)
    folder = RunFolder(Path(out) if out is not None else default_out(data))
    early = _refuse_early(name, merge(fixed, overrides), folder)
    place = place_of_pictures(data, early.conditions)
    shards = None
    if is_list_of_shards(place):
        _refuse_for_shards(early)
        shards = open_shards(place, early.data, cache_dir=cache_dir, progress=progress)
    store = open_store(place, early.data, cache_dir=cache_dir, progress=progress) if shards is None else shards.first
    height, width = store.pictures.shape[1:3]
    count = len(store.train) * (1 if shards is None else len(shards))
    recipe = auto_preset((height, width), count) if name == "auto" else fixed
    resolved = {} if store.is_points else {"data": {"size": [height, width]}}
    config = from_tree(merge(merge(recipe, overrides), resolved))
    config = config if store.is_points else config.with_guidance()  # points are sampled for their distribution
    if config.network.kind == "unet" and min(height, width) < MIN_SIZE:
        raise ConfigError(f"pictures are {height}x{width}; both sides must be at least {MIN_SIZE} pixels, see --size")
    conditions = declare(store, config.conditions, config.data, cache_dir=cache_dir, progress=progress)
    if conditions is not None and conditions.spec.picture is not None and config.network.kind == "mlp":
        raise ConfigError("conditions.picture with network.kind 'mlp', which reads no paired picture; use 'unet'")
    return Plan(config, name, store, folder.path, conditions, shards=shards)


def _refuse_for_shards(config: Config) -> None:
    if config.conditions.picture == "paired":
        raise ConfigError("conditions.picture is 'paired', which streamed shards do not have; use another condition")
    if config.conditions.balanced:
        raise ConfigError("conditions.balanced needs to know all pictures, which streamed shards do not tell")


def _refuse_early(preset: str, tree: Mapping[str, Any], folder: RunFolder) -> Config:
    """Return the configuration as far as it is known; whatever is wrong in it is said before any picture is read."""
    if tree.get("distillation") is not None:
        raise ConfigError("the configuration is of a distillation; use 'ddpm distill' with its teacher")
    if isinstance(base := tree.get("fine_tuning"), Mapping):
        raise ConfigError(f"the configuration is of a fine-tuning; add --init {base.get('base', 'MODEL')}")
    known = {key: value for key, value in tree.items() if preset != "auto" or key != "network"}
    config = from_tree(known)  # the network of "auto" depends on the data, and so does whether its values fit
    choose_engine(config.training.device, config.training.precision)
    folder.check_usable()
    return config


def default_out(data: str | Path) -> Path:
    """Return ``runs/NAME`` with the name of the data."""
    stem = re.sub(r"(\.tar)?\.\w+$", "", Path(str(data)).absolute().name) if Path(str(data)).exists() else str(data)
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", stem.removeprefix("hf:")).strip("-.") or "data")


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return every leaf in which two configuration trees differ, as ``key: old -> new``."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += difference(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def may_change_on_resume(line: str) -> bool:
    """Whether a difference (of `difference`) leaves the steps already made valid: a longer run, or other intervals."""
    key = line.split(":", 1)[0]
    return key in {
        "training.steps",
        "training.log_every",
        "training.checkpoint_every",
        "training.preview_every",
        "training.evaluate_every",
        "training.previews",
        "training.score_every",
        "training.score_samples",
        "training.score_features",
        "training.milestones",
        "training.disk_limit_gib",
        "training.stop",
        "training.tensorboard",
        "training.micro_batch_size",
        "training.gradient_checkpointing",
        "training.sharding",
        "data.on_bad_file",
        "data.max_bad_share",
        "distillation.teacher",
        "fine_tuning.base",
    } or key.startswith("sampling.")


def config_tree(plan: Plan) -> dict[str, Any]:
    """Return the resolved configuration as plain JSON values."""
    return to_tree(plan.config)
