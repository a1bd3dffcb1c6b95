"""Fine-tuning: a run whose network begins with the weights of a trained one.

What differs from other runs is here: what is taken from the base, what may differ from it, and what suits a start that
is already good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.conditions.of_data import DataConditions, conditions_of, declare
from ddpm.config import MIN_SIZE, Config, from_tree, merge, to_tree
from ddpm.config.adapters import FineTuningConfig
from ddpm.config.section import Section
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.diffusion.noise import stream
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.engine import choose_engine
from ddpm.errors import ConfigError, DataError, ModelFileError
from ddpm.files import sha256_of
from ddpm.model import Model
from ddpm.model.adapter import Adapter, AdapterKind, weights_sha256
from ddpm.model_file import ADAPTER_NAME, MODEL_NAME, locate
from ddpm.networks.carry import carry_weights
from ddpm.networks.lora import add_low_rank, low_rank_tensors
from ddpm.training.checkpoint import read_notes
from ddpm.training.plan import Plan, default_out, difference
from ddpm.training.run_folder import RunFolder
from ddpm.words import counted

FROM_BASE = "base"
"""What stands in the place of a preset's name."""

_OF_THE_DATA = ("label_column", "picture_column", "text_column", "held_out")  # of a base's own data, not of others
_FREE = {
    "network.dropout",
    "conditions.dropout",
    "conditions.balanced",
    "conditions.inputs",
}  # of what otherwise comes from the base: it changes no weight
_UNGUIDABLE = {"dropout": 0, "label": False, "text": None}  # conditions that leave nothing to guide from, or to
_COLOURS = {1: "gray", 3: "rgb", 4: "rgba"}


@dataclass(frozen=True, eq=False)
class FineTuningPlan(Plan):
    """What will be trained on what, where, and from which model on.

    Attributes:
        base: the model to begin with; where a run goes on and its base is gone, the run's own, which is as good: its
            checkpoint holds the weights.
    """

    base: Model

    def first_network(self) -> nn.Module:
        """Return a network with the base's weights."""
        network = super().first_network()
        carry_weights(self.base.network, network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream(self.config.seed, "adapter").integers(2**63)))
            self.add_adapter(network)
        return network

    @property
    def adapter_kind(self) -> AdapterKind | None:
        """What kind of adapter is trained; none: the whole network is."""
        return "lora" if self.config.lora.rank else None

    def add_adapter(self, network: nn.Module) -> None:
        """Give the network the adapter, if one is to be trained, and freeze the rest."""
        lora = self.config.lora
        if lora.rank:
            add_low_rank(network, rank=lora.rank, alpha=lora.alpha or lora.rank, layers=lora.layers)

    def adapter_parts(self, network: nn.Module) -> tuple[Section, dict[str, Tensor]]:
        """Return the settings and the weights of the adapter in a network."""
        return self.config.lora, low_rank_tensors(network)

    @property
    def result(self) -> str:
        """Name of the file of what is trained."""
        return MODEL_NAME if self.adapter_kind is None else ADAPTER_NAME

    def write(self, model: Model, path: Path) -> None:
        """Write the model, or the adapter alone."""
        if self.adapter_kind is None:
            model.save(path)
            return
        settings, tensors = self.adapter_parts(model.network)
        Adapter(
            kind=self.adapter_kind,
            base_sha256=self.base_weights,
            settings=json.loads(settings.model_dump_json()),
            tensors=tensors,
            provenance={**model.provenance, "base": section_of(self.config).base},
        ).save(path)

    @cached_property
    def base_weights(self) -> str:
        """SHA-256 of the base's weights."""
        return weights_sha256(self.base.network)

    def next_command(self) -> str:
        """Return the command that samples from what is trained."""
        if self.adapter_kind is None:
            return super().next_command()
        return f"ddpm sample {section_of(self.config).base} --adapter {self.out}"

    def schedule(self) -> NoiseSchedule:
        """Return the base's schedule."""
        return self.base.schedule

    def lineage(self) -> dict[str, Any]:
        """Return from which file the weights came, and what that model had seen."""
        known = self.base.provenance.get("initialized_from") or self.base.provenance
        seen = {key: known[key] for key in ("step", "pictures_seen", "weights", "data") if key in known}
        return {"initialized_from": {**section_of(self.config).model_dump(), **seen}}


def section_of(config: Config) -> FineTuningConfig:
    """Return the section that every fine-tuning has."""
    assert config.fine_tuning is not None  # `make_fine_tuning_plan` writes it
    return config.fine_tuning


