"""What every likelihood of a model needs: pictures it has not seen, as exact values of x_0, and full precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Pictures
from ddpm.conditions import Condition
from ddpm.conditions.of_data import DataConditions, conditions_for
from ddpm.data import Store
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.noise import NoiseSource, stream
from ddpm.errors import ConfigError, DataError
from ddpm.model import Model
from ddpm.words import counted


@dataclass(frozen=True, eq=False)
class Unseen:
    """Pictures to be scored.

    Attributes:
        model: the model that scores them.
        pictures: [N, H, W, C], all that may be chosen from.
        numbers: [n], which are scored; the number of a picture keys its noise.
        seed: of the noise.
        recipe: what to say of them, in plain JSON values.
        conditions: of the pictures by their numbers; None for an unconditional model, or pictures without conditions.
    """

    model: Model
    pictures: Pictures
    numbers: NDArray[np.int64]
    seed: int
    recipe: dict[str, Any]
    conditions: DataConditions | None = None

    def denoiser(self, numbers: NDArray[np.int64], *, clip: bool) -> Denoiser:
        """Return the model's denoiser of these pictures, of a conditional model with their own conditions."""
        condition: Condition | None = None
        if self.conditions is not None:
            x_0 = self.model.codec.encode(self.pictures[numbers])
            condition = self.conditions.of(numbers, x_0, seed=self.seed, pictures=numbers).to(self.model.device)
        return self.model.denoiser(clip=clip, condition=condition)

    @property
    def dimensions(self) -> int:
        """Values of a picture."""
        return math.prod(self.model.picture_shape)

    def batches(self, size: int) -> list[NDArray[np.int64]]:
        """Return the numbers of the pictures, at most `size` at a time."""
        return [self.numbers[start : start + size] for start in range(0, len(self.numbers), size)]

    def x_0(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return x_0 [B, C, H, W], float64; discrete data lie exactly on their levels, as float32 does not."""
        codec = self.model.codec
        values = codec.encode(self.pictures[numbers]).double()
        if codec.levels is not None:
            steps = codec.levels - 1
            values = ((values + 1) * (steps / 2)).round() * (2 / steps) - 1
        return values.to(self.model.device)

    def noise(self, numbers: NDArray[np.int64]) -> NoiseSource:
        """Return the noise of these pictures, float64 [B, C, H, W]: the same in any batch."""
        height, width, channels = self.model.picture_shape
        shape = (channels, height, width)
        return NoiseSource(self.seed, numbers.tolist(), shape, dtype=torch.float64, device=self.model.device)


def choose(model: Model, data: Store | Pictures, n: int | None, seed: int) -> Unseen:
    """Choose pictures to score: of a store its held-out ones.

    Args:
        model: the model that scores them.
        data: a store; or pictures [N, H, W, C] in the dtype of the model's data.
        n: at most so many, chosen by the seed; none: all.
        seed: 0 to 2^64 - 1.

    Raises:
        DataError: for pictures of another shape, dtype or range than the model's, or fewer than 2.
        ConfigError: for an n below 2 or a seed out of range.
    """
    if n is not None and n < 2:
        raise ConfigError(f"n is {n}; a standard error needs at least 2 pictures")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed}; expected 0 to 2^64 - 1")
    codec, conditions = model.codec, None
    if isinstance(data, Store):
        if (data.levels, data.value_range) != (codec.levels, codec.value_range):
            raise DataError(
                f"'{data.source}' has {data.levels} levels in {data.value_range}, the model's pictures have "
                f"{codec.levels} in {codec.value_range}; expected the same"
            )
        pictures, rows = data.pictures, data.held_out
        conditions = conditions_for(data, model.conditions, model.provenance)
    else:
        pictures, rows = data, np.arange(len(data), dtype=np.int64)
    if pictures.shape[1:] != model.picture_shape or pictures.dtype != codec.dtype:
        raise DataError(
            f"pictures are {pictures.dtype} {pictures.shape[1:]}, the model's are {codec.dtype} {model.picture_shape}; "
            "expected the same"
        )
    if len(rows) < 2:
        raise DataError(f"{counted(len(rows), 'picture')} to score; a standard error needs at least 2")
    numbers = rows if n is None else np.sort(stream(seed, "unseen pictures").permutation(rows)[:n])
    recipe = {
        "n": len(numbers),
        "of": len(rows),
        "seed": seed,
        "data": data.source if isinstance(data, Store) else None,
        "data_fingerprint": data.fingerprint if isinstance(data, Store) else None,
        "levels": codec.levels,
        "parameterization": model.parameterization,
        "num_timesteps": len(model.schedule),
        "clip": model.sampling.clip and codec.clip_range is not None,
        "step": model.provenance.get("step"),
        "weights": model.provenance.get("weights"),
    }
    return Unseen(model, pictures, numbers, seed, recipe, conditions)


@contextmanager
def full_precision(model: Model) -> Iterator[str]:
    """Keep autocast off, and give the dtype of the network: bfloat16 loses what a likelihood measures.

    Raises:
        ConfigError: for weights in half precision, or a device without float64.
    """
    dtypes = {parameter.dtype for parameter in model.network.parameters()}
    if not dtypes <= {torch.float32, torch.float64}:
        raise ConfigError(
            f"the network's weights are {', '.join(sorted(str(d) for d in dtypes))}; "
            "a likelihood needs torch.float32 or torch.float64"
        )
    device = model.device.type
    if device == "mps":
        raise ConfigError("a likelihood needs float64, which mps has not; use the model on the CPU")
    with torch.autocast(device, enabled=False):
        yield "float64" if dtypes == {torch.float64} else "float32"
