"""Exponential moving average of the weights, usable from the first step."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_decay(step: int, longest: float) -> float:
    """Return the decay of the update that follows optimizer step `step` (from 1): it warms up to `longest`.

    (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage: the average spans about the last tenth of the
    steps made, so that random initial weights never dominate it.
    """
    return min(longest, (1 + step) / (10 + step))


class Ema:
    """Averaged weights, in a network of their own.

    Attributes:
        network: a copy of the trained network whose weights are the average; its names are those of the original.
        decay: the decay after the warm-up.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the weights of `network` after optimizer step `step`, counted from 1."""
        weight = 1 - ema_decay(step, self.decay)
        # Not .data, which hides the change from what was computed from the weights and kept (`Conv3x3`).
        averaged = [parameter.detach() for parameter in self.network.parameters()]
        current = [parameter.detach() for parameter in network.parameters()]
        torch._foreach_lerp_(averaged, current, weight)
