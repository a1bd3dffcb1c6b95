"""Guidance on mixtures, where the conditional score, the classifier and its gradient are all known exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.diffusion import process
from ddpm.diffusion.analytic import MixtureDenoiser
from ddpm.diffusion.denoiser import Prediction, bound
from ddpm.diffusion.guidance import (
    Guidance,
    LogProbability,
    autoguided,
    classifier_free,
    classifier_guided,
    gradient,
    mean_shift,
)
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, ddpm, spaced_timesteps
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.errors import SamplingError

SCHEDULE = make_schedule("cosine", 200)
ZERO = make_schedule("linear", 50, zero_terminal_snr=True)
CLASSES = torch.tensor([0, 0, 1])  # of the three components
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MEANS = torch.tensor([[-0.8, 0.5], [-0.2, -0.6], [0.6, 0.3]], dtype=torch.float64)
VARIANCES = torch.tensor([0.02, 0.1, 0.05], dtype=torch.float64)


def mixture(label: int | None = None, schedule: NoiseSchedule = SCHEDULE) -> MixtureDenoiser:
    kept = torch.ones(3, dtype=torch.bool) if label is None else label == CLASSES
    return MixtureDenoiser(schedule, WEIGHTS[kept] / WEIGHTS[kept].sum(), MEANS[kept], VARIANCES[kept])


@dataclass
class Exact:
    """The conditional denoiser of the mixture; -1 is the whole of it. It counts rows and calls."""

    schedule: NoiseSchedule = SCHEDULE
    rows: list[int] = field(default_factory=list)
    previous: list[Prediction | None] = field(default_factory=list)

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, previous: Prediction | None = None
    ) -> Prediction:
        self.rows.append(len(x_t))
        self.previous.append(previous)
        labels = torch.full((len(x_t),), -1) if condition is None else condition.label
        assert labels is not None
        whole, parts = mixture(None, self.schedule)(x_t, t), [mixture(k, self.schedule)(x_t, t) for k in (0, 1)]
        every = [torch.stack([getattr(p, name) for p in (*parts, whole)]) for name in ("x_0", "eps")]
        x_0, eps = (each[labels, torch.arange(len(x_t))] for each in every)
        return Prediction(x_0, eps, labels.double().unsqueeze(1).expand_as(x_0))


def classifier(labels: Tensor, schedule: NoiseSchedule = SCHEDULE) -> LogProbability:
    """log p(y | x_t) by Bayes' rule."""

    def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = (each.unsqueeze(1) for each in schedule.signal_and_noise(t))
        joint = mixture(None, schedule).log_density(x_t, signal, noise)
        of_class = torch.stack([joint[:, k == CLASSES].logsumexp(1) for k in (0, 1)], 1)
        return (of_class - joint.logsumexp(1, keepdim=True))[torch.arange(len(x_t)), labels]

    return log_probability