def make_fine_tuning_plan(
    init: str | Path,
    data: str | Path,
    overrides: Mapping[str, Any],
    *,
    preset: str | None = None,
    out: str | Path | None = None,
    adapter: bool = False,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> FineTuningPlan:
    """Open base and data, and decide everything about the run; nothing is written but the data cache.

    Network, schedule, parameterization and variance are the base's; so are its conditions, where it has some. New ones
    begin with no effect. Unless overridden, pictures are read as the base's
    were, and at its size; the learning rate is a quarter of the base's and falls to zero.

    Args:
        init: the base: a model file, or the run folder that holds one.
        data: a path, an embedded name, or a Hub data set.
        overrides: tree of configuration values over those of the base.
        preset: none; a preset is a recipe for a network that begins anew, and is refused.
        out: the run folder; none: ``runs/NAME-from-BASE``.
        adapter: whether an adapter will be trained; one of low-rank updates is, where the configuration says so.
        cache_dir: of decoded pictures.
        progress: shows the decoding.

    Raises:
        ModelFileError: if there is no base.
        ConfigError: for a value that is not valid, or differs from what the base decides.
        DataError: if the data cannot be used, or are not of the base's kind.
    """
    if preset not in (None, FROM_BASE):
        raise ConfigError(f"preset '{preset}' with --init: the recipe comes from the base; leave the preset out")
    folder = RunFolder(Path(out) if out is not None else _default_out(data, Path(init)))
    asked = {key: value for key, value in overrides.items() if key != "fine_tuning"}
    resumed = None if adapter else _without_base(Path(init), folder)
    if resumed is not None:
        config, base = from_tree(merge(resumed, asked)), Model.load(folder.model)
        store = open_store(data, config.data, cache_dir=cache_dir, progress=progress)
        conditions = _conditions(store, base, config, cache_dir)
        return FineTuningPlan(config, FROM_BASE, store, folder.path, conditions, base)
    file = locate(Path(init))
    base = Model.load(file)
    tree = {**base_tree(file, base), "fine_tuning": {"base": str(file), "base_sha256": sha256_of(file)}}
    told = asked.get("conditions", {})
    if any(key in told and told[key] == value for key, value in _UNGUIDABLE.items()):
        tree["sampling"] = base.sampling.unguided().as_tree()  # what follows from the base's advice is no mistake
    config = from_tree(merge(tree, asked))
    _refuse_conflicts(tree, config, file, base)
    choose_engine(config.training.device, config.training.precision)
    folder.check_usable()
    store = open_store(data, config.data, cache_dir=cache_dir, progress=progress)
    _check_data(store, base, file)
    height, width = store.pictures.shape[1:3]
    resolved = {} if store.is_points else {"data": {"size": [height, width]}}
    adapter = adapter or bool(config.lora.rank)
    if adapter and (height, width) != base.picture_shape[:2]:
        raise ConfigError(f"size {height}x{width}; an adapter is for pictures of its base's size, leave --size out")
    if adapter and config.conditions.any and not base.conditions.any:
        raise ConfigError("conditions that the base does not have; an adapter has no place for them, leave them out")
    chosen = {"training": gentle_training(base, len(store.train), asked.get("training", {}), adapter=adapter)}
    config = from_tree(merge(merge(merge(tree, chosen), asked), resolved))
    config = config if adapter or store.is_points else config.with_guidance()
    conditions = _conditions(store, base, config, cache_dir)
    return FineTuningPlan(config, FROM_BASE, store, folder.path, conditions, base)


def _conditions(store: Store, base: Model, config: Config, cache_dir: Path | None) -> DataConditions | None:
    """Return the base's conditions, as these data have them; of a base without any, what is asked for."""
    if base.conditions.any:
        return conditions_of(store, base.conditions, config.conditions, config.data, cache_dir=cache_dir)
    return declare(store, config.conditions, config.data, cache_dir=cache_dir)


def base_tree(file: Path, base: Model) -> dict[str, Any]:
    """Return the configuration of a run that begins with a model: the model's own, as far as it applies.

    Raises:
        ConfigError: if the model is distilled.
    """
    if base.is_distilled:
        raise ConfigError(
            f"'{file}' is distilled, to {counted(base.sampling.steps, 'step')}, and is right at no other times; "
            "fine-tune the "
            "model that it comes from, and distill the result"
        )
    known = base.provenance.get("config")
    tree = dict(known) if isinstance(known, dict) else {"schedule": {"num_timesteps": len(base.schedule)}}
    height, width, _ = base.picture_shape
    data = {key: value for key, value in tree.get("data", {}).items() if key not in _OF_THE_DATA}
    size = {} if (height, width) == (1, 1) else {"size": [height, width]}
    loss = {"loss": "hybrid"} if base.variance == "learned" and not isinstance(known, dict) else {}
    return {
        **{key: value for key, value in tree.items() if key not in ("fine_tuning", "lora", "image_adapter")},
        "data": {**data, **size},
        "network": base.network_config.model_dump(mode="json"),
        "objective": {
            **tree.get("objective", {}),
            **loss,
            "parameterization": base.parameterization,
            "variance": base.variance,
        },
        "sampling": base.sampling.as_tree(),
    }


def gentle_training(base: Model, count: int, asked: Mapping[str, Any], *, adapter: bool) -> dict[str, Any]:
    """Return optimisation for a start that is already good: short, small steps, an average that follows.

    Args:
        base: whose learning rate and batch size are known.
        count: of pictures to train on.
        asked: what the user wants of it.
        adapter: whether an adapter is trained: it begins at zero, and bears the base's own learning rate.
    """
    known = base.provenance.get("config", {}).get("training", {})
    steps = asked.get("steps") or max(500, min(20_000, 10 * count))
    every = max(1, min(250, steps // 10))
    return {
        "steps": steps,
        "batch_size": known.get("batch_size", 64),
        "learning_rate": known.get("learning_rate", 4e-4) / (1 if adapter else 4),
        "warmup_steps": min(100, steps // 10),
        "decay": "cosine",
        "ema_decay": 0.999,
        "checkpoint_every": every,
        "preview_every": every,
        "evaluate_every": every,
        "log_every": max(1, min(50, steps // 20)),
    }


def _without_base(init: Path, folder: RunFolder) -> dict[str, Any] | None:
    """Return the configuration of the run that goes on, if its base is gone and it needs none; else none.

    An adapter needs its base: the checkpoint holds the adapter alone.
    """
    try:
        locate(init)
    except ModelFileError:
        if not folder.checkpoint.exists():
            raise
        config: dict[str, Any] = read_notes(folder.checkpoint)["config"]
        if config.get("fine_tuning") is None or config.get("lora", {}).get("rank") or config.get("image_adapter"):
            raise
        return config
    return None


def _refuse_conflicts(tree: Mapping[str, Any], config: Config, file: Path, base: Model) -> None:
    for line in difference(to_tree(from_tree(tree)), to_tree(config)):
        key = line.split(":", 1)[0]
        parts = ("schedule.", "network.", "conditions.") if base.conditions.any else ("schedule.", "network.")
        fixed = key.startswith(parts) or key in ("objective.parameterization", "objective.variance")
        if fixed and key not in _FREE:
            raise ConfigError(
                f"{line}: it comes from the base, '{file}', whose weights fit nothing else; leave it out, or train "
                "anew, without --init"
            )


def _check_data(store: Store, base: Model, file: Path) -> None:
    (height, width, channels), codec = store.pictures.shape[1:], base.codec
    own = base.picture_shape
    if channels != own[2]:
        kind, wanted = (_COLOURS.get(n, f"of {n} channels") for n in (channels, own[2]))
        advice = f"; read them so with --set data.channels={wanted}" if {channels, own[2]} <= _COLOURS.keys() else ""
        raise DataError(f"the pictures of '{store.source}' are {kind}, those of the base '{file}' are {wanted}{advice}")
    waves = base.network_config.fourier_levels  # other numbers of levels lie in [-1, 1] just as well
    if (store.levels is None) != (codec.levels is None) or (waves is not None and waves != store.levels):
        raise DataError(
            f"'{store.source}' has {store.levels or 'continuous'} levels, the base '{file}' "
            f"{waves or codec.levels or 'continuous'}, and its network knows no others"
        )
    if base.network_config.kind == "mlp" and (height, width) != own[:2]:
        raise DataError(f"pictures are {height}x{width}, and the base's mlp takes {own[0]}x{own[1]} alone")
    if base.network_config.kind == "unet" and min(height, width) < MIN_SIZE:
        raise DataError(f"pictures are {height}x{width}; both sides must be at least {MIN_SIZE} pixels, see --size")


def _default_out(data: str | Path, init: Path) -> Path:
    own = init.parent if init.name == MODEL_NAME else init.with_suffix("")
    folder = default_out(data)
    return folder.with_name(f"{folder.name}-from-{own.absolute().name or 'base'}")
