"""The loss on fixed pictures with fixed noise and times: two values differ by the weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm.codec import Codec
from ddpm.conditions.of_data import DataConditions
from ddpm.data import Store
from ddpm.diffusion.noise import NoiseSource, stream
from ddpm.diffusion.objectives import Losses, concatenated
from ddpm.training.batches import Batch
from ddpm.training.loop import Objective
from ddpm.training.metrics import NOISE_RANGES, noise_range
from ddpm.training.status import Evaluation

_MOST = 256  # pictures of each split; times are spread evenly over them, so few give little variance
_AT_ONCE = 64
_VALUES_AT_ONCE = 2**18  # large pictures come fewer at a time, so that a small memory holds them


@dataclass(frozen=True, eq=False)
class HeldOut:
    """As many held-out as training pictures, each with its own fixed t and eps.

    Attributes:
        held_out: in parts of at most 64.
        train: the same times and noise, on training pictures.
    """

    held_out: tuple[Batch, ...]
    train: tuple[Batch, ...]

    @staticmethod
    def of(
        store: Store, codec: Codec, num_timesteps: int, seed: int, conditions: DataConditions | None = None
    ) -> HeldOut:
        """Choose the pictures by the seed; a small held-out split is repeated with other times and noise.

        Every picture comes with its condition, where there are conditions; none is dropped.
        """

        def batches(rows: NDArray[np.int64], purpose: str) -> tuple[Batch, ...]:
            order = stream(seed, purpose).permutation(len(rows))
            chosen = np.sort(rows[np.resize(order, _MOST)])
            t = torch.from_numpy(((np.arange(_MOST) + 0.5) * num_timesteps / _MOST).astype(np.int64))
            t = t[torch.from_numpy(stream(seed, "evaluation t").permutation(_MOST))]
            x_0 = codec.encode(store.pictures[chosen])
            eps = NoiseSource(seed, range(_MOST), x_0.shape[1:]).normal(0, "evaluation eps")
            size = max(1, min(_AT_ONCE, _VALUES_AT_ONCE // math.prod(x_0.shape[1:])))
            whole = Batch(
                rows=chosen,
                x_0=x_0,
                t=t,
                eps=eps,
                dropout_keys=torch.zeros(_MOST, dtype=torch.int64),
                u=(t.double() + 0.5) / num_timesteps,
                conditioned=torch.ones(_MOST, dtype=torch.bool),  # as in sampling, where all steps but one have it
                weights=torch.ones(_MOST),
                condition=None if conditions is None else conditions.of(chosen, x_0, seed=seed, pictures=range(_MOST)),
            )
            return tuple(whole.part(start, size) for start in range(0, _MOST, size))

        return HeldOut(batches(store.held_out, "evaluation held out"), batches(store.train, "evaluation train"))

    @torch.no_grad()
    def evaluate(self, network: nn.Module, objective: Objective, step: int) -> Evaluation:
        """Return the losses of a network, without dropout."""
        held_out = self._losses(network, objective, self.held_out)
        ranges = noise_range(torch.cat([batch.t for batch in self.held_out]).numpy(), len(objective.schedule))
        total = held_out.total
        by_noise = tuple(float(total[torch.from_numpy(ranges == k)].mean()) for k in range(NOISE_RANGES))
        parts = {name: float(part.mean()) for name, part in held_out.parts().items()}
        train = self._losses(network, objective, self.train).total
        return Evaluation(step, float(total.mean()), float(train.mean()), by_noise, parts)

    @staticmethod
    def _losses(network: nn.Module, objective: Objective, batches: tuple[Batch, ...]) -> Losses:
        each = [objective.losses(network, batch, dropout=False) for batch in batches]
        return concatenated([losses.map(lambda part: part.float().cpu()) for losses in each])