def some(count: int = 40, schedule: NoiseSchedule = SCHEDULE) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t over the whole schedule, labels."""
    x_t = 1.5 * NoiseSource(0, range(count), (2,), dtype=torch.float64).normal(0, "test")
    return x_t, torch.linspace(0, len(schedule) - 1, count, dtype=torch.float64), torch.arange(count) % 2


def apart(first: Prediction, second: Prediction) -> float:
    return max(float((first.x_0 - second.x_0).abs().max()), float((first.eps - second.eps).abs().max()))


# Classifier guidance -------------------------------------------------------------------------------------------------


def test_an_exact_classifier_at_scale_one_gives_the_conditional_score() -> None:
    x_t, t, labels = some()
    guided = classifier_guided(mixture(), classifier(labels), Guidance(1.0), SCHEDULE)(x_t, t)
    wanted = Exact()(x_t, t, Condition(label=labels))
    signal, noise = (each.unsqueeze(1) for each in SCHEDULE.signal_and_noise(t))
    assert (guided.eps / noise - wanted.eps / noise).abs().max() < 1e-8
    assert (signal * (guided.x_0 - wanted.x_0)).abs().max() < 1e-8
    assert (guided.eps - mixture()(x_t, t).eps).abs().max() > 0.1


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_with_exact_parts_both_kinds_of_guidance_are_one(scale: float) -> None:
    x_t, t, labels = some()
    by_classifier = classifier_guided(mixture(), classifier(labels), Guidance(scale), SCHEDULE)(x_t, t)
    free = classifier_free(Exact(), Condition(label=labels), Guidance(scale), SCHEDULE)(x_t, t)
    assert (by_classifier.eps - free.eps).abs().max() < 1e-8


def test_guidance_of_a_conditional_model_adds_up() -> None:
    x_t, t, labels = some()
    conditional = bound(Exact(), Condition(label=labels))
    twice = classifier_guided(conditional, classifier(labels), Guidance(1.5), SCHEDULE)(x_t, t)
    free = classifier_free(Exact(), Condition(label=labels), Guidance(2.5), SCHEDULE)(x_t, t)
    assert (twice.eps - free.eps).abs().max() < 1e-8


def test_the_prediction_stays_one_prediction_of_x_t() -> None:
    x_t, t, labels = some()
    condition = Condition(label=labels)
    for denoiser in (
        classifier_guided(mixture(), classifier(labels), Guidance(3.0, (20, 150), 0.5), SCHEDULE),
        classifier_free(Exact(), condition, Guidance(3.0, (20, 150), 0.5), SCHEDULE),
        autoguided(bound(Exact(), condition), mixture(), Guidance(2.0), SCHEDULE),
    ):
        found = denoiser(x_t, t)
        assert (process.q_sample(found.x_0, t, found.eps, SCHEDULE) - x_t).abs().max() < 1e-9


def test_pure_noise_says_nothing_of_the_class() -> None:
    x_t, _, labels = some(6, ZERO)
    last = torch.full((6,), 49.0, dtype=torch.float64)
    found = classifier_guided(mixture(None, ZERO), classifier(labels, ZERO), Guidance(4.0), ZERO)(x_t, last)
    assert apart(found, mixture(None, ZERO)(x_t, last)) < 1e-12


def test_the_gradient_is_that_of_log_p_and_leaves_no_graph() -> None:
    x_t, t, labels = some(5)
    log_probability = classifier(labels)
    with torch.no_grad():
        found = gradient(log_probability, x_t, t)
    h = 1e-6
    for axis in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[axis]
        slope = (log_probability(x_t + step, t) - log_probability(x_t - step, t)) / (2 * h)
        assert (found[:, axis] - slope).abs().max() < 1e-6
    assert not found.requires_grad
    assert not x_t.requires_grad


def kinds_at(steps: int, count: int = 300) -> dict[str, Tensor]:
    """Samples of class 1 at scale 1.5, by the two forms, from the same noise."""
    labels, times = torch.ones(count, dtype=torch.int64), spaced_timesteps(steps, SCHEDULE)
    source = NoiseSource(0, range(count), (2,), dtype=torch.float64)
    x_T, guidance, by = source.normal(0, "x_T"), Guidance(1.5), classifier(labels)
    score = classifier_guided(mixture(), by, guidance, SCHEDULE)
    found = {}
    for name, denoiser, shift in (("score", score, None), ("mean", mixture(), mean_shift(by, guidance))):
        walk = ddpm(denoiser, SCHEDULE, x_T, source, timesteps=times, variance="fixed_small", mean_shift=shift)
        *_, last = walk
        found[name] = last.x
    return found


def test_mean_and_score_form_differ_in_few_steps_and_agree_in_many() -> None:
    distance = {}
    for steps in (10, 50, 200):
        found = kinds_at(steps)
        distance[steps] = float((found["score"] - found["mean"]).square().mean().sqrt())
    assert distance[10] > 0.05
    assert distance[200] < 0.6 * distance[50] < 0.6 * distance[10]


def test_the_mean_form_at_scale_zero_is_no_guidance_and_shifts_by_the_variance() -> None:
    x_t, t, labels = some(8)
    shift = mean_shift(classifier(labels), Guidance(2.0, (50, 120)))
    moved = shift(x_t, t, torch.tensor(0.3, dtype=torch.float64))
    inside = (t >= 50) & (t <= 120)
    assert (moved[~inside] == 0).all()
    assert (moved[inside] - 0.6 * gradient(classifier(labels), x_t, t)[inside]).abs().max() < 1e-12
    assert (mean_shift(classifier(labels), Guidance(0.0))(x_t, t, torch.tensor(1.0)) == 0).all()


# Classifier-free guidance --------------------------------------------------------------------------------------------


def test_the_formula_written_out_in_one_pass() -> None:
    x_t, t, labels = some()
    exact, condition = Exact(), Condition(label=labels)
    found = classifier_free(exact, condition, Guidance(3.0), SCHEDULE)(x_t, t)
    assert exact.rows == [2 * len(x_t)]
    towards, away = Exact()(x_t, t, condition), Exact()(x_t, t, condition.dropped())
    wanted = Prediction(3 * towards.x_0 - 2 * away.x_0, 3 * towards.eps - 2 * away.eps)
    assert apart(found, wanted) < 1e-9
    assert found.variance_fraction is not None
    assert torch.equal(found.variance_fraction, towards.variance_fraction)


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(1.0, (10, 20), 0.7), Guidance(4.0, (300, 400))])
def test_at_scale_one_or_outside_the_interval_it_is_the_conditional_bit_for_bit(guidance: Guidance) -> None:
    x_t, t, labels = some()
    exact, condition = Exact(), Condition(label=labels)
    found = classifier_free(exact, condition, guidance, SCHEDULE)(x_t, t)
    assert exact.rows == [len(x_t)]
    assert apart(found, Exact()(x_t, t, condition)) == 0


def test_at_scale_zero_it_is_the_unconditional_in_one_plain_pass() -> None:
    x_t, t, labels = some()
    exact = Exact()
    found = classifier_free(exact, Condition(label=labels), Guidance(0.0), SCHEDULE)(x_t, t)
    assert exact.rows == [len(x_t)]
    assert apart(found, mixture()(x_t, t)) < 1e-12


def test_against_another_condition() -> None:
    x_t, t, labels = some()
    towards, away = Condition(label=labels), Condition(label=1 - labels)
    found = classifier_free(Exact(), towards, Guidance(2.0), SCHEDULE, against=away)(x_t, t)
    wanted = 2 * Exact()(x_t, t, towards).eps - Exact()(x_t, t, away).eps
    assert (found.eps - wanted).abs().max() < 1e-9


def test_an_interval_chooses_row_by_row() -> None:
    x_t, t, labels = some()
    condition = Condition(label=labels)
    found = classifier_free(Exact(), condition, Guidance(3.0, (50, 100)), SCHEDULE)(x_t, t)
    always = classifier_free(Exact(), condition, Guidance(3.0), SCHEDULE)(x_t, t)
    plain = Exact()(x_t, t, condition)
    inside = (t >= 50) & (t <= 100)
    assert 0 < inside.sum() < len(t)
    assert torch.equal(found.x_0[inside], always.x_0[inside])
    assert torch.equal(found.x_0[~inside], plain.x_0[~inside])


def test_both_halves_see_the_step_before() -> None:
    x_t, t, labels = some(4)
    exact, before = Exact(), mixture()(*some(4)[:2])
    classifier_free(exact, Condition(label=labels), Guidance(2.0), SCHEDULE)(x_t, t, before)
    (seen,) = exact.previous
    assert seen is not None
    assert torch.equal(seen.x_0, torch.cat([before.x_0, before.x_0]))


def test_rescale_brings_the_contrast_back() -> None:
    x_t, t, labels = some()
    condition = Condition(label=labels)
    plain = Exact()(x_t, t, condition)
    free, full = (
        classifier_free(Exact(), condition, Guidance(5.0, rescale=share), SCHEDULE)(x_t, t) for share in (0.0, 1.0)
    )
    deviation = plain.x_0.std(1, correction=0)
    assert (full.x_0.std(1, correction=0) / deviation - 1).abs().max() < 1e-9
    assert (free.x_0.std(1, correction=0) / deviation - 1).abs().max() > 0.5


def test_autoguidance_is_a_line_through_two_models() -> None:
    x_t, t, _ = some()
    found = autoguided(mixture(1), mixture(), Guidance(2.5), SCHEDULE)(x_t, t)
    wanted = mixture()(x_t, t).eps + 2.5 * (mixture(1)(x_t, t).eps - mixture()(x_t, t).eps)
    assert (found.eps - wanted).abs().max() < 1e-9
    same = autoguided(mixture(1), mixture(), Guidance(1.0), SCHEDULE)(x_t, t)
    assert apart(same, mixture(1)(x_t, t)) == 0


@pytest.mark.parametrize("name", ["ddim", "unipc", "heun", "ddpm", "adaptive"])
def test_any_sampler_can_be_guided(name: str) -> None:
    """At scale 1, samples of class 1 come from the third component, whatever the sampler."""
    count = 200
    source = NoiseSource(0, range(count), (2,), dtype=torch.float64)
    denoiser = classifier_guided(mixture(), classifier(torch.ones(count, dtype=torch.int64)), Guidance(1.0), SCHEDULE)
    times = spaced_timesteps(40, SCHEDULE, SAMPLERS[name].spacing)
    *_, last = SAMPLERS[name].run(denoiser, SCHEDULE, source.normal(0, "x_T"), source, timesteps=times)
    assert (last.x.mean(0) - MEANS[2]).abs().max() < 0.08
    assert ((last.x - MEANS[2]).square().mean(0) / VARIANCES[2] - 1).abs().max() < 0.45


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scale": -1.0}, "guidance scale -1.0; expected"),
        ({"scale": float("nan")}, "guidance scale nan"),
        ({"scale": 2.0, "interval": (5.0, 3.0)}, "guidance interval"),
        ({"scale": 2.0, "rescale": 1.5}, "guidance rescale 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(SamplingError, match=said):
        Guidance(**values)  # type: ignore[arg-type]
