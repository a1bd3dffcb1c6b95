from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig, ObjectiveConfig, TrainingConfig
from ddpm.data.sources.embedded import digits
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Parameterization
from ddpm.diffusion.schedules import make_schedule
from ddpm.engine import Engine
from ddpm.networks import build_network, build_unet
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.ema import Ema
from ddpm.training.importance import LossHistory
from ddpm.training.loop import Objective, TrainState, make_optimizer, train_steps

ENGINE = Engine("cpu", "float32", channels_last=False, threads=1)
SCHEDULE = make_schedule("cosine", 50)
NETWORK = NetworkConfig(base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, num_groups=4, dropout=0.2)
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
    network = network or build_unet(NETWORK, 1)
    return TrainState(network, Ema(network, 0.99), make_optimizer(network, TRAINING), micro_batch_size)


class Told(nn.Module):
    """A network that returns what it was told, and not what it was given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x_t: Tensor, t: Tensor, y: object = None, *, dropout_keys: Tensor | None = None) -> Tensor:
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
    right, objective = (
        right_answer(batch, parameterization),
        Objective(SCHEDULE, ObjectiveConfig(parameterization=parameterization), ENGINE),
    )
    assert float(objective.losses(Told(right), batch).total.abs().max()) < 1e-10
    off = objective.losses(Told(right + 0.5), batch).total
    assert off.shape == (32,)
    assert float((off - 0.25).abs().max()) < 1e-5


def test_the_loss_falls_on_digits(source: BatchSource) -> None:
    objective = Objective(SCHEDULE, ObjectiveConfig(parameterization="v"), ENGINE)
    losses = [report.loss for report in train_steps(new_state(), batches(source, 40), objective, TRAINING)]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_dropout_depends_on_its_keys_alone(source: BatchSource) -> None:
    state, objective = new_state(), Objective(SCHEDULE, ObjectiveConfig(parameterization="v"), ENGINE)
    for _ in train_steps(state, batches(source, 2), objective, TRAINING):
        pass  # a new network returns zeros, whatever it drops
    batch = source.batch(2)
    with torch.no_grad():
        first = objective.losses(state.network.train(), batch).total
        torch.manual_seed(123)
        second = objective.losses(state.network.eval(), batch).total
        without = objective.losses(state.network, batch, dropout=False).total
    assert torch.equal(first, second)
    assert not torch.equal(first, without)


class Failing(nn.Module):
    """A network that runs out of memory at its second call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor, y: object = None, *, dropout_keys: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("simulated, in the second micro-batch")
        output: Tensor = self.network(x_t, t, dropout_keys=dropout_keys)
        return output


def test_out_of_memory_in_the_middle_of_a_step_leaves_no_gradient_behind(source: BatchSource) -> None:
    short, ample = new_state(micro_batch_size=16), new_state(micro_batch_size=8)
    short = new_state(Failing(short.network), micro_batch_size=16)
    objective = Objective(SCHEDULE, ObjectiveConfig(parameterization="v"), ENGINE)
    for state in (short, ample):
        next(train_steps(state, batches(source, 1), objective, TRAINING))
    assert short.micro_batch_size == 8
    for a, b in zip(short.network.parameters(), ample.network.parameters(), strict=True):
        assert torch.equal(a, b)


class Estimating(nn.Module):
    """A network that reads x_t and an estimate, and remembers each call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, y: object = None, *, dropout_keys: Tensor | None = None) -> Tensor:
        self.calls.append(x)
        return self.weight * x[:, :1] + x[:, 1:]


def test_half_of_the_pictures_see_the_networks_own_estimate(source: BatchSource) -> None:
    """Chen et al. 2022: zeros, or what the network makes of zeros, in the range of the data and without a gradient."""
    config = ObjectiveConfig(parameterization="x_0")
    objective = Objective(SCHEDULE, config, ENGINE, x_0_range=(-1.0, 1.0), self_conditioning=True)
    batch, network = source.batch(0), Estimating()
    objective.losses(network, batch).total.sum().backward()
    first, second = network.calls
    x_t = process.q_sample(batch.x_0, batch.t, batch.eps, SCHEDULE)
    assert 8 < int(batch.conditioned.sum()) < 24
    assert torch.equal(first, torch.cat([x_t, torch.zeros_like(x_t)], 1)[batch.conditioned])
    assert torch.equal(second[:, :1], x_t)
    assert bool((second[~batch.conditioned, 1:] == 0).all())
    assert torch.equal(second[batch.conditioned, 1:], (3 * x_t[batch.conditioned]).clamp(-1, 1))
    error = 2 * (3 * x_t + second[:, 1:] - batch.x_0) / x_t[0].numel()
    expected = (error * x_t).sum()  # no second path, through the estimate
    assert float(network.weight.grad) == pytest.approx(float(expected), rel=1e-4)


def test_importance_weights_the_loss_and_remembers_it(source: BatchSource) -> None:
    state = new_state()
    state.history = LossHistory.empty(len(SCHEDULE))
    state.history.counts += 10
    state.history.losses += 1
    state.history.losses[:5] = 30.0
    expected_t, weights = state.history.times(source.batch(0).u)
    state.history.counts[:] = 0
    state.history.counts += 10
    objective = Objective(SCHEDULE, ObjectiveConfig(parameterization="v"), ENGINE)
    report = next(train_steps(state, batches(source, 1), objective, TRAINING))
    assert torch.equal(report.batch.t, expected_t)
    assert report.loss == pytest.approx(float((weights * torch.from_numpy(report.losses)).mean()), rel=1e-6)
    assert int((state.history.counts - 10).sum()) == 32
    assert torch.equal(state.history.counts - 10, torch.bincount(expected_t, minlength=len(SCHEDULE)))
    assert state.history.losses[expected_t[-1]].tolist().count(float(report.losses[-1])) >= 1


def test_a_skipped_step_teaches_importance_nothing(source: BatchSource) -> None:
    state = new_state()
    nn.init.constant_(state.network.conv_out.weight, float("nan"))
    state.history = LossHistory.empty(len(SCHEDULE))
    objective = Objective(SCHEDULE, ObjectiveConfig(parameterization="v"), ENGINE)
    assert next(train_steps(state, batches(source, 1), objective, TRAINING)).skipped
    assert int(state.history.counts.sum()) == 0


@pytest.mark.parametrize("choices", [{"loss": "bound"}, {"loss": "hybrid", "variance": "learned"}])
def test_the_bound_falls_on_digits(source: BatchSource, choices: dict[str, Any]) -> None:
    config = ObjectiveConfig.model_validate({"parameterization": "v", **choices})
    objective = Objective(SCHEDULE, config, ENGINE, levels=17)
    torch.manual_seed(0)
    network = build_network(NETWORK, (8, 8, 1), learned_variance=config.variance == "learned")
    state, other = new_state(network), source.batch(1000)
    before = float(objective.losses(network, other).parts()["bound"].detach().mean())
    for _ in train_steps(state, batches(source, 30), objective, TRAINING):
        pass
    after = float(objective.losses(network, other).parts()["bound"].detach().mean())
    assert after < 0.95 * before
