from __future__ import annotations

import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.networks import Mlp

SHAPE = (2, 1, 3)


def random_mlp(**options: int) -> Mlp:
    """Return a network without the zeros that a new one has."""
    network = Mlp(shape=SHAPE, **({"width": 16, "depth": 2} | options))
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return network


def test_a_new_network_returns_zeros_and_learns_from_them() -> None:
    network = Mlp(shape=SHAPE, width=16, depth=2)
    x_t = torch.randn(4, *SHAPE)
    output = network(x_t, torch.arange(4))
    assert output.shape == x_t.shape
    assert not bool(output.any())
    (output - x_t).square().mean().backward()
    assert network.leave.weight.grad is not None
    assert bool(network.leave.weight.grad.any())


def test_gradients_reach_every_weight_and_the_input() -> None:
    network = random_mlp()
    x_t = torch.randn(4, *SHAPE, requires_grad=True)
    network(x_t, torch.tensor([0.0, 1.5, 10.0, 999.0])).square().sum().backward()
    for name, weight in [*network.named_parameters(), ("x_t", x_t)]:
        assert weight.grad is not None, name
        assert bool((weight.grad != 0).any()), name


def test_a_row_depends_on_its_own_point_and_time_only() -> None:
    network = random_mlp().double()
    x_t, t = torch.randn(5, *SHAPE, dtype=torch.float64), torch.arange(5) * 100
    together = network(x_t, t)
    alone = torch.cat([network(x_t[i : i + 1], t[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network(x_t, t + 1), together)


def test_width_and_depth_are_what_was_asked_for() -> None:
    network = random_mlp(width=24, depth=3)
    assert len(network.blocks) == 3
    assert tuple(network.enter.weight.shape) == (24, 6 * 17)  # each of 6 values, its 8 sines and 8 cosines


@pytest.mark.parametrize("shape", [(1, 2, 3, 1), (1, 3, 1, 2), (1, 6), (1, 2, 1, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"this network takes \[B, 2, 1, 3\]"):
        random_mlp()(torch.zeros(shape), torch.zeros(1))
