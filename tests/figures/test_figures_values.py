"""What the figures show is what the mathematics says."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.diffusion.analytic import finite_set_denoiser
from ddpm.diffusion.noise import stream
from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, make_schedule
from ddpm.figures.errata import errata_noise, errata_posterior, errata_reverse, errata_weights, reverse_log10_variances
from ddpm.figures.errata_steps import (
    deviation_ratios,
    errata_decoder,
    errata_schedule,
    errata_step,
    errata_variance,
)
from ddpm.figures.estimators import (
    bound_estimators,
    estimate_bound,
    path_gradient_variance,
    reparameterisation,
    score_gradient_variance,
    two_peaks_denoiser,
)
from ddpm.figures.forward import FreeStep, density, drift_and_noise, forward_histograms, forward_variance, lopsided
from ddpm.figures.guidance import class_probability, guided_points, spread, two_classes
from ddpm.figures.learned import relative_error, score_learned
from ddpm.figures.posterior import (
    TWO_PEAKS,
    Mixture,
    gaussian_density,
    loss_weights,
    non_gaussianity,
    posterior_weights,
    reverse_of,
)
from ddpm.figures.reverse import one_step, same_noise, trajectories
from ddpm.figures.schedules import schedules_compared
from ddpm.figures.subject import Subject, digit_pictures, exact_bits, exact_digits, roll_denoiser
from ddpm.model import Model

pytest.importorskip("matplotlib")
LINEAR = make_schedule("linear")
T = len(LINEAR)
BETA = np.concatenate([[math.nan], LINEAR.betas.numpy()])  # BETA[t], ABAR[t]: the paper's t
ABAR = np.concatenate([[1.0], np.cumprod(1 - LINEAR.betas.numpy())])


def line(axes: object, number: int) -> NDArray[np.float64]:
    return np.asarray(axes.lines[number].get_ydata(), dtype=np.float64)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("a", "b", "form", "limit"),
    [
        (0.98, 0.06, "roots", 0.06 / 0.02),
        (0.9, 0.02, "roots", 0.02 / 0.1),
        (0.98, 0.4, "plain", 0.4**2 / (1 - 0.98**2)),
        (0.98, 0.02, "plain", 0.02 / 1.98),  # a + b = 1 in the plain form: b / (2 - b)
        (1.0, 0.02, "roots", math.inf),
        (1.01, 0.14, "plain", math.inf),
    ],
)
def test_variance_under_free_steps(a: float, b: float, form: str, limit: float) -> None:
    step = FreeStep(a, b, form)  # type: ignore[arg-type]
    assert step.limit == pytest.approx(limit, rel=1e-12)
    variance, gain, added = 4.0, (a if form == "roots" else a * a), (b if form == "roots" else b * b)
    for _ in range(700):
        variance = gain * variance + added
    assert float(step.variance(4.0, np.array([700.0]))[0]) == pytest.approx(variance, rel=1e-9)
    rng = stream(0, "test free steps")
    start, end = step.walk(2 * rng.standard_normal(20_000), (0, 40), rng)
    assert end.var() == pytest.approx(float(step.variance(start.var(), np.array([40.0]))[0]), rel=0.05)


def test_a_histogram_becomes_a_density() -> None:
    x = lopsided(50_000, stream(0, "test density"))
    middle, height = density(x, np.linspace(-3, 3, 121))
    assert float((height * 0.05).sum()) == pytest.approx(1, abs=1e-9)
    assert float((middle * height * 0.05).sum()) == pytest.approx(0.4 * -1 + 0.6 * 1.5, abs=0.02)


def test_only_weights_that_add_up_lead_to_the_unit_gaussian() -> None:
    for axes in forward_histograms(count=20_000).axes:
        name = axes.get_title().split("\n")[0]
        x, last = axes.lines[-1 if name == "explodes" else -2].get_xydata().T  # type: ignore[union-attr]
        off = float(np.abs(last - gaussian_density(np.asarray(x), 0.0, 1.0)).max())
        assert (off < 0.06) == (name in ("all in one step", "smooth", "abrupt")), name


def test_variance_over_t_is_the_closed_form() -> None:
    figure = forward_variance({"linear": LINEAR}, count=3_000)
    for axes, start in zip(figure.axes, (4.0, 0.1), strict=True):
        np.testing.assert_allclose(line(axes, 0), ABAR[1:] * start + 1 - ABAR[1:], rtol=1e-12)
        times = np.asarray(axes.lines[1].get_xdata(), dtype=int)
        np.testing.assert_allclose(line(axes, 1), line(axes, 0)[times - 1], rtol=0.12)


def test_drift_and_noise_add_up_to_the_path() -> None:
    paths, parts, _ = drift_and_noise(count=50).axes
    path = line(paths, 0)
    np.testing.assert_allclose(line(parts, 2), path[1:] - path[0], atol=1e-12)
    np.testing.assert_allclose(line(parts, 0) + line(parts, 1), line(parts, 2), atol=1e-12)


def test_every_schedule_is_drawn_as_it_is() -> None:
    beta, left, snr, log_snr = schedules_compared().axes
    for number, name in enumerate(SCHEDULES):
        schedule = make_schedule(name)
        assert beta.lines[number].get_label() == name
        cumulative = np.cumprod(1 - schedule.betas.numpy())
        np.testing.assert_allclose(line(beta, number), schedule.betas.numpy(), rtol=1e-15)
        np.testing.assert_allclose(line(left, number), cumulative, rtol=1e-9)
        np.testing.assert_allclose(line(snr, number), cumulative / (1 - cumulative), rtol=1e-7)
        np.testing.assert_allclose(np.exp(line(log_snr, number)), line(snr, number), rtol=1e-12)


def test_posterior_weights_are_those_of_equation_7() -> None:
    for axes in posterior_weights().axes:
        of_x_0 = np.sqrt(ABAR[:-1]) * BETA[1:] / (1 - ABAR[1:])
        of_x_t = np.sqrt(1 - BETA[1:]) * (1 - ABAR[:-1]) / (1 - ABAR[1:])
        np.testing.assert_allclose(line(axes, 0), of_x_0, rtol=1e-9)
        np.testing.assert_allclose(line(axes, 1)[1:], of_x_t[1:], rtol=1e-9)
        assert math.isnan(line(axes, 1)[0])  # 0 at t = 1, which has no logarithm


def test_loss_weights_are_one_loss_in_four_units() -> None:
    for axes, variance in zip(loss_weights().axes, ("large", "small"), strict=True):
        eps, x_0, v, mu = (line(axes, k) for k in range(4))
        t = np.arange(2, T + 1)
        sigma2 = BETA[t] * (1.0 if variance == "large" else (1 - ABAR[t - 1]) / (1 - ABAR[t]))
        np.testing.assert_allclose(eps, BETA[t] ** 2 / (2 * sigma2 * (1 - BETA[t]) * (1 - ABAR[t])), rtol=1e-9)
        snr = ABAR[t] / (1 - ABAR[t])
        np.testing.assert_allclose(x_0 / eps, snr, rtol=1e-8)
        np.testing.assert_allclose(1 / v, 1 / x_0 + 1 / eps, rtol=1e-8)
        np.testing.assert_allclose(mu, 1 / (2 * sigma2), rtol=1e-9)


@pytest.mark.parametrize("beta", [0.9, 0.1, 0.001])
def test_the_exact_reverse_step_is_bayes_rule(beta: float) -> None:
    x_t, exact = 0.1, reverse_of(TWO_PEAKS, beta, 0.1)
    x = np.linspace(-3, 3, 200_001)
    joint = TWO_PEAKS.density(x) * gaussian_density(x, x_t / math.sqrt(1 - beta), beta / (1 - beta))
    np.testing.assert_allclose(exact.density(x), joint / (joint.sum() * (x[1] - x[0])), atol=1e-5 / math.sqrt(beta))


@pytest.mark.parametrize(("beta", "x_t"), [(0.9, 0.1), (0.1, -0.4), (1e-4, 0.7)])
def test_the_mean_of_the_reverse_step_is_tweedies(beta: float, x_t: float) -> None:
    """(x_t + beta d/dx log q(x_t)) / sqrt(1 - beta), for any beta; the variance is beta in the limit only."""
    gain, h = 1 - beta, 1e-5
    after = Mixture(TWO_PEAKS.weights, math.sqrt(gain) * TWO_PEAKS.means, gain * TWO_PEAKS.variances + beta)
    below, above = np.log(after.density(np.array([x_t - h, x_t + h])))
    exact = reverse_of(TWO_PEAKS, beta, x_t)
    assert exact.mean == pytest.approx((x_t + beta * (above - below) / (2 * h)) / math.sqrt(gain), abs=1e-8)
    assert (exact.variance == pytest.approx(beta, rel=0.02)) == (beta < 1e-3)


def test_the_reverse_step_is_gaussian_for_small_beta_only() -> None:
    far = [non_gaussianity(reverse_of(TWO_PEAKS, beta, 0.1)) for beta in (0.9, 0.1, 0.02, 1e-3, 1e-4)]
    assert all(b < a / 3 for a, b in pairwise(far[1:]))
    assert far[0] > 0.5
    assert far[-1] < 1e-6
    one = Mixture(np.ones(1), np.array([0.3]), np.array([2.0]))
    assert abs(non_gaussianity(reverse_of(one, 0.9, 0.1))) < 1e-9  # Gaussian data: at any beta


def test_estimators_agree_and_differ_in_spread() -> None:
    schedule = make_schedule("linear", 100)
    made = estimate_bound(two_peaks_denoiser(schedule), 4_000, seed=0)
    difference = made.log_ratio - made.kl
    error = difference.std(0) / math.sqrt(len(difference))
    assert float((difference.mean(0).abs() / error).max()) < 4.5  # 99 terms
    ratio = made.log_ratio.var(0) / (made.kl.var(0) + 2 * made.kl.mean(0))
    assert float(ratio[20:].log().abs().max()) < 0.2  # earlier, few rare pairs decide both
    late = slice(10, None)
    assert float((made.log_ratio.var(0) / made.kl.var(0))[late].min()) > 1.5
    kl, pairs, plain = (float(values.std()) for values in made.one_time(stream(0, "test one time")))
    assert kl < pairs < plain
    # Telescoping: the two log-ratios differ in L_T alone, sampled or not.
    whole = made.whole()
    assert float((whole[1] - whole[2]).std()) < 0.02
    assert abs(float((whole[0] - whole[2]).mean())) < 4 * float((whole[0] - whole[2]).std()) / math.sqrt(4_000)


def test_gradients_have_the_variances_that_are_drawn() -> None:
    histogram, spread = reparameterisation(count=40_000).axes
    assert {text.get_text().split(": ")[1].split()[0] for text in histogram.get_legend().get_texts()} <= {
        "1.99", "2.00", "2.01", "2.02", "1.98", "1.97", "2.03",
    }  # fmt: skip
    for sampled, variance in zip(
        spread.lines[:2],
        (path_gradient_variance, lambda sigma: score_gradient_variance(1.0, sigma)),
        strict=True,
    ):
        x, y = np.asarray(sampled.get_xydata()).T
        np.testing.assert_allclose(y, np.sqrt(variance(x)), rtol=0.06)


def test_bound_estimators_draws_what_was_estimated() -> None:
    spread, _ = bound_estimators(count=500).axes
    assert [str(drawn.get_label()).startswith(("KL", "log-ratio")) for drawn in spread.lines[:3]] == [True] * 3
    assert (line(spread, 0) < line(spread, 1))[20:].all()


def test_paths_end_on_the_data_and_ddim_is_the_smooth_one() -> None:
    roll = roll_denoiser(count=60)
    ddpm_axes, ddim_axes = trajectories(roll, steps=40, count=3, ends=20).axes
    lengths = []
    for axes in (ddpm_axes, ddim_axes):
        ends = np.asarray(axes.lines[-1].get_xydata())
        nearest = np.linalg.norm(ends[:, None] - roll.means.numpy(), axis=2).min(1)
        assert float(nearest.max()) < 0.25  # 40 steps are few for data of deviation 0.02
        path = np.asarray(axes.lines[1].get_xydata())
        lengths.append(float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()))
    assert lengths[0] > 3 * lengths[1]


def test_guidance_makes_points_surer_and_less_varied() -> None:
    free, of_class, strong = (guided_points(scale, count=400, steps=40) for scale in (0.0, 1.0, 3.0))
    whole, asked = two_classes()
    assert (free.mean(0) - whole.means.mean(0)).abs().max() < 0.1  # standard error 0.025
    assert (of_class.mean(0) - asked.means.mean(0)).abs().max() < 0.1
    exact = (asked.means.var(0, correction=0) + asked.variances[0]).sum().sqrt()
    assert spread(of_class) == pytest.approx(float(exact), rel=0.1)
    sure = [float(class_probability(points).mean()) for points in (free, of_class, strong)]
    assert sure == sorted(sure)
    assert spread(strong) < spread(of_class) < spread(free)
    border = asked.means[1]  # the part of the class that is nearest to the other one
    near = [float(((points - border).norm(dim=1) < 0.3).double().mean()) for points in (of_class, strong)]
    assert near[1] < 0.5 * near[0]


def pictures_of(axes: object) -> list[NDArray[np.float64]]:
    return [np.asarray(image.get_array(), dtype=np.float64) for image in axes.images]  # type: ignore[attr-defined]


def test_ddim_is_a_function_of_x_T_and_ddpm_is_not() -> None:
    shown = pictures_of(same_noise(exact_digits(count=100), pictures=3, steps=20).axes[0])
    x_T, ddpm_1, ddpm_2, ddim_1, ddim_2 = (np.stack(shown[3 * k : 3 * k + 3]) for k in range(5))
    assert np.abs(ddpm_1 - ddpm_2).max() > 0.5
    assert np.abs(ddim_1 - ddim_2).max() == 0
    assert np.abs(x_T - ddim_1).max() > 0.5


def test_one_step_gives_the_mean_of_the_data() -> None:
    subject = exact_digits(count=100)
    shown = pictures_of(one_step(subject, pictures=2, counts=(1, 50)).axes[0])
    mean = (digit_pictures(100).mean(0)[0].numpy() + 1) / 2
    assert np.abs(shown[1][..., 0] - mean).max() < 0.1
    nearest = np.abs((digit_pictures(100)[:, 0].numpy() + 1) / 2 - shown[2][..., 0]).max((1, 2)).min()
    assert nearest < 0.05


def test_the_rate_of_a_known_set_is_the_logarithm_of_its_size() -> None:
    subject: Subject = exact_digits("linear", 64)
    bits = exact_bits(subject, digit_pictures(64))
    least = 6 / 64  # log2 of 64 pictures, over 64 dimensions
    assert least < bits.total.value + 3 * bits.total.error
    assert bits.total.value == pytest.approx(least, rel=0.2)
    assert bits.levels[0].distortion.value < 1


def test_errata_are_the_right_numbers_beside_the_wrong() -> None:
    first, second, third = errata_posterior().axes
    for axes, t, wrong, right in (
        (first, 2, 91.3, 0.545),
        (first, 1000, 7.0, 0.000128),
        (second, 1000, 0.00635, 0.98995),
        (third, 500, 0.998, 0.01003),
    ):
        assert line(axes, 0)[t - 2] == pytest.approx(wrong, rel=2e-3)
        assert line(axes, 1)[t - 2] == pytest.approx(right, rel=5e-3)
    factor = errata_reverse().axes[0]
    assert line(factor, 0)[499] == pytest.approx(3.567, rel=1e-3)
    assert line(factor, 1)[499] == pytest.approx(1.005, rel=1e-3)
    curve, mixing, series = errata_noise().axes
    assert line(curve, 1)[[99, 199, 299, 999]] == pytest.approx([0.103, 0.341, 0.604, 1.0], abs=2e-3)
    assert line(mixing, 0)[-1] == pytest.approx(0.0098, abs=1e-4)
    assert line(mixing, 1)[-1] == pytest.approx(1, rel=1e-9)
    np.testing.assert_allclose(line(series, 1), 1 - 0.98 ** np.arange(1, 301), rtol=1e-9)
    weight = errata_weights().axes[0]
    assert line(weight, 0)[-1] == pytest.approx(247.8, rel=1e-3)
    assert line(weight, 1)[-1] == pytest.approx(0.0102, rel=5e-3)


def test_the_wrong_reverse_mean_overflows() -> None:
    right = reverse_log10_variances(LINEAR, divide_by_cumulative=False)
    wrong = reverse_log10_variances(LINEAR, divide_by_cumulative=True)
    assert 10 ** right[-1] == pytest.approx(0.9999, abs=1e-6)
    assert wrong[-1] > 300
    short = NoiseSchedule(torch.tensor([0.1, 0.2], dtype=torch.float64))
    x = (0.8**2 / (0.9 * 0.8) + 0.2) * 0.9**2 / 0.9
    assert reverse_log10_variances(short, divide_by_cumulative=True)[-1] == pytest.approx(math.log10(x), rel=1e-12)


def test_schedules_and_steps_that_are_wrong_are_drawn_as_they_are_wrong() -> None:
    product, ends, cosine = errata_schedule().axes
    assert line(product, 0) == pytest.approx(np.full(T, ABAR[T]), rel=1e-9)
    np.testing.assert_allclose(line(product, 1), ABAR[1:], rtol=1e-9)
    assert line(ends, 0)[0] == pytest.approx(1.199, rel=1e-6)
    assert line(ends, 1)[0] == pytest.approx(1, rel=1e-9)
    texts = [text.get_text() for text in ends.get_legend().get_texts()]
    assert ["3.996e-05" in texts[0], "4.036e-05" in texts[1]] == [True, True]
    assert (line(cosine, 0)[499], line(cosine, 1)[499]) == pytest.approx((0.0786, 0.494), abs=5e-4)
    reverse, forward, limit = errata_step().axes
    assert line(reverse, 0)[-1] == pytest.approx(1 + BETA[2:].sum(), rel=1e-12)  # the reverse chain: a random walk
    assert line(reverse, 1)[-1] == pytest.approx(1 - BETA[1], rel=1e-9)
    np.testing.assert_allclose(line(forward, 1), 1, rtol=1e-9)
    assert line(forward, 0)[-1] > 7
    mean, last = line(limit, 1), [line(limit, 2 * k)[-1] for k in range(4)]
    assert mean[-1] == pytest.approx(-1.5 * math.sqrt(ABAR[T]), rel=1e-9)
    assert np.abs(last).max() > 0.3


def test_each_variance_is_exact_for_its_data() -> None:
    assert np.abs(deviation_ratios(LINEAR, "fixed_large", 1.0) - 1).max() < 1e-9
    off_by_the_start = 1 / math.sqrt(1 - ABAR[T]) - 1  # x_T ~ N(0, 1) is not quite q(x_T) of a point
    assert np.abs(deviation_ratios(LINEAR, "fixed_small", 0.0) - 1).max() < 2 * off_by_the_start
    assert deviation_ratios(LINEAR, "fixed_large", 0.0)[-1] > 1.3
    assert deviation_ratios(LINEAR, "fixed_small", 1.0).min() < 1 - 1e-4
    both, constant, spread = errata_variance().axes
    np.testing.assert_allclose(line(both, 1), BETA[2:], rtol=1e-9)
    ratio = (1 - ABAR[1:-1]) / (1 - ABAR[2:])
    np.testing.assert_allclose(line(both, 0), ratio * BETA[2:], rtol=1e-8)
    np.testing.assert_allclose(line(constant, 0), 0.5 * (ratio - 1 - np.log(ratio)), rtol=1e-4, atol=1e-14)
    assert line(spread, 1)[-1] > 0.3


def test_the_decoder_leaves_the_squared_error_at_the_brightest_level() -> None:
    middle, brightest = errata_decoder().axes
    np.testing.assert_allclose(line(middle, 0), line(middle, 1), atol=0.3)
    wrong, right = line(brightest, 0), line(brightest, 1)
    assert right[0] == pytest.approx(wrong[0], abs=0.35)  # below the level, they agree
    assert right[-1] < 1e-3 < 5 < wrong[-1]  # above it, nothing is lost


def test_the_learned_score_of_an_exact_model_is_not_off() -> None:
    points = torch.tensor([[0.5, 0.5], [-0.5, 0.3], [0.1, -0.7]])
    exact = finite_set_denoiser(LINEAR, points.double())

    class Knows(torch.nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: object = None) -> torch.Tensor:
            return exact(x_t.double(), t).eps.float()

    codec = PixelCodec(None, (-1.0, 1.0), "float32")
    model = Model(Knows(), NetworkConfig(kind="mlp"), LINEAR, "eps", codec, (1, 1, 2))
    figure = score_learned(model, points, times=(20, 500), grid=5)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[2:] == ["learned: off by 0%", "learned: off by 0%"]
    learned, right = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert relative_error(learned, right) == pytest.approx(5 / 4)
