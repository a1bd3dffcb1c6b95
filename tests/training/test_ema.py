from __future__ import annotations

import torch
from torch import nn

from ddpm.training.ema import Ema


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
