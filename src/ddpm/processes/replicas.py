"""One network in each process, which together make the gradient of one (data parallelism)."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddpm.processes.group import Group
from ddpm.processes.sharding import is_sharded, whole

T = TypeVar("T")

_BUCKET_MIB = 25
"""Gradients travel in pieces of this size, each as soon as it is there, while the backward pass goes on."""

_CAUTIOUS_STEPS = 2
"""Steps in which gradients travel after the backward pass, not during it: if memory runs out in one process, it does in
these, and all can agree to halve their micro-batches. Later steps of the same size need no more memory."""


class Replicas:
    """The networks of all processes, as seen from one of them.

    Attributes:
        network: what is called in the forward pass; its weights are those of the network that was given.
        group: the processes.
        sharded: whether each of them holds a piece of the weights, and gradients are made piece by piece.
    """

    def __init__(self, network: nn.Module, group: Group) -> None:
        self.group = group
        self.sharded = is_sharded(network)
        self.network = network if group.is_alone or self.sharded else _distributed(network)
        self._cautious_left = 0
        self.be_cautious()
        self._own = network

    @property
    def overlaps(self) -> bool:
        """Whether gradients travel while the backward pass goes on; memory must not run out then."""
        return not self.group.is_alone and self._cautious_left == 0

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of the passes of a micro-batch: gradients add up here till the last one's."""
        if isinstance(self.network, DistributedDataParallel) and not (last and self.overlaps):
            return self.network.no_sync()
        return nullcontext()

    @property
    def scale(self) -> float:
        """Return by what a loss is multiplied, because gradients are averaged over the processes where they overlap."""
        return float(self.group.size) if self.overlaps else 1.0

    def all_have(self, result: T | None) -> TypeGuard[T]:
        """Whether no process lacks its result; a process that lacked it where gradients overlap would not be here."""
        short = result is None
        return not (short if self.overlaps else self.group.any(short))

    def finish_step(self) -> None:
        """Make every process's gradient the sum of all, where it is not so yet."""
        if self.group.is_alone or self.overlaps:
            return
        for weight in self._own.parameters():
            if weight.requires_grad:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                dist.all_reduce(weight.grad)
        self._cautious_left -= 1

    def clip(self, most: float) -> float:
        """Scale the gradient so that its norm is at most this, and return the norm that it had."""
        return float(whole(nn.utils.clip_grad_norm_(self._own.parameters(), most)))

    def be_cautious(self) -> None:
        """Let the next steps be such that processes can agree on smaller micro-batches."""
        self._cautious_left = 0 if self.group.is_alone or self.sharded else _CAUTIOUS_STEPS


def _distributed(network: nn.Module) -> nn.Module:
    device = next(network.parameters()).device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # its successor is too new to ask for
        return DistributedDataParallel(
            network,
            device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
            broadcast_buffers=False,  # there are none that change
            bucket_cap_mb=_BUCKET_MIB,
            gradient_as_bucket_view=True,  # the gradient lies where it travels: a copy less, and its memory
        )
