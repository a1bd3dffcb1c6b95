"""Training an IP-Adapter (Ye et al. 2023): what differs from other fine-tuning, and no more.

A picture is its own prompt: the frozen network, told its features, denoises it. No prompt is ever dropped: without
one, attention adds nothing, and the network is its base, which knows already what pictures without a prompt are. What
is dropped, for half of the pictures, are the other conditions: so the prompt learns to stand alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.codec import PixelCodec
from ddpm.conditions import Condition
from ddpm.conditions.of_data import DataConditions
from ddpm.config import from_tree, merge, to_tree
from ddpm.config.adapters import ImageAdapterConfig
from ddpm.config.conditions import ConditionSpec
from ddpm.config.section import Section
from ddpm.data import ProgressFactory
from ddpm.data.cache import cache_root
from ddpm.data.progress import silent
from ddpm.diffusion.noise import stream
from ddpm.errors import ConfigError
from ddpm.model import Model
from ddpm.model.adapter import STATISTICS, AdapterKind, prompt_input
from ddpm.model.prompts import BASE, PromptEncoder, PromptReader, kept_prompts, load_prompt_encoder
from ddpm.networks.image_adapter import add_image_adapter, image_adapter_tensors
from ddpm.training.fine_tune import FROM_BASE, FineTuningPlan, make_fine_tuning_plan
from ddpm.training.preview import Shown

_FASTER = 3.0
"""Times the base's learning rate: all that is trained is one layer deep and begins at zero, which bears more."""

_LEAST_STD = 1e-4  # of a feature: one that never changes says nothing, and must not be divided by


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedConditions(DataConditions):
    """The conditions of a base, each beside the picture itself as its prompt.

    Attributes:
        own: the conditions of the base; none: it has none.
        prompts: float32 [N, P', D'], features of all rows.
        reader: which standardises them.
        dropout: share of pictures whose own conditions are hidden.
    """

    own: DataConditions | None
    prompts: NDArray[np.float32]
    reader: PromptReader
    dropout: float

    def of(
        self,
        rows: NDArray[np.int64],
        x_0: Tensor,
        *,
        seed: int,
        pictures: Sequence[int] | NDArray[np.int64],
        mirrored: NDArray[np.bool_] | None = None,
    ) -> Condition:
        """Return the conditions of rows; see `DataConditions.of`."""
        features = torch.from_numpy(np.array(self.prompts[rows], dtype=np.float32))
        prompt = (features - self.reader.mean) / self.reader.std
        if self.own is None:
            return Condition(prompt=prompt)
        condition = self.own.of(rows, x_0, seed=seed, pictures=pictures, mirrored=mirrored)
        hidden = [stream(seed, "hidden beside a prompt", int(i)).random() < self.dropout for i in pictures]
        return replace(condition.drop(torch.tensor(hidden)), prompt=prompt)


@dataclass(frozen=True, eq=False)
class ImageAdapterPlan(FineTuningPlan):
    """What an image adapter is trained on, where, and on top of what."""

    @property
    def prompted(self) -> PromptedConditions:
        """The conditions, with their prompts."""
        assert isinstance(self.conditions, PromptedConditions)  # `make_image_adapter_plan` gives such
        return self.conditions

    @property
    def adapter_kind(self) -> AdapterKind:
        """What kind of adapter is trained."""
        return "image"

    def add_adapter(self, network: nn.Module) -> None:
        """Give the network an image adapter, and freeze the rest."""
        add_image_adapter(network, prompt_input(section_of(self)))

    def adapter_parts(self, network: nn.Module) -> tuple[Section, dict[str, Tensor]]:
        """Return the settings and the weights of the adapter in a network."""
        reader = self.prompted.reader
        statistics = dict(zip(STATISTICS, (reader.mean, reader.std), strict=True))
        return section_of(self), {**image_adapter_tensors(network), **statistics}

    def complete(self, model: Model) -> Model:
        """Return the model with what reads its prompts."""
        return replace(model, prompt_reader=self.prompted.reader)

    @property
    def condition_spec(self) -> ConditionSpec:
        """What the base is conditioned on, and how often it saw pictures without: guidance leads away from those."""
        return super().condition_spec.model_copy(update={"dropout": self.base.conditions.dropout})

    def shown(self) -> Shown:
        """Return held-out pictures as prompts, alone, beside what is made of them."""
        count = self.config.training.previews
        rows = np.resize(self.store.held_out, count)
        x_0 = self.codec.encode(self.store.pictures[rows])
        condition = self.prompted.of(rows, x_0, seed=self.config.seed, pictures=range(count))
        given = PixelCodec(256, (0.0, 255.0), "uint8").decode(x_0)
        return Shown(count, Condition(prompt=condition.prompt), given=given)

    def next_command(self) -> str:
        """Return the command that samples from what is trained."""
        return f"{super().next_command()} --prompt-image PICTURE.png"


