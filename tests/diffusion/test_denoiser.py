"""The joint between networks and samplers: learned variances and self-conditioning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpm.diffusion.denoiser import Prediction, clipped, network_denoiser, split_output, to_prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import ddim, ddpm
from ddpm.diffusion.schedules import make_schedule
from ddpm.errors import ConfigError

SCHEDULE = make_schedule("cosine", 40)
X = NoiseSource(0, range(3), (2, 4, 4), dtype=torch.float64).normal(0, "x")
TIMES = torch.tensor([3.0, 20.0, 39.0], dtype=torch.float64)


def test_the_second_half_of_the_channels_is_the_variance() -> None:
    mean, v = X, torch.linspace(-1, 1, X.numel(), dtype=torch.float64).reshape(X.shape)
    prediction = to_prediction(torch.cat([mean, v], 1), X, TIMES, SCHEDULE, "v")
    assert prediction.variance_fraction is not None
    assert (float(prediction.variance_fraction.min()), float(prediction.variance_fraction.max())) == (0.0, 1.0)
    plain = to_prediction(mean, X, TIMES, SCHEDULE, "v")
    assert plain.variance_fraction is None
    assert torch.equal(prediction.x_0, plain.x_0)
    assert torch.equal(prediction.eps, plain.eps)


def test_a_network_that_returns_zeros_is_between_the_fixed_variances() -> None:
    fraction = split_output(torch.zeros(3, 4, 4, 4), torch.zeros(3, 2, 4, 4))[1]
    assert fraction is not None
    assert bool((fraction == 0.5).all())


@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (3, 4, 4, 5), (2, 4, 4, 4), (3, 6, 4, 4)])
def test_an_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected the same shape, or twice the channels"):
        split_output(torch.zeros(shape), X)


def test_clipping_keeps_the_learned_variance() -> None:
    denoiser = network_denoiser(lambda x, t: torch.cat([5 * x, x], 1), SCHEDULE, "x_0")
    prediction = clipped(denoiser, SCHEDULE)(X, TIMES)
    assert float(prediction.x_0.abs().max()) <= 1
    assert prediction.variance_fraction is not None
    assert torch.equal(prediction.variance_fraction, (X + 1) / 2)


class SelfConditioned:
    """A network whose x_0 depends on both of its inputs; it remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(x)
        x_t, estimate = x.chunk(2, 1)
        return torch.tanh(0.5 * x_t) + 0.3 * estimate


def test_no_previous_prediction_is_one_of_zeros() -> None:
    denoiser = network_denoiser(SelfConditioned(), SCHEDULE, "x_0", self_conditioning=True)
    zeros = Prediction(torch.zeros_like(X), X)
    without, with_zeros = denoiser(X, TIMES), denoiser(X, TIMES, zeros)
    assert torch.equal(without.x_0, with_zeros.x_0)
    assert not torch.equal(without.x_0, denoiser(X, TIMES, without).x_0)


def test_the_estimate_is_kept_in_the_range_of_the_data() -> None:
    network = SelfConditioned()
    denoiser = network_denoiser(network, SCHEDULE, "x_0", self_conditioning=True, x_0_range=(-1.0, 1.0))
    denoiser(X, TIMES, Prediction(157 * X, X))
    assert torch.equal(network.seen[0], torch.cat([X, (157 * X).clamp(-1, 1)], 1))


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_samplers_feed_each_prediction_to_the_next_step(sampler: object) -> None:
    network = SelfConditioned()
    denoiser = network_denoiser(network, SCHEDULE, "x_0", self_conditioning=True)
    noise = NoiseSource(1, range(3), (2, 4, 4), dtype=torch.float64)
    steps = list(sampler(denoiser, SCHEDULE, X, noise, timesteps=[39, 20, 10, 3]))  # type: ignore[operator]
    estimates = [seen[:, 2:] for seen in network.seen]
    assert bool((estimates[0] == 0).all())
    for estimate, step in zip(estimates[1:], steps, strict=False):
        assert torch.equal(estimate, step.prediction.x_0)


def test_a_network_without_self_conditioning_sees_x_t_alone() -> None:
    seen = []
    denoiser = network_denoiser(lambda x, t: seen.append(x) or x, SCHEDULE, "x_0")  # type: ignore[func-returns-value]
    denoiser(X, TIMES, Prediction(X, X))
    assert torch.equal(seen[0], X)
