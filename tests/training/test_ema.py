from __future__ import annotations

import pytest
import torch
from torch import nn

from ddpm.training.ema import Ema, ema_decay


@pytest.mark.parametrize(("step", "decay"), [(1, 2 / 11), (2, 3 / 12), (90, 91 / 100), (10**9, 0.999)])
def test_decay_warms_up(step: int, decay: float) -> None:
    assert ema_decay(step, 0.999) == pytest.approx(decay, abs=1e-12)


def test_average_follows_the_recursion() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = Ema(network, decay=0.5)
    wanted = network.weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            network.weight += torch.randn(2, 3)
        ema.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * network.weight.detach()
    assert float((ema.network.weight - wanted).abs().max()) < 1e-5


def test_average_is_usable_after_the_first_step() -> None:
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    ema = Ema(network, decay=0.9999)
    nn.init.ones_(network.weight)
    ema.update(network, 1)
    assert float(ema.network.weight) > 0.8  # with decay 0.9999 from the start it would be 0.0001


def test_average_has_the_clean_names_and_is_a_copy_without_gradient() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ema = Ema(network, decay=0.9)
    assert ema.network.state_dict().keys() == network.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    assert not ema.network.training
    with torch.no_grad():
        network[0].weight += 1
    assert not torch.equal(ema.network[0].weight, network[0].weight)


def test_average_follows_what_is_compiled_too() -> None:
    network = nn.Linear(2, 2)
    compiled = torch.compile(network, backend="eager")
    ema = Ema(network, decay=0.0)
    with torch.no_grad():
        network.weight += 1
    ema.update(compiled, 1)  # its names begin with _orig_mod
    assert torch.equal(ema.network.weight, network.weight)