def section_of(plan: FineTuningPlan) -> ImageAdapterConfig:
    """Return the section that every plan of an image adapter has."""
    assert plan.config.image_adapter is not None  # `make_image_adapter_plan` writes it
    return plan.config.image_adapter


def make_image_adapter_plan(
    model: str | Path,
    data: str | Path,
    overrides: Mapping[str, Any],
    *,
    encoder: str = BASE,
    tokens: int | None = None,
    out: str | Path | None = None,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> ImageAdapterPlan:
    """Open base, encoder and data, read every picture once, and decide everything about the run.

    Args:
        model: the base: a model file, or the run folder that holds one.
        data: a path, an embedded name, or a Hub data set.
        overrides: tree of configuration values over those of the base; ``image_adapter`` too.
        encoder: "base", the file of a classifier, or a folder or name of a CLIP vision encoder.
        tokens: that pixels look at, of an encoder that gives one vector; none: 4.
        out: the run folder; none: ``runs/NAME-from-BASE-prompted``.
        cache_dir: of decoded pictures and features.
        progress: shows decoding and reading.

    Raises:
        ModelFileError: if there is no base.
        ConfigError: for a value that is not valid, an encoder that cannot be had, or a base without attention.
        DataError: if the data cannot be used, or are not of the base's kind.
    """
    asked = dict(overrides)
    own = asked.pop("image_adapter", {})
    if asked.get("data", {}).get("flip"):
        raise ConfigError("data.flip is true, but features of prompts are computed once; leave it out")
    if asked.get("lora", {}).get("rank"):
        raise ConfigError("lora.rank beside an image adapter; train one adapter at a time, they add up when sampling")
    tree = merge(asked, {"data": {"flip": False}})
    plan = make_fine_tuning_plan(model, data, tree, out=out, adapter=True, cache_dir=cache_dir, progress=progress)
    reads = load_prompt_encoder(encoder, plan.base)
    section = {"width": 256, **own, **_facts(reads, tokens)}
    rate = asked.get("training", {}).get("learning_rate", _FASTER * plan.config.training.learning_rate)
    config = from_tree(merge({**to_tree(plan.config), "image_adapter": section}, {"training": {"learning_rate": rate}}))
    root = cache_root(cache_dir) / "prompts"
    store = plan.store
    prompts = kept_prompts(reads, store.pictures, store.fingerprint, plan.base_weights, root, progress or silent)
    assert config.image_adapter is not None
    prompted = _prompted(plan, reads, prompts, config.image_adapter.condition_dropout)
    folder = plan.out if out is not None else plan.out.with_name(f"{plan.out.name}-prompted")
    made = ImageAdapterPlan(config, FROM_BASE, store, folder, prompted, plan.base)
    made.first_network()  # refuses a base without attention
    return made


def _facts(reads: PromptEncoder, tokens: int | None) -> dict[str, Any]:
    if reads.given > 1 and tokens not in (None, reads.given):
        raise ConfigError(f"{tokens} tokens; the encoder '{reads.name}' gives {reads.given}, of {reads.given} places")
    return {
        "encoder": reads.name,
        "encoder_sha256": reads.sha256,
        "given": reads.given,
        "features": reads.features,
        "tokens": reads.given if reads.given > 1 else tokens or 4,
    }


def _prompted(
    plan: FineTuningPlan, reads: PromptEncoder, prompts: NDArray[np.float32], dropout: float
) -> PromptedConditions:
    seen = np.asarray(prompts[plan.store.train], dtype=np.float64)
    mean, std = seen.mean(axis=(0, 1)), np.maximum(seen.std(axis=(0, 1)), _LEAST_STD)
    reader = PromptReader(reads, *(torch.from_numpy(each.astype(np.float32)) for each in (mean, std)))
    own = plan.conditions
    spec = ConditionSpec() if own is None else own.spec.model_copy(update={"dropout": 0.0})
    return PromptedConditions(spec=spec, own=own, prompts=prompts, reader=reader, dropout=dropout)
