from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm.errors import RunError
from ddpm.processes import Group
from ddpm.processes.pieces import read_pieces, save_pieces
from ddpm.processes.sharding import is_sharded, shard, units, whole_weights
from groups import together


class Net(nn.Module):
    """Two blocks of odd widths, in channels_last, as pieces of three processes do not divide them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 3)])
        self.out = nn.Linear(5, 2)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.out(x.mean((2, 3)))


Weights = dict[str, NDArray[np.float32]]


def save(group: Group, folder: Path) -> tuple[bool, Weights]:
    network = Net(0)
    shard(network, group)
    save_pieces(folder, dict(network.state_dict()), group)
    return is_sharded(network), as_arrays(whole_weights(network, group))


def as_arrays(weights: dict[str, torch.Tensor]) -> Weights:
    """A tensor's memory would go with the process that has made it."""
    return {name: tensor.numpy() for name, tensor in weights.items()}


def read(group: Group, folder: Path) -> Weights:
    network = Net(1)
    shard(network, group)
    read_pieces(folder, dict(network.state_dict()), group)
    return as_arrays(whole_weights(network, group))


def assert_equal(weights: Weights, network: nn.Module) -> None:
    expected = as_arrays(dict(network.state_dict()))
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], array) for name, array in expected.items())


def test_pieces_of_two_processes_are_read_by_three_and_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    (sharded, weights), (_, of_second) = together(save, folder)
    assert sharded
    assert of_second == {}
    assert_equal(weights, Net(0))
    assert_equal(together(read, folder, size=3)[0], Net(0))
    alone = Net(1)
    read_pieces(folder, dict(alone.state_dict()))
    assert_equal(as_arrays(dict(alone.state_dict())), Net(0))
    refuse_others(folder, alone)


def refuse_others(folder: Path, network: nn.Module) -> None:
    known: dict[str, Any] = dict(network.state_dict())
    with pytest.raises(RunError, match=r"another network \(first difference: more\)"):
        read_pieces(folder, {**known, "more": torch.zeros(1)})
    with pytest.raises(RunError, match=r"first difference: out.bias"):
        read_pieces(folder, {**known, "out.bias": torch.zeros(3)})
    with pytest.raises(RunError, match=r"cannot be read"):
        read_pieces(folder.with_name("nothing"), known)
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(RunError, match=r"cannot be read \(\w+\); restore them"):
        read_pieces(folder, known)


def test_units_are_the_innermost_blocks() -> None:
    network = Net(0)
    nested = nn.Module()
    nested.levels = nn.ModuleList([network, nn.ReLU()])
    assert units(nested) == list(network.blocks)
