"""The contract that every sampler keeps."""

import inspect
from typing import Any, get_args

import pytest
import torch
from sampler_cases import (
    DRAWS_NOTHING,
    VARIANTS,
    CountedNoise,
    every_sampler,
    every_variant,
    largest,
    last,
    source,
    wild_denoiser,
)
from torch import Tensor

from ddpm.config import sampling as sampling_config
from ddpm.diffusion.analytic import PointDenoiser
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.process import eps_from_x_0
from ddpm.diffusion.samplers import SAMPLERS, adaptive, ddpm
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.errors import SamplingError


def test_the_configuration_knows_the_same_samplers() -> None:
    assert get_args(sampling_config.SamplerName) == tuple(SAMPLERS)
    assert sampling_config.SamplingConfig().sampler == next(iter(SAMPLERS))


@every_sampler
def test_the_configuration_knows_the_same_options(name: sampling_config.SamplerName) -> None:
    assert sampling_config.SAMPLER_OPTIONS[name] == SAMPLERS[name].options
    assert set(SAMPLERS[name].options) <= sampling_config.SamplingConfig.model_fields.keys()


@every_sampler
def test_evaluations_a_step_are_those_of_the_registry(name: str) -> None:
    """In the long run; the last step and PNDM's first three are others."""
    schedule, noise, calls = make_schedule("cosine", 10), source(0, 3, 2), [0]

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        calls[0] += 1
        return wild_denoiser(schedule)(x_t, t)

    made = []
    for _ in SAMPLERS[name].run(denoiser, schedule, noise.normal(0, "x_T"), noise):
        made.append(calls[0] - sum(made))
    expected = SAMPLERS[name].evaluations
    assert expected is None or made[4:-1] == [expected] * 5
    assert made[-1] <= (expected or 1) + 1
    assert name != "pndm" or made[:4] == [4, 4, 4, 1]


def remembering(schedule: NoiseSchedule) -> Denoiser:
    """A denoiser that uses its previous prediction, as self-conditioning does."""

    def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        plain = wild_denoiser(schedule)(x_t, t)
        x_0 = plain.x_0 if previous is None else 0.9 * plain.x_0 + 0.1 * previous.x_0
        return Prediction(x_0, eps_from_x_0(x_0, x_t, t, schedule))

    return denoise


@every_sampler
def test_arguments_are_the_same_in_every_sampler(name: str) -> None:
    parameters = inspect.signature(SAMPLERS[name].run).parameters
    assert list(parameters)[:4] == ["denoiser", "schedule", "x_T", "noise"]
    assert {"timesteps", "after_step"} <= set(parameters)
    keywords = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert all(p.default is not p.empty for p in keywords)


