"""The losses of training: weightings that agree over parameterizations, the bound, and the hybrid of both."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ddpm.config import ObjectiveConfig
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Parameterization, Prediction, network_denoiser, to_prediction
from ddpm.diffusion.likelihood import bits_per_dim, decoder_term, prior_term, transition_term, variational_bound
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.objectives import Noised, concatenated, simple_weight, target, training_losses, v_weight
from ddpm.diffusion.samplers.ancestral import ReverseVariance
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.errors import ConfigError

T = 1000
PARAMETERIZATIONS = get_args(Parameterization)
VARIANCES = get_args(ReverseVariance)
WEIGHTINGS = ("min_snr", "p2", "edm")
LEVELS = 17


def draw(seed: int, *shape: int) -> Tensor:
    return NoiseSource(seed, range(shape[0]), shape[1:], dtype=torch.float64).normal(0, "test")


def gray(seed: int, *shape: int) -> Tensor:
    """Return data on 17 levels in [-1, 1], the two ends among them."""
    levels = ((draw(seed, *shape).clamp(-1.5, 1.5) + 1.5) * 16 / 3).round()
    return levels / 8 - 1


def noised(schedule: NoiseSchedule, t: Tensor, *, x_0: Tensor | None = None) -> Noised:
    x_0 = gray(1, len(t), 2, 3, 3) if x_0 is None else x_0
    eps = draw(2, *x_0.shape)
    return Noised(x_0, eps, process.q_sample(x_0, t, eps, schedule), t)


def wrong_output(
    batch: Noised, schedule: NoiseSchedule, parameterization: Parameterization, off: float = 0.3
) -> Tensor:
    """Return one and the same wrong x_0 in the meaning of each parameterization."""
    x_0 = batch.x_0 + off * draw(3, *batch.x_0.shape)
    eps = process.eps_from_x_0(x_0, batch.x_t, batch.t, schedule)
    return target(x_0, eps, batch.x_t, batch.t, schedule, parameterization)


def config(parameterization: str, **choices: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"parameterization": parameterization, **choices})


def x_0_weights(weighting: str, snr: Tensor) -> Tensor:
    """The weights of a squared error of x_0, as the sources give them, at their defaults here."""
    sigma, sigma_data = 1 / snr.sqrt(), 0.5
    return {
        "min_snr": snr.clamp(max=5.0),
        "p2": snr / (1 + snr),
        "edm": (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2,
    }[weighting]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_weighting_is_the_same_loss_in_every_parameterization(
    name: str, weighting: str, parameterization: Parameterization
) -> None:
    schedule, t = make_schedule(name), torch.arange(T)  # type: ignore[arg-type]
    batch = noised(schedule, t)
    output = wrong_output(batch, schedule, parameterization)
    loss = training_losses(output, batch, schedule, config(parameterization, weighting=weighting), LEVELS).total
    error = (0.3 * draw(3, *batch.x_0.shape)).square().flatten(1).mean(1)
    bar = (1 - schedule.betas).cumprod(0)
    torch.testing.assert_close(loss, x_0_weights(weighting, bar / (1 - bar)) * error, rtol=1e-9, atol=0)


def test_known_special_cases_of_the_weightings() -> None:
    schedule, t = make_schedule("cosine"), torch.arange(T)
    snr = schedule.log_snr(t).exp()
    weight = simple_weight(t, schedule, config("eps", weighting="p2", p2_gamma=0.5, p2_k=2.0))
    torch.testing.assert_close(weight, (2 + snr) ** -0.5, rtol=1e-12, atol=0)  # Choi et al. 2022, Eq. 8
    ones = torch.ones(T, dtype=torch.float64)
    for same_as_none in (
        config("eps", weighting="p2", p2_gamma=0.0),  # P2 without its exponent is L_simple of eps
        config("v", weighting="edm", edm_sigma_data=1.0),  # EDM for data of unit variance is L_simple of v
        config("eps", weighting="min_snr", min_snr_gamma=1e300),  # no SNR is cut
        config("mu"),
    ):
        torch.testing.assert_close(simple_weight(t, schedule, same_as_none), ones, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_finite_without_signal_and_without_noise(weighting: str) -> None:
    ends = torch.tensor([-math.inf, -745.0, -50.0, 0.0, 50.0, 700.0], dtype=torch.float64)
    assert bool(v_weight(ends, config("v", weighting=weighting)).isfinite().all())
    schedule, t = make_schedule("cosine", zero_terminal_snr=True), torch.arange(T)
    for parameterization in PARAMETERIZATIONS:
        weight = simple_weight(t, schedule, config(parameterization, weighting=weighting))
        assert bool(weight.isfinite().all()), parameterization
        assert float(weight.min()) >= 0
    at_zero = {"min_snr": 0.0, "p2": 0.0, "edm": 4.0}[weighting]  # there a squared error of x_0 and of v are the same
    for parameterization in ("x_0", "v"):
        assert float(simple_weight(t, schedule, config(parameterization, weighting=weighting))[-1]) == at_zero


def with_variance(mean: Tensor, variance: ReverseVariance, fraction: float | None = None) -> Tensor:
    """Return a whole output: `mean`, and where the variance is learned the v of a fraction, or of random ones."""
    if variance != "learned":
        return mean
    v = draw(4, *mean.shape).to(mean.dtype) if fraction is None else torch.full_like(mean, 2 * fraction - 1)
    return torch.cat([mean, v], 1)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_bound_as_a_loss_is_t_times_its_terms(
    parameterization: Parameterization, variance: ReverseVariance
) -> None:
    schedule, t = make_schedule("cosine", 200), torch.arange(200)
    batch = noised(schedule, t)
    output = with_variance(wrong_output(batch, schedule, parameterization), variance)
    objective = config(parameterization, loss="bound", variance=variance)
    losses = training_losses(output, batch, schedule, objective, LEVELS)
    prediction = to_prediction(output, batch.x_t, t, schedule, parameterization)
    terms = transition_term(batch.x_0, batch.x_t, t, prediction, schedule, variance)
    fraction = None if prediction.variance_fraction is None else prediction.variance_fraction[:1]
    first = Prediction(prediction.x_0[:1], prediction.eps[:1], fraction)
    terms[0] = decoder_term(batch.x_0[:1], batch.x_t[:1], first, schedule, LEVELS, variance)[0]
    expected = 200 * bits_per_dim(terms, 18)
    torch.testing.assert_close(losses.total, expected, rtol=1e-9, atol=1e-12)
    assert losses.simple is None
    assert losses.parts() == {"bound": losses.total}


@pytest.mark.parametrize("variance", VARIANCES)
def test_over_all_times_the_loss_is_the_bound(variance: ReverseVariance) -> None:
    """Mean over t of the loss, with L_T added, is the bound in bits/dim: same noise, same denoiser."""
    schedule = make_schedule("linear", 30)
    x_0 = gray(5, 1, 2, 2, 2)
    noise = NoiseSource(0, [0], (2, 2, 2), dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return with_variance(torch.tanh(2 * x), variance, fraction=0.3)

    bound = variational_bound(
        network_denoiser(network, schedule, "x_0"), schedule, x_0, noise, levels=LEVELS, variance=variance
    )
    t = torch.arange(30)
    eps = torch.cat([noise.normal(k, "bound") for k in range(30)])
    repeated = x_0.expand(30, 2, 2, 2)
    batch = Noised(repeated, eps, process.q_sample(repeated, t, eps, schedule), t)
    objective = config("x_0", loss="bound", variance=variance)
    losses = training_losses(network(batch.x_t, t), batch, schedule, objective, LEVELS).total
    ours = losses.mean() + bits_per_dim(prior_term(x_0, schedule), 8)[0]
    assert abs(float(ours - bits_per_dim(bound.total, 8)[0])) < 1e-10


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_a_learned_variance_spans_the_fixed_ones(fraction: float, fixed: ReverseVariance) -> None:
    schedule, t = make_schedule("linear"), torch.arange(0, T, 7)
    batch = noised(schedule, t)
    mean = wrong_output(batch, schedule, "v")
    learned = training_losses(
        with_variance(mean, "learned", fraction), batch, schedule, config("v", loss="bound", variance="learned"), LEVELS
    )
    expected = training_losses(mean, batch, schedule, config("v", loss="bound", variance=fixed), LEVELS)
    torch.testing.assert_close(learned.total, expected.total, rtol=1e-9, atol=0)


def gradients(output: Tensor, batch: Noised, schedule: NoiseSchedule, objective: ObjectiveConfig) -> Tensor:
    output = output.clone().requires_grad_()
    training_losses(output, batch, schedule, objective, LEVELS).total.sum().backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    return output.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_hybrid_moves_the_mean_as_the_simple_loss_alone_to_the_bit(
    parameterization: Parameterization, dtype: torch.dtype
) -> None:
    """The stop-gradient of Nichol & Dhariwal 2021: the bound has no say in the mean, L_simple none in the variance."""
    schedule, t = make_schedule("cosine"), torch.cat([torch.zeros(5, dtype=torch.int64), torch.arange(0, T, 11)])
    exact = noised(schedule, t)
    batch = Noised(exact.x_0.to(dtype), exact.eps.to(dtype), exact.x_t.to(dtype), t)
    mean = wrong_output(exact, schedule, parameterization).to(dtype)
    output = with_variance(mean, "learned")
    choices = {"weighting": "min_snr", "bound_weight": 0.01}
    hybrid = gradients(output, batch, schedule, config(parameterization, loss="hybrid", variance="learned", **choices))
    simple = gradients(mean, batch, schedule, config(parameterization, weighting="min_snr"))
    bound = gradients(output, batch, schedule, config(parameterization, loss="bound", variance="learned"))
    assert torch.equal(hybrid[:, :2], simple)
    off = (hybrid[:, 2:] - 0.01 * bound[:, 2:]).abs().max()
    assert float(off / hybrid[:, 2:].abs().max()) < (1e-10 if dtype == torch.float64 else 1e-5)
    assert float(bound[:, :2].abs().max()) > 0  # which the hybrid leaves out
    assert float(hybrid[:, 2:].abs().max()) > 0


@pytest.mark.parametrize("levels", [2, 17, 256, 65_536])
def test_the_decoder_has_finite_gradients_however_wrong_the_network(levels: int) -> None:
    schedule, t = make_schedule("linear"), torch.zeros(6, dtype=torch.int64)
    ends = torch.tensor([-1.0, 1.0]).repeat(3).reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    eps = draw(2, 6, 1, 2, 2).float()
    batch = Noised(ends, eps, process.q_sample(ends, t, eps, schedule), t)
    for wrong in (0.0, 1.0, -3.0, 30.0):
        output = torch.cat([torch.full_like(ends, wrong), torch.zeros_like(ends)], 1).requires_grad_()
        objective = config("x_0", loss="bound", variance="learned")
        losses = training_losses(output, batch, schedule, objective, levels).total
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert output.grad is not None
        assert bool(losses.isfinite().all())
        assert bool(output.grad.isfinite().all())


def test_continuous_data_have_a_density_in_place_of_bins() -> None:
    schedule, t = make_schedule("cosine", 10), torch.zeros(3, dtype=torch.int64)
    batch = noised(schedule, t)
    output = batch.x_0 + 0.1
    loss = training_losses(output, batch, schedule, config("x_0", loss="bound"), None).total
    normal = torch.distributions.Normal(output, float(schedule.betas[0]) ** 0.5)
    expected = -10 * normal.log_prob(batch.x_0).flatten(1).sum(1) / (18 * math.log(2))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_float32_is_enough_for_a_good_prediction(parameterization: Parameterization) -> None:
    """Two means that differ in their last digits would lose the term; the error of the output does not."""
    schedule, t = make_schedule("linear"), torch.arange(1, T)
    exact = noised(schedule, t)
    objective = config(parameterization, loss="bound", variance="fixed_small")
    # The error of the output is what a network makes, so it is this that is small, and the same in both precisions.
    wanted = target(exact.x_0, exact.eps, exact.x_t, t, schedule, parameterization)
    single = Noised(exact.x_0.float(), exact.eps.float(), exact.x_t.float(), t)
    off = 0.01 * draw(3, *wanted.shape)
    single_wanted = target(single.x_0, single.eps, single.x_t, t, schedule, parameterization)
    in_64 = training_losses(wanted + off, exact, schedule, objective, LEVELS).total
    in_32 = training_losses(single_wanted + off.float(), single, schedule, objective, LEVELS).total
    torch.testing.assert_close(in_32.double(), in_64, rtol=1e-3, atol=0)


def test_zero_terminal_snr_has_finite_losses() -> None:
    schedule, t = make_schedule("cosine", zero_terminal_snr=True), torch.tensor([0, 1, T - 2, T - 1])
    batch = noised(schedule, t)
    for parameterization in ("v", "x_0"):
        mean = wrong_output(batch, schedule, parameterization)  # type: ignore[arg-type]
        output = with_variance(mean, "learned")
        objective = config(parameterization, loss="hybrid", variance="learned", weighting="min_snr")
        assert bool(training_losses(output, batch, schedule, objective, LEVELS).total.isfinite().all())
        assert bool(gradients(output, batch, schedule, objective).isfinite().all())


def test_an_output_of_the_wrong_kind_is_refused() -> None:
    schedule, t = make_schedule("linear"), torch.tensor([3, 4])
    batch = noised(schedule, t)
    objective = config("v", loss="hybrid", variance="learned")
    with pytest.raises(ConfigError, match="'learned', but the network has no output for the variance"):
        training_losses(batch.x_t, batch, schedule, objective, LEVELS)
    with pytest.raises(ConfigError, match="'fixed_large', but the network has an output for a learned variance"):
        training_losses(with_variance(batch.x_t, "learned"), batch, schedule, config("v"), LEVELS)
    with pytest.raises(ConfigError, match=r"output is \[2, 1, 3, 3\].*twice the channels"):
        training_losses(batch.x_t[:, :1], batch, schedule, config("v"), LEVELS)


def test_losses_of_parts_are_those_of_the_whole() -> None:
    schedule, t = make_schedule("linear"), torch.tensor([0, 4, 0, 8, 9])
    batch = noised(schedule, t)
    output = with_variance(batch.x_t, "learned")
    objective = config("v", loss="hybrid", variance="learned")
    whole = training_losses(output, batch, schedule, objective, LEVELS)
    parts = [
        training_losses(output[k], Noised(batch.x_0[k], batch.eps[k], batch.x_t[k], t[k]), schedule, objective, LEVELS)
        for k in (slice(0, 2), slice(2, 5))
    ]
    joined = concatenated(parts)
    assert joined.parts().keys() == whole.parts().keys() == {"simple", "bound"}
    torch.testing.assert_close(joined.total, whole.total, rtol=1e-12, atol=0)
    for name, part in joined.parts().items():
        torch.testing.assert_close(part, whole.parts()[name], rtol=1e-12, atol=0)
