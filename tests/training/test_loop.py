from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig, TrainingConfig
from ddpm.diffusion.denoiser import Parameterization
from ddpm.diffusion.schedules import make_schedule
from ddpm.errors import TrainingError
from ddpm.networks import build_unet
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.ema import Ema, ema_decay
from ddpm.training.engine import Engine
from ddpm.training.loop import (
    MAX_SKIPPED_IN_A_ROW,
    Objective,
    StepReport,
    TrainState,
    learning_rate,
    make_optimizer,
    train_steps,
)

ENGINE = Engine("cpu", "float32", channels_last=False, threads=1)
SCHEDULE = make_schedule("cosine", 100)
PICTURES = np.random.default_rng(0).random((32, 8, 8, 1), dtype=np.float32)
BATCHES = BatchSource(PICTURES, np.arange(32), PixelCodec(None, (0.0, 1.0), "float32"), 8, 100, seed=0)


def state_of(micro_batch_size: int = 8, *, dropout: float = 0.1, **training: Any) -> tuple[TrainState, TrainingConfig]:
    torch.manual_seed(0)
    network = build_unet(
        NetworkConfig(
            base_channels=8, channel_multipliers=(1,), attention_levels=(), dropout=dropout, num_groups=4
        ),
        1,
    )
    config = TrainingConfig(**{"learning_rate": 1e-3, "warmup_steps": 0, **training})
    return TrainState(network, Ema(network, 0.99), make_optimizer(network, config), micro_batch_size), config


def steps(
    state: TrainState, config: TrainingConfig, count: int, parameterization: Parameterization = "v", **changes: Any
) -> list[StepReport]:
    batches = [changed(BATCHES.batch(step), **changes) for step in range(count)]
    return list(train_steps(state, batches, Objective(SCHEDULE, parameterization, ENGINE), config))


def changed(batch: Batch, nan_row: int | None = None) -> Batch:
    if nan_row is not None:
        batch.x_0[nan_row] = math.nan
    return batch


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).clone()


class FailsAbove(nn.Module):
    """A network that has no memory for more than `most` pictures, or breaks in another way."""

    def __init__(self, network: nn.Module, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.network, self.most, self.error = network, most, error

    def forward(self, x_t: Tensor, t: Tensor, **options: Any) -> Tensor:
        output: Tensor = self.network(x_t, t, **options)
        if len(x_t) > self.most:
            raise self.error()
        return output


def test_ema_decay_is_that_of_tensorflow() -> None:
    assert [ema_decay(step, 0.9999) for step in (1, 2, 90)] == [2 / 11, 3 / 12, 91 / 100]
    assert ema_decay(10**6, 0.9999) == 0.9999


def test_ema_is_the_recursion_and_usable_at_once() -> None:
    network, expected = nn.Linear(3, 2), torch.zeros(8, dtype=torch.float64)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    ema = Ema(network, 0.6)
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(float(step))
        ema.update(network, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert (weights(ema.network) - expected).abs().max() < 1e-5
        assert step > 1 or weights(ema.network)[0] > 0.8  # after one step most of the average is what was learned
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())


def test_learning_rate_warms_up_then_follows_its_curve() -> None:
    def rates(decay: str) -> list[float]:
        config = TrainingConfig.model_validate(
            {"learning_rate": 2.0, "warmup_steps": 4, "steps": 12, "decay": decay}
        )
        return [learning_rate(step, config) for step in range(13)]

    warm = [0.5, 1.0, 1.5, 2.0]
    assert rates("constant") == [*warm, *[2.0] * 9]
    assert np.allclose(rates("linear"), [*warm, *(2 - 2 * np.arange(9) / 8)], atol=1e-12)
    assert np.allclose(rates("cosine"), [*warm, *(1 + np.cos(np.pi * np.arange(9) / 8))], atol=1e-12)
    assert learning_rate(0, TrainingConfig(learning_rate=2.0, warmup_steps=0)) == 2.0


def test_the_learning_rate_reaches_the_optimizer() -> None:
    state, config = state_of(warmup_steps=4, steps=10)
    assert [report.learning_rate for report in steps(state, config, 3)] == [0.00025, 0.0005, 0.00075]
    assert state.optimizer.param_groups[0]["lr"] == 0.00075


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size: int) -> None:
    whole, config = state_of()
    split, _ = state_of(micro_batch_size)
    for state in (whole, split):  # plain gradient descent: AdamW would magnify the rounding of tiny gradients
        state.optimizer = torch.optim.SGD(state.network.parameters(), lr=1.0)  # type: ignore[assignment]
    start = weights(whole.network)
    (one,), (other,) = steps(whole, config, 1), steps(split, config, 1)
    assert (weights(whole.network) - start).abs().max() > 1e-2
    assert (weights(whole.network) - weights(split.network)).abs().max() < 1e-6
    assert np.abs(one.losses - other.losses).max() < 1e-6


