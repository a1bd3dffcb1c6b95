from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpm.errors import ConfigError, RunError
from ddpm.training.ema import power_decay
from ddpm.training.run_folder import RunFolder, check_space, forecast_bytes
from tiny_runs import tensors, tiny_plan, train_all


def test_the_first_step_replaces_what_was_there() -> None:
    assert power_decay(1, 0.05) == 0
    assert 0.98 < power_decay(1000, 0.05) < power_decay(1000, 0.1) < 1


def test_a_run_that_was_interrupted_keeps_the_same_averages(tmp_path: Path) -> None:
    train_all(tmp_path / "whole", steps=8, checkpoint_every=2, snapshots=4)
    train_all(tmp_path / "halves", steps=4, checkpoint_every=2, snapshots=2)
    train_all(tmp_path / "halves", steps=8, checkpoint_every=2, snapshots=2)
    for width in ("0.05", "0.1"):
        name = f"averages/00000008-{width}.safetensors"
        whole, halves = tensors(tmp_path / "whole" / name), tensors(tmp_path / "halves" / name)
        assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_averages_are_no_part_of_a_run_that_keeps_none(tmp_path: Path) -> None:
    train_all(tmp_path / "run", steps=2)
    assert not (tmp_path / "run" / "averages").exists()
    assert not [name for name in tensors(tmp_path / "run" / "checkpoint.safetensors") if name.startswith("average")]


def test_the_disk_forecast_counts_them(tmp_path: Path) -> None:
    assert forecast_bytes(100, 0, 3) - forecast_bytes(100, 0) == 100 * (2 * 2 + 2 * 3)
    with pytest.raises(RunError, match=r"or fewer training\.snapshots"):
        check_space(RunFolder(tmp_path / "run"), 2**20, 0, 0.1, 1000)


def test_an_adapter_has_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an adapter is trained, of which no averages are kept"):
        tiny_plan(tmp_path / "run", snapshots=2, lora={"rank": 2})
