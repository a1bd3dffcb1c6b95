from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm.config import NetworkConfig, TrainingConfig
from ddpm.errors import RunError
from ddpm.networks import build_unet
from ddpm.training.checkpoint import load_checkpoint, read_notes, save_checkpoint
from ddpm.training.ema import Ema
from ddpm.training.loop import TrainState, make_optimizer
from tiny_runs import same_bits


def fresh(seed: int = 0, **network: Any) -> TrainState:
    torch.manual_seed(seed)
    config = {"base_channels": 8, "channel_multipliers": (1,), "attention_levels": (), "num_groups": 4, **network}
    unet = build_unet(NetworkConfig(**config), 1)
    return TrainState(unet, Ema(unet, 0.99), make_optimizer(unet, TrainingConfig(weight_decay=0.1)), 16)


def trained(steps: int = 3) -> TrainState:
    state = fresh()
    for step in range(1, steps + 1):
        for parameter in state.network.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
        state.ema.update(state.network, step)
    state.step, state.skipped, state.skipped_in_a_row, state.micro_batch_size = steps + 2, 2, 1, 5
    return state


def everything(state: TrainState) -> dict[str, Tensor]:
    found = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    found |= {f"ema.{name}": value for name, value in state.ema.network.state_dict().items()}
    for number, slots in state.optimizer.state_dict()["state"].items():
        found |= {f"{number}.{slot}": value for slot, value in slots.items()}
    return found


def counters(state: TrainState) -> tuple[int, ...]:
    return state.step, state.skipped, state.skipped_in_a_row, state.micro_batch_size


@pytest.mark.parametrize("steps", [0, 3])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, steps: int) -> None:
    state, other = trained(steps), fresh(seed=1)
    notes = {"config": {"a": [1, 2.5, None]}, "seconds": 0.1}
    save_checkpoint(tmp_path / "c", state, notes)
    load_checkpoint(tmp_path / "c", other)
    expected, got = everything(state), everything(other)
    assert expected.keys() == got.keys()
    assert any(".exp_avg_sq" in name for name in got) == (steps > 0)
    assert all(same_bits(expected[name], got[name]) for name in expected)
    assert counters(other) == counters(state)
    assert read_notes(tmp_path / "c") == notes
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_the_average_and_the_weights_stay_apart(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", trained(), {})
    other = fresh(seed=1)
    load_checkpoint(tmp_path / "c", other)
    pairs = zip(other.network.parameters(), other.ema.network.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() and not torch.equal(a, b) for a, b in pairs)


def test_the_next_step_is_the_one_that_would_have_come(tmp_path: Path) -> None:
    state, other = trained(), fresh(seed=1)
    save_checkpoint(tmp_path / "c", state, {})
    load_checkpoint(tmp_path / "c", other)
    for each in (state, other):
        for parameter in each.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        each.optimizer.step()
    assert all(map(same_bits, everything(state).values(), everything(other).values()))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, trained(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for read in (lambda: load_checkpoint(path, fresh()), lambda: read_notes(path)):
        with pytest.raises(RunError, match="cannot be read"):
            read()


def rewrite(path: Path, changes: dict[str, str | None], tensors: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint again with other metadata; none removes a key."""
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
    save_file(tensors or load_file(path), path, {key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "ddpm-model"}, "format 'ddpm-model'"),
        ({"format": None}, "format 'none'"),
        ({"format_version": "2"}, "version '2'"),
        ({"counters": None}, "no readable counters"),
        ({"counters": "{"}, "no readable counters"),
        ({"counters": "{}"}, "counters"),
        ({"counters": "[]"}, "counters"),
    ],
)
def test_foreign_or_damaged_metadata_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path, state = tmp_path / "c", fresh()
    save_checkpoint(path, trained(), {})
    rewrite(path, changes)
    before = {name: value.clone() for name, value in everything(state).items()}
    with pytest.raises(RunError, match=message):
        load_checkpoint(path, state)
    assert all(torch.equal(before[name], value) for name, value in everything(state).items() if name in before)


def test_another_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, trained(), {})
    for other in ({"base_channels": 12}, {"blocks_per_level": 1}, {"channel_multipliers": (1, 1)}):
        with pytest.raises(RunError, match=r"another network \(first difference: \w+\."):
            load_checkpoint(path, fresh(**other))


def test_a_missing_tensor_is_never_made_up(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, trained(), {})
    tensors = load_file(path)
    for kind in ("network.", "ema.", "optimizer.exp_avg_sq.", "optimizer.step."):
        gone = next(name for name in tensors if name.startswith(kind))
        rewrite(path, {}, {name: value for name, value in tensors.items() if name != gone})
        with pytest.raises(RunError, match=f"first difference: {gone}"):
            load_checkpoint(path, fresh())