def test_gradients_are_clipped_to_the_norm() -> None:
    state, config = state_of(gradient_clip=1e-3)
    state.optimizer = torch.optim.SGD(state.network.parameters(), lr=1.0)  # type: ignore[assignment]
    start = weights(state.network)
    (report,) = steps(state, config, 1)
    moved = config.learning_rate * 1e-3
    assert report.gradient_norm > 1e-2
    assert abs(float((weights(state.network) - start).norm()) / moved - 1) < 0.02


@pytest.mark.parametrize("parameterization", ["eps", "x_0", "v", "mu"])
def test_every_parameterization_trains(parameterization: Parameterization) -> None:
    state, config = state_of(dropout=0.0, learning_rate=3e-3)
    losses = [report.loss for report in steps(state, config, 60, parameterization)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    state, config = state_of()
    steps(state, config, 2)
    before = weights(state.network), weights(state.ema.network), state.optimizer.state_dict()["state"][0]["step"].clone()
    (report,) = steps(state, config, 1, nan_row=5)
    assert report.skipped
    assert math.isnan(report.loss)
    assert np.flatnonzero(~np.isfinite(report.losses)).tolist() == [5]
    after = weights(state.network), weights(state.ema.network), state.optimizer.state_dict()["state"][0]["step"]
    assert all(map(torch.equal, before, after))
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 1, 1)
    assert not steps(state, config, 1)[0].skipped
    assert (state.step, state.skipped, state.skipped_in_a_row) == (4, 1, 0)


def test_too_many_skipped_steps_in_a_row_end_training() -> None:
    state, config = state_of()
    before = weights(state.network)
    with pytest.raises(TrainingError, match=r"10 steps in a row .* learning_rate"):
        steps(state, config, MAX_SKIPPED_IN_A_ROW + 5, nan_row=0)
    assert (state.step, state.skipped) == (MAX_SKIPPED_IN_A_ROW, MAX_SKIPPED_IN_A_ROW)
    assert torch.equal(weights(state.network), before)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, lambda: RuntimeError("not enough memory: 5 bytes")])
def test_out_of_memory_halves_the_micro_batch_and_goes_on(error: Callable[[], Exception]) -> None:
    small, config = state_of(2)
    large, _ = state_of(8)
    large.network = FailsAbove(large.network, 2, error)
    expected, got = steps(small, config, 3), steps(large, config, 3)
    assert torch.equal(weights(small.network), weights(large.network))
    assert [report.loss for report in expected] == [report.loss for report in got]
    assert large.micro_batch_size == 2
    assert [len(report.notices) for report in got] == [2, 0, 0]
    assert "micro-batches of 2" in got[0].notices[-1]


def test_no_memory_for_one_picture_ends_training() -> None:
    state, config = state_of()
    state.network = FailsAbove(state.network, 0, torch.OutOfMemoryError)
    with pytest.raises(TrainingError, match="not enough memory for one picture"):
        steps(state, config, 1)


def test_other_errors_of_the_network_are_not_hidden() -> None:
    state, config = state_of()
    state.network = FailsAbove(state.network, 0, lambda: RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        steps(state, config, 1)
