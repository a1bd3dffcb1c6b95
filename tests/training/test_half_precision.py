"""float16: the loss is scaled, overflow is met, and a run goes on with the scale it had."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import MakePlan
from ddpm.engine import Engine
from ddpm.errors import TrainingError
from ddpm.training.checkpoint import load_checkpoint, save_checkpoint
from ddpm.training.loop import MAX_SKIPPED_IN_A_ROW, TrainState, train_steps
from ddpm.training.run import run
from tiny_runs import differing
from training.test_loop import ENGINE, TRAINING, batches, new_state, objective, weights

HALF = Engine(device="cpu", precision="float16", channels_last=False, threads=1)


def half_state(scale: float = 2.0**16) -> TrainState:
    state = new_state()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return state


def losses(state: TrainState, engine: Engine, count: int) -> list[float]:
    chosen = replace(objective(), engine=engine)
    return [report.loss for report in train_steps(state, batches(count), chosen, TRAINING)]


def test_losses_are_those_of_float32_within_half_precision() -> None:
    plain, half = losses(new_state(), ENGINE, 12), losses(half_state(), HALF, 12)
    assert max(abs(a - b) for a, b in zip(plain, half, strict=True)) < 5e-3
    assert plain != half


def test_the_scale_does_not_reach_the_gradient() -> None:
    norms = []
    for scale in (1.0, 2.0**12):
        state = half_state(scale)
        norms += [report.gradient_norm for report in train_steps(state, batches(1), objective(), TRAINING)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_overflow_skips_steps_and_halves_the_scale_until_it_fits() -> None:
    state = half_state(2.0**45)
    assert state.scaler is not None
    reports = train_steps(state, batches(60), replace(objective(), engine=HALF), TRAINING)
    assert not next(reports).skipped  # the last layer starts as zero, so that the first gradient is its own, in float32
    before, scale = weights(state.network), state.scaler.get_scale()
    overflow = next(reports)
    assert overflow.skipped
    assert "halved" in overflow.notices[0]
    assert torch.equal(before, weights(state.network))
    assert state.scaler.get_scale() == scale / 2
    later = list(reports)
    assert state.skipped > MAX_SKIPPED_IN_A_ROW  # which would stop a run whose loss itself is not finite
    assert not later[-1].skipped
    assert state.skipped_in_a_row == 0
    steps = {int(slot["step"]) for slot in state.optimizer.state.values()}
    assert steps == {60 - state.skipped}


def test_what_no_scale_helps_ends_the_run() -> None:
    state = half_state()
    state.network.nan_at = set(range(100))
    with pytest.raises(TrainingError, match="in a row"):
        deque(train_steps(state, batches(60), replace(objective(), engine=HALF), TRAINING), maxlen=0)


def test_a_checkpoint_holds_the_scale_and_its_count(tmp_path: Path) -> None:
    state = half_state(2.0**30)
    deque(train_steps(state, batches(20), replace(objective(), engine=HALF), TRAINING), maxlen=0)
    save_checkpoint(tmp_path / "c", state, {})
    other = half_state()
    load_checkpoint(tmp_path / "c", other)
    assert state.scaler is not None
    assert other.scaler is not None
    assert other.scaler.state_dict() == state.scaler.state_dict()
    assert state.scaler.state_dict()["_growth_tracker"] > 0


def test_a_resumed_run_is_that_of_one_go(plan: MakePlan) -> None:
    training = {"precision": "float16"}
    whole, parted = plan("whole", training=training), plan("parted", training={**training, "steps": 4})
    for each in (whole, parted, plan("parted", training=training)):
        deque(run(each), maxlen=0)
    for name in ("checkpoint.safetensors", "model.safetensors"):
        assert differing(whole.out / name, parted.out / name) == []
    assert json.loads((whole.out / "config.json").read_text())["training"]["precision"] == "float16"