@every_sampler
def test_steps_tell_where_they_are(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    steps = list(
        SAMPLERS[name].run(wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise, timesteps=[8, 3, 0])
    )
    assert [(s.index, s.num_steps, s.t, s.s) for s in steps] == [(0, 3, 8, 3), (1, 3, 3, 0), (2, 3, 0, -1)]
    every = list(SAMPLERS[name].run(wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise))
    assert [s.t for s in every] == list(range(9, -1, -1))


@every_variant
def test_a_step_is_yielded_after_its_update_with_the_prediction_made_before(variant: str) -> None:
    """Not after churn, which moves x before the prediction."""
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    denoiser, x = wild_denoiser(schedule), noise.normal(0, "x_T")
    for step in VARIANTS[variant](denoiser, schedule, x, noise):
        expected = denoiser(x, torch.full((3,), step.t, dtype=torch.float64))
        assert "churn" in variant or torch.equal(step.prediction.x_0, expected.x_0)
        assert not torch.equal(step.x, x)
        x = step.x
    if variant != "langevin":  # which goes on for some steps before its last prediction
        assert largest(x - step.prediction.x_0) < 1e-15


@every_variant
def test_nothing_that_was_given_or_yielded_is_changed_later(variant: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    x_T = noise.normal(0, "x_T")
    seen, copies = [x_T], [x_T.clone()]
    for step in VARIANTS[variant](wild_denoiser(schedule), schedule, x_T, noise):
        seen.append(step.x)
        copies.append(step.x.clone())
    assert all(torch.equal(x, copy) for x, copy in zip(seen, copies, strict=True))


@every_variant
@pytest.mark.parametrize("times", [[9, 4, 0], [9], [6, 2]])
def test_the_last_step_adds_no_noise(variant: str, times: list[int]) -> None:
    """Langevin dynamics and churn draw before the last prediction; after it nothing is added."""
    schedule = make_schedule("cosine", 10)
    noise = CountedNoise(lambda call: torch.ones(3, 2, dtype=torch.float64))
    x_T = source(0, 3, 2).normal(0, "x_T")
    list(VARIANTS[variant](wild_denoiser(schedule), schedule, x_T, noise, timesteps=times))
    steps = [draw for purpose, draw in noise.asked if purpose == "step"]
    if variant in DRAWS_NOTHING:
        assert noise.asked == []
    elif variant != "langevin" and "churn" not in variant:
        assert steps == list(range(len(times) - 1))
    assert len(set(noise.asked)) == len(noise.asked)


@every_sampler
def test_after_step_has_the_last_word(name: str) -> None:
    """It sees x_s and s; what it returns is yielded and stepped on from."""
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    seen: list[float] = []

    def after_step(x_s: Tensor, s: Tensor) -> Tensor:
        seen.append(float(s))
        return torch.full_like(x_s, float(s))

    inputs: list[Tensor] = []

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        inputs.append(x_t)
        return wild_denoiser(schedule)(x_t, t)

    common = (denoiser, schedule, noise.normal(0, "x_T"), noise)
    steps = list(SAMPLERS[name].run(*common, timesteps=[9, 5, 1], after_step=after_step))
    assert seen == [5, 1, -1]
    assert [float(step.x.unique()) for step in steps] == [5, 1, -1]
    first_values = dict.fromkeys(float(x[0, 0]) for x in inputs)  # in their order; some are evaluated more than once
    assert [value for value in first_values if value in (5, 1)] == [5, 1]


@every_sampler
def test_the_previous_prediction_is_handed_on(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    received: list[Prediction | None] = []
    made: list[Prediction] = []

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        received.append(previous)
        made.append(wild_denoiser(schedule)(x_t, t))
        return made[-1]

    list(SAMPLERS[name].run(denoiser, schedule, noise.normal(0, "x_T"), noise, timesteps=[9, 5, 1]))
    assert received[0] is None
    if name == "adaptive":  # for each picture that of its own last step, whatever the others tried since
        assert all(previous is not None for previous in received[1:])
    else:
        assert all(a is b for a, b in zip(received[1:], made, strict=False))


@every_sampler
def test_denoisers_get_one_time_a_picture(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        assert t.shape == (3,)
        assert t.dtype == torch.float64
        assert not torch.is_grad_enabled()
        with torch.enable_grad():  # a guidance wrapper does: inference mode would forbid it
            assert x_t.detach().requires_grad_().square().sum().requires_grad
        return wild_denoiser(schedule)(x_t, t)

    for _ in SAMPLERS[name].run(denoiser, schedule, noise.normal(0, "x_T"), noise):
        assert torch.is_grad_enabled()  # the caller's setting comes back between the steps


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_and_shape_are_those_of_x_T(variant: str, dtype: torch.dtype) -> None:
    schedule = make_schedule("cosine", 10)
    for noise_dtype in (torch.float32, torch.float64):
        noise = NoiseSource(0, range(2), (3, 4, 4), dtype=noise_dtype)
        x_T = noise.normal(0, "x_T").to(dtype)
        denoiser = PointDenoiser(schedule, torch.linspace(-1, 1, 48))
        for step in VARIANTS[variant](denoiser, schedule, x_T, noise):
            assert step.x.dtype == dtype
            assert step.x.shape == x_T.shape


@pytest.mark.parametrize("variant", [*VARIANTS, "adaptive"])
def test_a_picture_is_the_same_in_every_batch(variant: str) -> None:
    schedule = make_schedule("cosine", 10)
    sampler = adaptive if variant == "adaptive" else VARIANTS[variant]

    def sample(pictures: list[int]) -> Tensor:
        noise = NoiseSource(3, pictures, (2,), dtype=torch.float64)
        return last(sampler(remembering(schedule), schedule, noise.normal(0, "x_T"), noise, timesteps=[9, 3]))

    together = sample([0, 1, 2, 3, 4])
    assert torch.equal(sample([3]), together[3:4])
    assert torch.equal(sample([4, 0]), together[[4, 0]])
    assert len(together.unique(dim=0)) == 5


@every_sampler
def test_a_step_is_computed_when_it_is_asked_for(name: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    calls: list[float] = []

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        calls.append(float(t[0]))
        return wild_denoiser(schedule)(x_t, t)

    steps = SAMPLERS[name].run(denoiser, schedule, noise.normal(0, "x_T"), noise)
    assert calls == []
    next(steps)
    assert calls[0] == 9
    assert min(calls) >= 8
    next(steps)
    assert min(calls) >= 7


# Refusals


@every_sampler
@pytest.mark.parametrize(
    ("timesteps", "complaint"),
    [
        ([], "no timesteps"),
        ([3, 5, 1], "strictly decreasing"),
        ([5, 5, 1], "strictly decreasing"),
        ([10, 5], "run from 10 to 5; expected them within 9 to 0"),
        ([5, -1], "run from 5 to -1; expected them within 9 to 0"),
        ([5, -0.5], "expected them within 9 to 0"),
    ],
)
def test_times_that_cannot_be_walked_are_refused_at_once(name: str, timesteps: list[float], complaint: str) -> None:
    """When the sampler is called, not at its first step."""
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    with pytest.raises(SamplingError, match=complaint):
        SAMPLERS[name].run(wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise, timesteps=timesteps)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("ddim", {"eta": -0.1}, "eta is -0.1; expected 0"),
        ("ddim", {"eta": 1.1}, "eta is 1.1; expected 0"),
        ("ddim", {"eta": float("nan")}, "eta is nan; expected 0"),
        ("unipc", {"order": 4}, "order is 4; expected 1 to 3"),
        ("unipc", {"variant": "bh3"}, "unknown variant 'bh3'; did you mean 'bh"),
        ("deis", {"order": 0}, "order is 0; expected 1 to 3"),
        ("lms", {"order": 5}, "order is 5; expected 1 to 4"),
        ("lms", {"order": 2.0}, "order is 2.0; expected 1 to 4"),
        ("heun", {"churn": -1.0}, "churn is -1.0; expected a number from 0"),
        ("euler", {"churn": float("nan")}, "churn is nan; expected"),
        ("euler", {"churn_range": (2.0, 1.0)}, "churn_range is .*the smaller first"),
        ("heun", {"churn_noise": -1.0}, "churn_noise is -1.0; expected"),
        ("langevin", {"inner_steps": 0}, "inner_steps is 0; expected at least 1"),
        ("langevin", {"step_size": 2.0}, "step_size is 2.0; expected above 0 and below 2"),
        ("predictor_corrector", {"snr": 1.0}, "snr is 1.0; expected above 0 and below 1"),
        ("predictor_corrector", {"corrector_steps": 0}, "corrector_steps is 0; expected at least 1"),
        ("adaptive", {"tolerance": 0.0}, "tolerance is 0.0; expected a number above 0"),
        ("adaptive", {"absolute_tolerance": float("inf")}, "absolute_tolerance is inf; expected"),
    ],
)
def test_options_out_of_range_are_refused_at_once(name: str, options: dict[str, Any], complaint: str) -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    with pytest.raises(SamplingError, match=complaint):
        SAMPLERS[name].run(wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise, **options)


def test_a_network_that_returns_nan_ends_the_adaptive_sampler() -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)

    def denoiser(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        return Prediction(x_t * torch.nan, x_t)

    with pytest.raises(SamplingError, match=r"stays above the tolerance.*use another sampler"):
        last(adaptive(denoiser, schedule, noise.normal(0, "x_T"), noise))


def test_unknown_variances_are_refused() -> None:
    schedule, noise = make_schedule("cosine", 10), source(0, 3, 2)
    common = (wild_denoiser(schedule), schedule, noise.normal(0, "x_T"), noise)
    with pytest.raises(SamplingError, match="'fixed_big'; did you mean 'fixed_"):
        ddpm(*common, variance="fixed_big")  # type: ignore[arg-type]
    with pytest.raises(SamplingError, match="this model's variance is fixed; use 'fixed_large'"):
        next(ddpm(*common, variance="learned"))
