from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig, TrainingConfig
from ddpm.data.sources.embedded import digits
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Parameterization
from ddpm.diffusion.schedules import make_schedule
from ddpm.networks import build_unet
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.ema import Ema
from ddpm.training.engine import Engine
from ddpm.training.loop import Objective, TrainState, make_optimizer, train_steps

ENGINE = Engine("cpu", "float32", channels_last=False, threads=1)
SCHEDULE = make_schedule("cosine", 50)
TRAINING = TrainingConfig(batch_size=32, learning_rate=2e-3, warmup_steps=5)


@pytest.fixture(scope="module")
def source() -> BatchSource:
    data = digits()
    codec = PixelCodec(17, (0.0, 16.0), "uint8")
    return BatchSource(data.pictures, np.arange(len(data.pictures)), codec, TRAINING.batch_size, len(SCHEDULE), seed=0)


def batches(source: BatchSource, count: int) -> Iterator[Batch]:
    return (source.batch(step) for step in range(count))


def new_state(network: nn.Module | None = None, micro_batch_size: int = 32) -> TrainState:
    torch.manual_seed(0)
    config = NetworkConfig(base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, num_groups=4, dropout=0.2)
    network = network or build_unet(config, 1)
    return TrainState(network, Ema(network, 0.99), make_optimizer(network, TRAINING), micro_batch_size)


class Told(nn.Module):
    """A network that returns what it was told, and not what it was given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x_t: Tensor, t: Tensor, *, dropout_keys: Tensor | None = None) -> Tensor:
        return self.output


def right_answer(batch: Batch, parameterization: Parameterization) -> Tensor:
    signal, noise = (value.float().reshape(-1, 1, 1, 1) for value in SCHEDULE.signal_and_noise(batch.t))
    answers = {
        "eps": batch.eps,
        "x_0": batch.x_0,
        "v": signal * batch.eps - noise * batch.x_0,
        "mu": process.q_posterior(batch.x_0, signal * batch.x_0 + noise * batch.eps, batch.t, SCHEDULE)[0],
    }
    return answers[parameterization]


@pytest.mark.parametrize("parameterization", ["eps", "x_0", "v", "mu"])
def test_the_loss_is_the_squared_error_of_what_the_network_predicts(
    source: BatchSource, parameterization: Parameterization
) -> None:
    batch = source.batch(0)
    right, objective = right_answer(batch, parameterization), Objective(SCHEDULE, parameterization, ENGINE)
    assert float(objective.losses(Told(right), batch).abs().max()) < 1e-10
    off = objective.losses(Told(right + 0.5), batch)
    assert off.shape == (32,)
    assert float((off - 0.25).abs().max()) < 1e-5


def test_the_loss_falls_on_digits(source: BatchSource) -> None:
    objective = Objective(SCHEDULE, "v", ENGINE)
    losses = [report.loss for report in train_steps(new_state(), batches(source, 40), objective, TRAINING)]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_dropout_depends_on_its_keys_alone(source: BatchSource) -> None:
    state, objective = new_state(), Objective(SCHEDULE, "v", ENGINE)
    for _ in train_steps(state, batches(source, 2), objective, TRAINING):
        pass  # a new network returns zeros, whatever it drops
    batch = source.batch(2)
    with torch.no_grad():
        first = objective.losses(state.network.train(), batch)
        torch.manual_seed(123)
        second = objective.losses(state.network.eval(), batch)
        without = objective.losses(state.network, batch, dropout=False)
    assert torch.equal(first, second)
    assert not torch.equal(first, without)


class Failing(nn.Module):
    """A network that runs out of memory at its second call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor, *, dropout_keys: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("simulated, in the second micro-batch")
        output: Tensor = self.network(x_t, t, dropout_keys=dropout_keys)
        return output


def test_out_of_memory_in_the_middle_of_a_step_leaves_no_gradient_behind(source: BatchSource) -> None:
    short, ample = new_state(micro_batch_size=16), new_state(micro_batch_size=8)
    short = new_state(Failing(short.network), micro_batch_size=16)
    objective = Objective(SCHEDULE, "v", ENGINE)
    for state in (short, ample):
        next(train_steps(state, batches(source, 1), objective, TRAINING))
    assert short.micro_batch_size == 8
    for a, b in zip(short.network.parameters(), ample.network.parameters(), strict=True):
        assert torch.equal(a, b)
