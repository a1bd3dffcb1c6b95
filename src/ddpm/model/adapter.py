"""Adapter: what is added to a base model, in one small self-describing file that fits that base alone."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ddpm.config import explain
from ddpm.config.adapters import ImageAdapterConfig, LoraConfig
from ddpm.errors import ConfigError, ModelFileError, SamplingError
from ddpm.files import sha256_of
from ddpm.model.prompts import PromptReader, load_prompt_encoder
from ddpm.model_file import ADAPTER_FORMAT, ADAPTER_NAME, read_model_file, write_model_file
from ddpm.networks.image_adapter import load_image_adapter
from ddpm.networks.lora import merge_low_rank
from ddpm.networks.prompt import PromptInput

if TYPE_CHECKING:
    from ddpm.model import Model

AdapterKind = Literal["lora", "image"]
STATISTICS = ("prompt.mean", "prompt.std")
"""Names of the tensors by which an image adapter's features are standardised."""

_LARGEST_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter that a model carries.

    Attributes:
        file: that it was read from.
        sha256: of that file.
        kind: of the adapter.
        scale: by which it acts.
    """

    file: str
    sha256: str
    kind: AdapterKind
    scale: float

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"file": self.file, "sha256": self.sha256, "kind": self.kind, "scale": self.scale}


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter file holds.

    Attributes:
        kind: "lora", or "image" for an IP-Adapter.
        base_sha256: of the weights of its base, from `weights_sha256`.
        settings: of its kind, as plain JSON values.
        tensors: its weights, by name.
        provenance: plain JSON values: its base's file, what it was trained on and how.
    """

    kind: AdapterKind
    base_sha256: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def lora(self) -> LoraConfig:
        """The settings of low-rank updates."""
        return LoraConfig.model_validate_json(json.dumps(self.settings))

    @property
    def image(self) -> ImageAdapterConfig:
        """The settings of an image adapter."""
        return ImageAdapterConfig.model_validate_json(json.dumps(self.settings))

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        description = {
            "kind": self.kind,
            "base_sha256": self.base_sha256,
            "settings": self.settings,
            "provenance": self.provenance,
        }
        write_model_file(path, description, self.tensors, ADAPTER_FORMAT)

    @staticmethod
    def load(path: Path) -> Adapter:
        """Read an adapter from its file, or from the folder of the run that trained it.

        Raises:
            ModelFileError: if there is none, or it is no whole adapter.
        """
        file = locate_adapter(path)
        description, tensors = read_model_file(file, ADAPTER_FORMAT)
        try:
            adapter = Adapter(
                kind=_checked_kind(description["kind"]),
                base_sha256=str(description["base_sha256"]),
                settings=dict(description["settings"]),
                tensors=tensors,
                provenance=dict(description["provenance"]),
            )
            rank = adapter.image.tokens if adapter.kind == "image" else adapter.lora.rank
            if rank < 1:
                raise ValueError("updates of rank 0")
        except (LookupError, TypeError, ValueError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            raise ModelFileError(f"'{file}' describes no valid adapter ({reason}); take another copy") from error
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
                raise ModelFileError(f"'{file}' is damaged: '{name}' holds other than finite numbers of float32")
        return adapter


def _checked_kind(kind: Any) -> AdapterKind:
    known = get_args(AdapterKind)
    if kind not in known:
        raise ValueError(f"its kind is {kind!r}; known are {', '.join(known)}")
    return cast(AdapterKind, kind)


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights by name, hexadecimal: what an adapter knows its base by.

    Unlike that of the file, it stays the same when sampling advice or provenance change.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def locate_adapter(path: Path) -> Path:
    """Return the adapter file that a path stands for: itself, or the adapter in a run folder.

    Raises:
        ModelFileError: if there is none.
    """
    if os.path.isdir(path):
        inside = path / ADAPTER_NAME
        if inside.is_file():
            return inside
        raise ModelFileError(f"no adapter in '{path}'; expected a run folder with '{ADAPTER_NAME}' in it")
    if not os.path.isfile(path):
        raise ModelFileError(f"no adapter at '{path}'; 'ddpm train DATA --init MODEL --lora 8' trains one")
    return path


def parse_adapter(text: str) -> tuple[Path, float]:
    """Return path and scale of "FILE" or "FILE:SCALE"; without one, the scale is 1."""
    path, sign, scale = text.rpartition(":")
    if sign and not os.path.exists(text):
        try:
            return Path(path), float(scale)
        except ValueError:
            pass
    return Path(text), 1.0


def with_adapter(model: Model, path: Path, scale: float) -> Model:
    """Return a copy of a model with an adapter added; see `Model.with_adapter`."""
    if not (math.isfinite(scale) and abs(scale) <= _LARGEST_SCALE):
        raise SamplingError(f"adapter '{path}' at scale {scale:g}; expected a finite number, such as 1")
    file = locate_adapter(path)
    adapter = Adapter.load(file)
    bare = model.bare or model
    base = weights_sha256(bare.network)
    if base != adapter.base_sha256:
        told = adapter.provenance.get("base", "?")
        raise ModelFileError(
            f"the adapter '{file}' was trained on '{told}', whose weights have the SHA-256 "
            f"{adapter.base_sha256[:12]}...; those of this model have {base[:12]}...; load it on top of its own base"
        )
    network, reader = copy.deepcopy(model.network), model.prompt_reader
    try:
        if adapter.kind == "image":
            reader = _add_image_adapter(network, adapter, bare, scale)
        else:
            settings = adapter.lora
            merge_low_rank(network, adapter.tensors, scale * (settings.alpha or settings.rank) / settings.rank)
    except ConfigError as error:
        raise ModelFileError(f"the adapter '{file}' cannot be added: {error}") from error
    applied = AppliedAdapter(str(file), sha256_of(file), adapter.kind, scale)
    return replace(model, network=network, adapters=(*model.adapters, applied), bare=bare, prompt_reader=reader)


def _add_image_adapter(network: nn.Module, adapter: Adapter, bare: Model, scale: float) -> PromptReader:
    section = adapter.image
    weights = dict(adapter.tensors)
    mean, std = (weights.pop(name, None) for name in STATISTICS)
    if mean is None or std is None or mean.shape != (section.features,) or std.shape != mean.shape or std.min() <= 0:
        raise ConfigError("it lacks the statistics of its features")
    load_image_adapter(network, prompt_input(section), weights, scale)
    encoder = load_prompt_encoder(section.encoder, bare, sha256=section.encoder_sha256)
    if (encoder.given, encoder.features) != (section.given, section.features):
        raise ConfigError(f"its encoder '{encoder.name}' gives features of another shape than in training")
    return PromptReader(encoder, mean, std)


def prompt_input(section: ImageAdapterConfig) -> PromptInput:
    """Return what a network with this image adapter reads."""
    return PromptInput(section.given, section.features, section.tokens, section.width)
