"""What is scored, and what it is scored against: pictures with numbers, which another process can open as well."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.conditions import Condition
from ddpm.config import DataConfig
from ddpm.data import Store, open_store
from ddpm.engine import autocast
from ddpm.errors import SamplingError
from ddpm.model import Model

Tick = Callable[[float], object]
"""Told how many pictures are done, also in fractions."""

Read = Callable[[range, Tick], Pictures]
"""(numbers, tick) -> pictures [len(numbers), H, W, C]."""

_VALUES_A_BATCH = 2**18  # sampled at once, as in `Model.sample`


class PictureSource(Protocol):
    """Numbered pictures. It can be sent to another process, if it was made from paths rather than from objects."""

    def key(self) -> dict[str, Any]:
        """Return what decides the pictures, as JSON values: equal keys, equal pictures."""
        ...

    def open(self, device: str) -> Read:
        """Return what reads pictures; models are put on `device`."""
        ...


@dataclass(frozen=True, eq=False)
class Sampled:
    """Samples of a model: picture i is a function of (seed, i), so shards do not depend on who makes them.

    Attributes:
        model: the model with its sampling advice; or its file, for another process.
        sampling: what replaces the file's advice, a tree of `SamplingConfig`.
        fingerprint: of the model, `model_fingerprint`.
        seed: of the noise.
        precision: "float32", "bfloat16" or "float16", of convolutions and matrix products.
        conditions: numbers of pictures -> their conditions, where the model cannot draw them itself.
    """

    model: Model | Path
    sampling: dict[str, Any]
    fingerprint: str
    seed: int
    precision: str
    conditions: Callable[[Sequence[int]], Condition] | None = None

    def key(self) -> dict[str, Any]:
        """Return model, sampling advice, seed and precision."""
        return {
            "model": self.fingerprint,
            "sampling": self.sampling,
            "seed": self.seed,
            "precision": self.precision,
        }

    def open(self, device: str) -> Read:
        """Load the model, and return its sampling."""
        model = self.model if isinstance(self.model, Model) else Model.load(self.model)
        model = model.with_sampling(**self.sampling).to(device)

        def read(numbers: range, tick: Tick) -> Pictures:
            size = max(1, _VALUES_A_BATCH // math.prod(model.picture_shape))
            batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            with autocast(device, self.precision):
                return np.concatenate([self._sample(model, batch, tick) for batch in batches])

        return read

    def _sample(self, model: Model, numbers: range, tick: Tick) -> Pictures:
        condition = None if self.conditions is None else self.conditions(numbers)
        x_0: torch.Tensor | None = None
        for step in model.sample_steps(numbers, seed=self.seed, condition=condition):
            x_0 = step.x
            tick(len(numbers) / model.sampling.steps)
        return _decoded(model, numbers, x_0)


def _decoded(model: Model, numbers: range, x_0: torch.Tensor | None) -> Pictures:
    assert x_0 is not None  # every sampler makes at least one step
    broken = ~x_0.isfinite().flatten(1).all(1)
    if bool(broken.any()):
        raise SamplingError(
            f"{int(broken.sum())} of pictures {numbers[0]} to {numbers[-1]} hold numbers that are not finite; "
            "the weights are damaged, or diverged while training: no score means anything"
        )
    return model.codec.decode(x_0)


def model_fingerprint(model: Model) -> str:
    """Return the SHA-256 of all that decides what a model computes: weights, schedule, and what they stand for."""
    digest = hashlib.sha256()
    about = [
        json.loads(model.network_config.model_dump_json()),
        model.parameterization,
        [model.codec.levels, list(model.codec.value_range), model.codec.dtype],
        list(model.picture_shape),
        *([json.loads(model.conditions.model_dump_json())] if model.conditions.any else []),
    ]
    digest.update(json.dumps(about, sort_keys=True).encode())
    tensors = {**model.network.state_dict(), "schedule.betas": model.schedule.betas}
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that pictures are expressed in.

    Attributes:
        levels: number of values of a channel; None for floating point.
        value_range: black and white.
        dtype: of the array.
    """

    levels: int | None
    value_range: tuple[float, float]
    dtype: str

    def express(self, pictures: Pictures, other: Scale) -> Pictures:
        """Return pictures of this scale in `other`; exact for pictures of `other` that were saved in more levels."""
        if self == other:
            return pictures
        (low, high), (other_low, other_high) = self.value_range, other.value_range
        values = (pictures.astype(np.float64) - low) * ((other_high - other_low) / (high - low)) + other_low
        if other.levels is not None:
            values = np.rint(np.clip(values, other_low, other_high))
        return np.asarray(values, dtype=other.dtype)


def scale_of(store: Store) -> Scale:
    """Return the scale of a store's pictures."""
    return Scale(store.levels, store.value_range, str(store.pictures.dtype))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store can be opened again, by another process."""

    source: str
    config: DataConfig


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of a store, in the scale of the data that they are compared with.

    Attributes:
        store: the store; or where it is, for another process.
        fingerprint: of the store.
        rows: int64 [N].
        scale: what the pictures are expressed in.
    """

    store: Store | Place
    fingerprint: str
    rows: NDArray[np.int64]
    scale: Scale

    def key(self) -> dict[str, Any]:
        """Return the data, the rows and the scale."""
        return {
            "data": self.fingerprint,
            "rows": hashlib.sha256(np.ascontiguousarray(self.rows, dtype="<i8").tobytes()).hexdigest(),
            "scale": [self.scale.levels, list(self.scale.value_range), self.scale.dtype],
        }

    def open(self, device: str) -> Read:
        """Open the store, and return what reads its rows; the device is not used."""
        store = self.store if isinstance(self.store, Store) else open_store(self.store.source, self.store.config)
        own = scale_of(store)

        def read(numbers: range, tick: Tick) -> Pictures:
            pictures = own.express(store.pictures[self.rows[numbers.start : numbers.stop]], self.scale)
            tick(len(numbers))
            return pictures

        return read
