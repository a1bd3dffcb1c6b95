from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig, ObjectiveConfig, TrainingConfig
from ddpm.diffusion.schedules import make_schedule
from ddpm.engine import Engine
from ddpm.errors import TrainingError
from ddpm.networks import build_unet
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.ema import Ema
from ddpm.training.loop import (
    MAX_SKIPPED_IN_A_ROW,
    Objective,
    TrainState,
    learning_rate,
    make_optimizer,
    train_steps,
)

ENGINE = Engine(device="cpu", precision="float32", channels_last=False, threads=1)
SCHEDULE = make_schedule("cosine", 50)
NETWORK = NetworkConfig(
    base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), num_groups=4, dropout=0.2
)
TRAINING = TrainingConfig(steps=100, batch_size=32, learning_rate=2e-3, warmup_steps=5)


class Faulty(nn.Module):
    """A network that does something wrong at some of its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.most_at_once: int | None = None
        self.full_memory: RuntimeError = torch.OutOfMemoryError("CUDA out of memory (simulated)")
        self.nan_at: set[int] = set()
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, y: object = None, *, dropout_keys: Tensor | None = None) -> Tensor:
        self.calls.append(len(x_t))
        if self.most_at_once is not None and len(x_t) > self.most_at_once:
            raise self.full_memory
        output: Tensor = self.network(x_t, t, dropout_keys=dropout_keys)
        return output * float("nan") if len(self.calls) - 1 in self.nan_at else output


def digits() -> BatchSource:
    from sklearn.datasets import load_digits

    pictures = load_digits().images[..., None].astype(np.uint8)
    codec = PixelCodec(17, (0.0, 16.0), "uint8")
    return BatchSource(pictures, np.arange(len(pictures)), codec, TRAINING.batch_size, len(SCHEDULE), seed=0)


def batches(count: int) -> Iterator[Batch]:
    source = digits()
    return (source.batch(step) for step in range(count))


def new_state(*, micro_batch_size: int = 32) -> TrainState:
    torch.manual_seed(0)
    network = Faulty(build_unet(NETWORK, 1))
    return TrainState(network, Ema(network, 0.99), make_optimizer(network, TRAINING), micro_batch_size)


def objective(parameterization: Any = "v") -> Objective:
    return Objective(SCHEDULE, ObjectiveConfig(parameterization=parameterization), ENGINE)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def rates(**changes: Any) -> list[float]:
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10, **changes)
    return [learning_rate(step, config) for step in range(101)]


def test_learning_rate_rises_linearly_then_stays() -> None:
    constant = rates()
    assert max(abs(constant[step] - (step + 1) / 10) for step in range(10)) < 1e-12
    assert set(constant[10:]) == {1.0}


def test_learning_rate_falls_to_zero_at_the_end() -> None:
    linear, cosine = rates(decay="linear"), rates(decay="cosine")
    assert linear[55] == pytest.approx(0.5)
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[25] > linear[25]
    for curve in (linear, cosine):
        assert curve[10] == 1.0
        assert abs(curve[100]) < 1e-12
        assert curve[10:] == sorted(curve[10:], reverse=True)


def test_learning_rate_without_warm_up_starts_whole() -> None:
    assert learning_rate(0, TrainingConfig(steps=10, learning_rate=0.5, warmup_steps=0)) == 0.5


def test_the_learning_rate_reaches_the_optimizer_and_the_report() -> None:
    state = new_state()
    seen: list[float] = []
    state.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    reports = list(train_steps(state, batches(7), objective(), TRAINING))
    expected = [learning_rate(step, TRAINING) for step in range(7)]
    assert seen == expected
    assert [report.learning_rate for report in reports] == expected
    assert [report.step for report in reports] == list(range(1, 8))


@pytest.mark.parametrize("micro_batch_size", [1, 5, 16])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size: int) -> None:
    gradients = []
    for size in (32, micro_batch_size):
        state = new_state(micro_batch_size=size)
        seen: list[Tensor] = []
        state.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.extend(
                parameter.grad.clone() for group in optimizer.param_groups for parameter in group["params"]
            )
        )
        report = next(iter(train_steps(state, batches(1), objective(), TRAINING)))
        gradients.append((torch.cat([g.flatten() for g in seen]), report))
    (whole, report), (split, report_split) = gradients
    assert float((whole - split).abs().max()) < 1e-6
    assert float(whole.abs().max()) > 1e-3
    assert np.abs(report.losses - report_split.losses).max() < 1e-6
    assert report.loss == pytest.approx(report_split.loss, abs=1e-6)


def test_gradient_is_clipped() -> None:
    config = TrainingConfig(steps=1, batch_size=32, gradient_clip=1e-3)
    state = new_state()
    norms: list[float] = []
    state.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            float(torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]).norm())
        )
    )
    report = next(iter(train_steps(state, batches(1), objective(), config)))
    assert report.gradient_norm > 1e-2
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    state = new_state()
    state.network.nan_at = {1}
    steps = train_steps(state, batches(3), objective(), TRAINING)
    assert not next(steps).skipped
    raw, average = weights(state.network).clone(), weights(state.ema.network).clone()
    moments = {id(p): s["exp_avg"].clone() for p, s in state.optimizer.state.items()}
    report = next(steps)
    assert report.skipped
    assert (state.step, state.skipped, state.skipped_in_a_row) == (2, 1, 1)
    assert torch.equal(weights(state.network), raw)
    assert torch.equal(weights(state.ema.network), average)
    assert all(torch.equal(moments[id(p)], s["exp_avg"]) for p, s in state.optimizer.state.items())
    assert not next(steps).skipped
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 1, 0)
    assert bool(weights(state.network).isfinite().all())


def test_training_stops_after_too_many_skips_in_a_row() -> None:
    state = new_state()
    state.network.nan_at = set(range(1, 100))
    steps = train_steps(state, batches(30), objective(), TRAINING)
    next(steps)
    before = weights(state.network).clone()
    with pytest.raises(TrainingError, match=r"10 steps in a row .*learning_rate \(now 0.002\)"):
        list(steps)
    assert state.skipped == MAX_SKIPPED_IN_A_ROW
    assert torch.equal(weights(state.network), before)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_out_of_memory_halves_the_micro_batch_and_goes_on(error: RuntimeError) -> None:
    state, ample = new_state(), new_state(micro_batch_size=8)
    state.network.most_at_once, state.network.full_memory = 10, error
    report = next(train_steps(state, batches(1), objective(), TRAINING))
    next(train_steps(ample, batches(1), objective(), TRAINING))
    assert state.micro_batch_size == 8
    assert state.network.calls == [32, 16, 8, 8, 8, 8]
    assert [notice.split(":")[0] for notice in report.notices] == ["out of memory"] * 2
    assert len(report.losses) == 32
    assert torch.equal(weights(state.network), weights(ample.network))


def test_out_of_memory_with_one_picture_is_said() -> None:
    state = new_state()
    state.network.most_at_once = 0
    with pytest.raises(TrainingError, match="not enough memory for one picture"):
        next(train_steps(state, batches(1), objective(), TRAINING))


def test_other_runtime_errors_are_not_taken_for_a_full_memory() -> None:
    state = new_state()
    state.network.network = nn.Linear(3, 3)  # takes no time
    with pytest.raises(TypeError):
        next(train_steps(state, batches(1), objective(), TRAINING))
