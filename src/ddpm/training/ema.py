"""Moving averages of the weights, usable from the first step."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import nn

from ddpm.model.averaging import exponent


def ema_decay(step: int, longest: float) -> float:
    """Return the decay of the update that follows optimizer step `step` (from 1): it warms up to `longest`.

    (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage: the average spans about the last tenth of the
    steps made, so that random initial weights never dominate it.
    """
    return min(longest, (1 + step) / (10 + step))


def power_decay(step: int, width: float) -> float:
    """Return the decay after step `step` (from 1) of a power-function average (Karras et al. 2024b, Sec. 3.1).

    (1 - 1 / step)^(gamma + 1), which makes the weight of step tau in the average proportional to tau^gamma.

    Args:
        step: optimizer steps made.
        width: standard deviation of the steps in the average, as a share of those made.
    """
    return float((1 - 1 / step) ** (exponent(width) + 1))


class Average(ABC):
    """Averaged weights, in a network of their own.

    Attributes:
        network: a copy of the trained network whose weights are the average; its names are those of the original.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @abstractmethod
    def decay(self, step: int) -> float:
        """Return how much of the average stays after step `step`, counted from 1."""

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the weights of `network` after optimizer step `step`, counted from 1."""
        weight = 1 - self.decay(step)
        # Not .data, which hides the change from what was computed from the weights and kept (`Conv3x3`).
        averaged = [parameter.detach() for parameter in self.network.parameters()]
        current = [parameter.detach() for parameter in network.parameters()]
        torch._foreach_lerp_(averaged, current, weight)


class Ema(Average):
    """An exponential moving average, with a warm-up.

    Attributes:
        longest: the decay after it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.longest = decay

    def decay(self, step: int) -> float:
        """Return `ema_decay`."""
        return ema_decay(step, self.longest)


class PowerAverage(Average):
    """An average whose width grows with the training.

    Attributes:
        width: relative to the steps made.
    """

    def __init__(self, network: nn.Module, width: float) -> None:
        super().__init__(network)
        self.width = width

    def decay(self, step: int) -> float:
        """Return `power_decay`."""
        return power_decay(step, self.width)
