"""Gradient checkpointing: the same bits, for less that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ddpm import native
from ddpm.networks import UNet
from ddpm.networks.kernels import use_kernels
from ddpm.networks.levels import Level, recompute_activations
from networks.test_unet import inputs, small

KEYS = torch.arange(2)


def gradients(network: UNet, precision: torch.dtype | None) -> list[Tensor]:
    x_t, t = inputs()
    network.zero_grad()
    x_t = x_t.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is not None):
        output = network(x_t, t, dropout_keys=KEYS)
    output.square().sum().backward()
    assert x_t.grad is not None
    return [x_t.grad, output.detach(), *(weight.grad for weight in network.parameters() if weight.grad is not None)]


@contextmanager
def counting_kept() -> Iterator[list[int]]:
    """Bytes of the tensors that the graph keeps, every memory once; those inside checkpointed blocks do not count."""
    kept: list[int] = []
    seen: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"time_conditioning": "scale_shift", "resampling": "residual"}])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_the_same_bits(precision: torch.dtype | None, options: dict[str, str], compiled: bool) -> None:
    if compiled and not native.available():
        pytest.skip("no compiler")
    network = small(dropout=0.3, **options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_kernels(network, compiled)
    plain = gradients(network, precision)
    recompute_activations(network, True)
    for kept, recomputed in zip(plain, gradients(network, precision), strict=True):
        assert torch.equal(kept, recomputed)


def test_only_the_inputs_of_blocks_are_kept() -> None:
    network = small(dropout=0.3, channel_multipliers=(1, 1), blocks_per_level=3)
    x_t, t = inputs(height=32, width=32)
    totals = []
    for wanted in (False, True):
        recompute_activations(network, wanted)
        with counting_kept() as kept:
            network(x_t, t, dropout_keys=KEYS)
        totals.append(sum(kept))
    assert totals[1] < totals[0] / 3


def test_without_gradients_nothing_is_made_twice() -> None:
    network = small()
    recompute_activations(network, True)
    level = network.down[0]
    assert isinstance(level, Level)
    calls: list[object] = []
    level.blocks[0].register_forward_pre_hook(lambda *about: calls.append(about))
    with torch.no_grad():
        network(*inputs())
    assert len(calls) == 1
    network(*inputs()).sum().backward()
    assert len(calls) == 3
