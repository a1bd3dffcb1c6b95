"""Importance-sampled times: t is drawn in proportion to the size of its losses (Nichol & Dhariwal 2021, Sec. 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOSSES_KEPT = 10
"""Losses remembered of each t; until every t has as many, times are uniform."""

UNIFORM_SHARE = 0.001
"""Share of the times that is drawn uniformly, so that no t is ever forgotten."""


@dataclass(eq=False)
class LossHistory:
    """The last losses of every t; it changes while training, so a checkpoint holds it.

    Attributes:
        losses: float64 [T, LOSSES_KEPT], a ring for each t.
        counts: int64 [T], how many losses of each t were ever seen.
    """

    losses: Tensor
    counts: Tensor

    @staticmethod
    def empty(num_timesteps: int) -> LossHistory:
        """Return the history of a run that has not begun."""
        losses = torch.zeros(num_timesteps, LOSSES_KEPT, dtype=torch.float64)
        return LossHistory(losses, torch.zeros(num_timesteps, dtype=torch.int64))

    @property
    def warm(self) -> bool:
        """Whether every t has been seen often enough."""
        return bool((self.counts >= LOSSES_KEPT).all())

    def probabilities(self) -> Tensor:
        """Return p_t, float64 [T]: in proportion to sqrt(E[L_t^2]), with a uniform share; uniform until warm."""
        uniform = torch.full((len(self.counts),), 1 / len(self.counts), dtype=torch.float64)
        sizes = self.losses.square().mean(1).sqrt()
        total = sizes.sum()
        if not self.warm or total == 0:
            return uniform
        return (1 - UNIFORM_SHARE) * sizes / total + UNIFORM_SHARE * uniform

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times of uniform numbers, by the inverse of the distribution function, and their weights.

        Args:
            u: float64 [B], in [0, 1).

        Returns:
            t, int64 [B]; and 1 / (T p_t), float32 [B], by which a loss is multiplied so that its expectation, and that
            of its gradient, stays the mean over uniform t.
        """
        num_timesteps = len(self.counts)
        if not self.warm:
            return uniform_times(u, num_timesteps), torch.ones(len(u))
        probabilities = self.probabilities()
        t = torch.searchsorted(probabilities.cumsum(0), u, right=True).clamp(max=num_timesteps - 1)
        return t, (1 / (num_timesteps * probabilities[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take in the losses of a step: t int64 [B], losses [B], in this order."""
        kept, counts = self.losses.numpy(), self.counts.numpy()  # the same memory; a tensor's items cost ten times more
        for time, loss in zip(t.tolist(), losses.tolist(), strict=True):
            kept[time, counts[time] % LOSSES_KEPT] = loss
            counts[time] += 1


def uniform_times(u: Tensor, num_timesteps: int) -> Tensor:
    """Return floor(u T), int64 [B], for u float64 [B] in [0, 1)."""
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)
