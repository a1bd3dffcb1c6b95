"""The errors of the sources, row by row: what the wrong formula gives, and that ours gives the right value instead.

Rows E1 to E35 are those of the project's table of errata; each test quotes what its source says. Times are the papers',
t = 1 .. T, on the linear schedule with T = 1000; code time is t - 1. Rows that correct only words, notation or history
have no formula to compute, and so no test here: E16, E27, E32 to E34. `docs/errata.md` shows them all.
"""

import math

import numpy as np
import pytest
import torch
from scripted_noise import ScriptedNoise
from torch import Tensor

from ddpm.diffusion import process
from ddpm.diffusion.analytic import GaussianDenoiser, PointDenoiser, finite_set_denoiser
from ddpm.diffusion.denoiser import Prediction, to_prediction
from ddpm.diffusion.likelihood import Bound, decoder_term, gaussian_kl, transition_term, variational_bound
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.objectives import bound_weight, snr, squared_error, target
from ddpm.diffusion.samplers import ddim, ddpm
from ddpm.diffusion.schedules import Transition, make_schedule

T = 1000
SCHEDULE = make_schedule("linear", T)

# The paper's symbols, t = 0 .. T, in numpy: beta[0] is never used, abar[0] = 1 is clean data.
beta = np.concatenate([[np.nan], np.linspace(1e-4, 0.02, T)])
alpha = 1 - beta
abar = np.concatenate([[1.0], np.cumprod(alpha[1:])])


def posterior(t: int) -> Transition:
    """q(x_{t-1} | x_t, x_0) of the paper's t."""
    return SCHEDULE.transition(t - 1, t - 2)


def one(value: float = 1.0) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def unit_rows(num_steps: int) -> tuple[Tensor, ScriptedNoise]:
    """x_T = 1 in row 0, the unit noise of step k in row k + 1: the variance of any x_s is then its sum of squares."""
    unit = torch.zeros(num_steps + 1, num_steps + 1, 1, dtype=torch.float64)
    unit[range(num_steps + 1), range(num_steps + 1)] = 1
    return unit[0], ScriptedNoise(lambda draw: unit[draw + 1])


def reverse_mean_gain(t: int) -> float:
    """The factor of x_t in mu_theta(x_t, t) at eps_theta = 0: what the source wrote 1 / sqrt(alpha-bar) for."""
    return float(process.mu_from_eps(one(0), one(), t - 1, SCHEDULE))


@pytest.mark.parametrize(("t", "wrong", "right"), [(2, 91.3, 0.545), (500, 9.93, 0.00307), (1000, 7.00, 0.000128)])
def test_e1_posterior_mean_has_bars_and_short_roots(t: int, wrong: float, right: float) -> None:
    """S2: mu~ = sqrt(a_{t-1} b_t) / (1 - a_t) x_0 + sqrt(a_t (1 - a_{t-1})) / (1 - a_t) x_t."""
    assert math.sqrt(alpha[t - 1] * beta[t]) / (1 - alpha[t]) == pytest.approx(wrong, rel=2e-3)
    ours = float(posterior(t).x_0_weight)
    assert ours == pytest.approx(right, rel=4e-3)
    assert ours == pytest.approx(math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t]), rel=1e-10)
    x_t_weight = float(posterior(t).x_t_weight)
    assert x_t_weight == pytest.approx(math.sqrt(alpha[t]) * (1 - abar[t - 1]) / (1 - abar[t]), rel=1e-10)
    assert abs(x_t_weight - math.sqrt(alpha[t] * (1 - alpha[t - 1])) / (1 - alpha[t])) > 5


def test_e2_posterior_variance_is_times_beta() -> None:
    """S2: b~ = (1 - a_{t-1}) / (1 - a_t)."""
    t = 500
    assert (1 - alpha[t - 1]) / (1 - alpha[t]) == pytest.approx(0.998, abs=5e-5)
    assert (1 - abar[t - 1]) / (1 - abar[t]) == pytest.approx(0.9991, abs=5e-5)
    assert float(posterior(t).variance_small) == pytest.approx(0.01003, abs=5e-6)
    # b~_1 = 0 exactly: its logarithm takes the value of t = 2, as Ho et al. do.
    assert float(posterior(1).variance_small) == 0
    assert float(posterior(1).log_variance_small) == float(posterior(2).variance_small.log())


@pytest.mark.parametrize(("t", "wrong", "right"), [(500, 3.567, 1.005), (1000, 157.4, 1.0102)])
def test_e3_reverse_mean_divides_by_root_alpha(t: int, wrong: float, right: float) -> None:
    """S2, S3: mu_theta = (x_t - ..) / sqrt(alpha-bar_t)."""
    assert 1 / math.sqrt(abar[t]) == pytest.approx(wrong, rel=3e-4)
    assert reverse_mean_gain(t) == pytest.approx(right, rel=3e-4)
    assert reverse_mean_gain(t) == pytest.approx(1 / math.sqrt(alpha[t]), rel=1e-12)


def test_e3_the_wrong_division_explodes() -> None:
    """Over all t the factors multiply to 10^735 instead of 10^2.2; exact-score N(0, 1) data end at variance 0.9999."""
    assert -0.5 * np.log10(abar[1:]).sum() == pytest.approx(735, abs=0.5)
    ours = sum(math.log10(reverse_mean_gain(t)) for t in range(1, T + 1))
    assert ours == pytest.approx(2.2, abs=0.05)

    # The exact eps of N(0, 1) data is sqrt(1 - abar_t) x_t, so mu = (1 - beta_t) x_t over the root.
    wrong = 1.0
    with np.errstate(over="ignore"):
        for t in range(T, 0, -1):
            wrong = (1 - beta[t]) ** 2 / abar[t] * np.float64(wrong) + (beta[t] if t > 1 else 0)
    assert wrong > 1e300

    denoiser = GaussianDenoiser(SCHEDULE, torch.zeros(1), torch.eye(1))
    *_, final = ddpm(denoiser, SCHEDULE, *unit_rows(T), variance="fixed_large")
    assert float(final.x.square().sum()) == pytest.approx(0.9999, abs=1e-8)


def test_e4_the_mean_to_predict_divides_by_the_root() -> None:
    """S2: mu_theta must predict 1 / alpha_t (x_t - ..): 1.0204 instead of 1.0102 at t = 1000."""
    assert 1 / alpha[1000] == pytest.approx(1.0204, abs=5e-5)
    assert reverse_mean_gain(1000) == pytest.approx(1.0102, abs=5e-5)
    mu = target(one(), one(0), one(), torch.tensor([999]), SCHEDULE, "mu")
    assert float(mu) == pytest.approx(float(posterior(1000).x_0_weight + posterior(1000).x_t_weight), rel=1e-12)


def test_e5_x_t_is_weighted_by_root_alpha() -> None:
    """S3: sqrt(abar_t) (1 - abar_{t-1}) / (1 - abar_t) x_t."""
    kept = (1 - abar[:-1]) / (1 - abar[1:])  # kept[t - 1] belongs to t
    assert math.sqrt(abar[1000]) * kept[999] == pytest.approx(0.00635, abs=5e-6)
    assert float(posterior(1000).x_t_weight) == pytest.approx(0.98995, abs=5e-6)
    # Nor does S3's own algebra, x_0 put into its mu~, give its 1 / sqrt(abar); the right weight gives 1 / sqrt(alpha).
    t = 500
    x_0_part = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t]) / math.sqrt(abar[t])
    assert x_0_part + math.sqrt(abar[t]) * kept[t - 1] == pytest.approx(0.2910, abs=5e-5)
    assert 1 / math.sqrt(abar[t]) == pytest.approx(3.567, abs=5e-4)
    assert x_0_part + float(posterior(t).x_t_weight) == pytest.approx(1.0051, abs=5e-5)
    assert reverse_mean_gain(t) == pytest.approx(x_0_part + float(posterior(t).x_t_weight), rel=1e-12)


def test_e6_the_weight_of_eps_has_alpha() -> None:
    """S3: b^2 / (2 s^2 abar_t (1 - abar_t)), with s^2 = b."""
    t = 1000
    assert beta[t] / (2 * abar[t] * (1 - abar[t])) == pytest.approx(247.8, abs=0.05)
    ours = float(bound_weight(torch.tensor([t - 1]), SCHEDULE, "eps", "fixed_large"))
    assert ours == pytest.approx(0.0102, abs=5e-5)
    assert ours == pytest.approx(beta[t] / (2 * alpha[t] * (1 - abar[t])), rel=1e-10)


@pytest.fixture(scope="module")
def bound() -> Bound:
    """The bound of pixels uniform over 65 levels, with the exact denoiser: four draws each, T = 100, cosine."""
    schedule = make_schedule("cosine", 100)
    levels = torch.linspace(-1, 1, 65, dtype=torch.float64).unsqueeze(1)
    noise = NoiseSource(0, range(4 * 65), (1,), dtype=torch.float64)
    denoiser = finite_set_denoiser(schedule, levels)
    return variational_bound(denoiser, schedule, levels.repeat(4, 1), noise, levels=65)


def test_e7_the_decoder_is_added_once(bound: Bound) -> None:
    """S2: L = E[L_T + sum_{t >= 1} (L_{t-1} - L_0)]: L_0 is a positive cost, added once, outside a sum from t = 2."""
    right = bound.prior + bound.transitions.sum(1) + bound.decoder
    wrong = bound.prior + (bound.transitions - bound.decoder.unsqueeze(1)).sum(1)
    assert bound.transitions.shape[1] == 99  # t = 2 .. 100
    assert bool((bound.decoder > 0).all())
    assert bool((bound.total == right).all())
    assert not bool((bound.total == wrong).any())


def test_e8_e12_the_bound_lies_above_the_code_length(bound: Bound) -> None:
    """S2, S4 flip the sign: E[-log p(x_0)] <= L, which is minimised. No code of 65 equal levels costs below log 65."""
    mean = float(bound.total.mean())
    assert math.log(65) <= mean < math.log(65) + 1
    assert -mean < math.log(65)  # what the flipped sign would call the cost
    # The sum starts at t = 2: q(x_0 | x_1, x_0) has no variance, and no Gaussian a finite KL from it.
    assert float(posterior(1).variance_small) == 0


def test_e9_l_simple_is_a_reweighting_not_the_bound() -> None:
    """S2, S3: L_{t-1} - C = E ||eps - eps_theta||^2. The true weight falls 120-fold from t = 2 to t = 350."""
    t = torch.arange(1, T)
    weight = bound_weight(t, SCHEDULE, "eps", "fixed_small")
    expected = beta[2:] ** 2 / (2 * (1 - abar[1:-1]) / (1 - abar[2:]) * beta[2:] * alpha[2:] * (1 - abar[2:]))
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-9)
    assert (int(weight.argmax()) + 2, int(weight.argmin()) + 2) == (2, 350)
    assert float(weight.max() / weight.min()) == pytest.approx(120, abs=1)
    x_0, eps = (NoiseSource(seed, range(T - 1), (3,), dtype=torch.float64).normal(0, "x") for seed in (1, 2))
    x_t = process.q_sample(x_0, t, eps, SCHEDULE)
    prediction = to_prediction(0 * eps, x_t, t, SCHEDULE, "eps")
    l_simple = squared_error(prediction.eps, eps) * 3  # summed over the dimensions
    bound_term = transition_term(x_0, x_t, t, prediction, SCHEDULE)
    torch.testing.assert_close(bound_term, weight * l_simple, rtol=1e-8, atol=0)


def test_e10_the_closed_form_has_bars() -> None:
    """S2: q(x_t | x_0) = (x_t; sqrt(a_t) x_0, (1 - a_t) I): hardly any noise, at any t."""
    t = 500
    signal, noise = (float(process.q_sample(one(x), t - 1, one(e), SCHEDULE)) for x, e in ((1, 0), (0, 1)))
    assert (signal, noise) == pytest.approx((math.sqrt(abar[t]), math.sqrt(1 - abar[t])), rel=1e-10)
    assert (math.sqrt(alpha[t]), math.sqrt(1 - alpha[t])) == pytest.approx((0.995, 0.100), abs=5e-4)
    assert (signal, noise) == pytest.approx((0.280, 0.960), abs=5e-4)


def test_e11_eps_is_noise_not_the_scaled_picture() -> None:
    """S4: eps = sqrt(1 - b) x_{t-1}. Then x_t is x_{t-1} times a number, and it grows instead of tending to N(0, I)."""
    x, wrong = one(), one()
    for t in range(1, T + 1):
        fake_eps = math.sqrt(1 - beta[t]) * wrong
        wrong = process.q_step(wrong, t - 2, t - 1, fake_eps, SCHEDULE)
        x = process.q_step(x, t - 2, t - 1, one(0), SCHEDULE)
    assert float(wrong) > 1e30
    assert float(x) == pytest.approx(math.sqrt(abar[T]), rel=1e-10)  # the right mean: the noise has mean 0


def test_e13_x_t_is_noisier_than_the_one_before() -> None:
    """S4: "knowing noisier x_{t-1} gives less noisy x_t"."""
    level = SCHEDULE.signal_and_noise(torch.arange(T))[1]
    assert bool((level[1:] > level[:-1]).all())


def test_e14_the_noise_level_is_a_function_of_t() -> None:
    """S4: eps is "the noise level". It is a draw; the level is sqrt(1 - abar_t), and t an index."""
    draws = NoiseSource(0, range(2), (4,), dtype=torch.float64)
    x_0, t = torch.zeros(2, 4, dtype=torch.float64), 250
    level = process.q_sample(x_0, t - 1, draws.normal(0, "eps"), SCHEDULE) / draws.normal(0, "eps")
    np.testing.assert_allclose(level.numpy(), math.sqrt(1 - abar[t]), rtol=1e-12)


def test_e15_noise_is_the_equilibrium() -> None:
    """S4: the noise image is out of equilibrium, the data in it. A step leaves N(0, 1) as it is, and nothing else."""
    signal, noise = (float(process.q_step(one(x), 498, 499, one(e), SCHEDULE)) for x, e in ((1, 0), (0, 1)))
    after = {variance: signal**2 * variance + noise**2 for variance in (0.25, 1.0, 4.0)}
    assert after[1.0] == pytest.approx(1, rel=1e-12)
    assert 0.25 < after[0.25] < 1 < after[4.0] < 4


def test_e17_linear_betas_make_an_s_curve() -> None:
    """S4: the noise variance "simply grows linearly". b_t does; the total 1 - abar_t does not."""
    table = [0.103, 0.341, 0.604, 0.805, 0.921, 0.974, 0.993, 0.9985, 0.9997, 1.0]
    total = SCHEDULE.signal_and_noise(torch.arange(99, 1000, 100))[1].square().numpy()
    np.testing.assert_allclose(total, table, atol=5e-4)
    assert np.abs(total - np.linspace(total[0], total[-1], 10)).max() > 0.3


def test_e18_the_cosine_schedule_has_a_formula() -> None:
    """S4: cosine "as proposed above", with no formula: abar = f(t) / f(0), f = cos^2(((t/T + s) / (1 + s)) pi / 2)."""
    f = np.cos((np.linspace(0, 1, T + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    schedule = make_schedule("cosine", T)
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1].numpy(), (f / f[0])[1:-1], rtol=1e-9)
    assert float(schedule.betas.max()) == 0.999
    assert float(schedule.alphas_cumprod[499]) == pytest.approx(0.494, abs=5e-4)
    assert abar[500] == pytest.approx(0.0786, abs=5e-5)


def test_e19_kl_is_no_distance() -> None:
    """S4: the KL "distance". KL(N(0, 1) || N(0, 4)) = log 2 - 3/8, and the other way 3/2 - log 2."""
    zero, narrow, wide = torch.zeros(1), torch.zeros(1), torch.full((1,), math.log(4))
    there, back = gaussian_kl(zero, narrow, zero, wide), gaussian_kl(zero, wide, zero, narrow)
    assert float(there) == pytest.approx(math.log(2) - 3 / 8, rel=1e-6)
    assert float(back) == pytest.approx(3 / 2 - math.log(2), rel=1e-6)


def test_e20_alpha_bar_stops_at_t() -> None:
    """S0: the product over t = 1 .. T, one number for all t."""
    assert float(SCHEDULE.alphas_cumprod[9]) == pytest.approx(np.prod(1 - beta[1:11]), rel=1e-12)
    assert float(SCHEDULE.alphas_cumprod[9]) > 0.99 > 1e-4 > np.prod(1 - beta[1:])


def test_e21_the_weights_of_signal_and_noise_are_roots() -> None:
    """S0: x_1 = (1 - v) x_0 + v eps. Its variance settles at v / (2 - v), and noise never takes over."""
    v, naive, ours = 0.02, 1.0, 1.0
    assert v / (2 - v) == pytest.approx(0.0101, abs=5e-5)
    for t in range(1, T + 1):
        naive = (1 - beta[t]) ** 2 * naive + beta[t] ** 2
        signal, noise = (float(process.q_step(one(x), t - 2, t - 1, one(eps), SCHEDULE)) for x, eps in ((1, 0), (0, 1)))
        ours = signal**2 * ours + noise**2
    assert naive == pytest.approx(0.0098, abs=5e-5)
    assert ours == pytest.approx(1, rel=1e-10)


def test_e22_the_ends_of_the_linear_schedule_are_its_first_and_last_beta() -> None:
    """S0: b_t = b_start + t (b_end - b_start) / T."""
    wrong = 1e-4 + np.arange(1, T + 1) * (0.02 - 1e-4) / T
    assert wrong[0] == pytest.approx(1.199e-4, rel=1e-6)
    assert np.prod(1 - wrong) == pytest.approx(3.996e-5, abs=5e-9)
    assert float(SCHEDULE.betas[0]) == pytest.approx(1e-4, rel=1e-12)
    assert float(SCHEDULE.alphas_cumprod[-1]) == pytest.approx(4.036e-5, abs=5e-9)


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_e23_beta_is_a_variance(t: int) -> None:
    """S0: "variance = sqrt(b_t)"."""
    displacement = float(process.q_step(one(0), t - 2, t - 1, one(), SCHEDULE))
    assert displacement == pytest.approx(math.sqrt(beta[t]), rel=1e-11)
    assert float(posterior(t).variance("fixed_large")) == pytest.approx(beta[t], rel=1e-11)


def test_e24_the_papers_sampler_draws_noise_and_ddim_does_not() -> None:
    """S0: the sampler "used in the original paper is referred to as DDIM"."""
    denoiser = PointDenoiser(SCHEDULE, torch.zeros(1))
    used: dict[str, list[int]] = {}
    for name, sampler in (("ddpm", ddpm), ("ddim", ddim)):
        noise = ScriptedNoise(lambda draw: one(0))
        list(sampler(denoiser, SCHEDULE, one(), noise))
        used[name] = noise.draws
    assert used == {"ddpm": list(range(T - 1)), "ddim": []}


def test_e25_x_T_converges_in_distribution_not_to_a_mean() -> None:
    """S0: the data "converge to the mean of the simpler distribution". x_T keeps a variance of 1 about it."""
    signal, noise = SCHEDULE.signal_and_noise(T - 1)
    assert float(signal) < 0.01
    assert float(noise) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("t", [1, 10, 500, 1000])
def test_e26_errors_in_x_0_and_eps_differ_by_the_snr(t: int) -> None:
    """S0 trains towards x_0, then says the network predicts the noise: ||x_0 err||^2 = ||eps err||^2 / SNR."""
    x_0, eps, wrong_eps = (NoiseSource(seed, [0], (8,), dtype=torch.float64).normal(0, "x") for seed in (1, 2, 3))
    x_t = process.q_sample(x_0, t - 1, eps, SCHEDULE)
    prediction = to_prediction(wrong_eps, x_t, torch.tensor([t - 1]), SCHEDULE, "eps")
    ratio = squared_error(prediction.x_0, x_0) / squared_error(prediction.eps, eps)
    assert float(ratio) == pytest.approx((1 - abar[t]) / abar[t], rel=1e-8)
    assert float(snr(torch.tensor(t - 1), SCHEDULE)) == pytest.approx(abar[t] / (1 - abar[t]), rel=1e-10)


def test_e28_two_reverse_variances_are_two_choices() -> None:
    """S1: "same as the ground-truth denoising step", then "same as the forward process".

    With b~ the KL is the term of the means alone; with b it has a constant beside it.
    """
    t = torch.tensor([499])
    x_0, x_t = one(0.3), one(-0.5)
    perfect = Prediction(x_0, process.eps_from_x_0(x_0, x_t, t, SCHEDULE))
    small, large = (float(transition_term(x_0, x_t, t, perfect, SCHEDULE, v)) for v in ("fixed_small", "fixed_large"))
    ratio = float(posterior(500).variance_small) / beta[500]
    assert small == pytest.approx(0, abs=1e-15)
    assert large == pytest.approx(0.5 * (-math.log(ratio) + ratio - 1), rel=1e-6)


@pytest.mark.parametrize(("variance", "best_for"), [("fixed_large", "unit Gaussian"), ("fixed_small", "point")])
def test_e28_each_variance_is_exact_for_its_data(variance: str, best_for: str) -> None:
    """Ho et al., Sec. 3.2: b is optimal for x_0 ~ N(0, I), b~ for a point: then x_s is q's own at every s, else not."""
    schedule = make_schedule("linear", 100)
    data = {
        "unit Gaussian": (GaussianDenoiser(schedule, torch.zeros(1), torch.eye(1)), 1.0),
        "point": (PointDenoiser(schedule, torch.zeros(1)), 0.0),
    }
    for name, (denoiser, data_variance) in data.items():
        worst = 0.0
        for step in ddpm(denoiser, schedule, *unit_rows(100), variance=variance):  # type: ignore[arg-type]
            signal, noise = schedule.signal_and_noise(step.s)
            of_q = float(signal.square() * data_variance + noise.square())
            worst = max(worst, abs(float(step.x.square().sum()) - of_q)) if step.s >= 0 else worst
        if name == best_for:
            # x_T ~ N(0, 1) is not quite q(x_T) for a point: the difference is abar_T, 3e-5.
            assert worst < 5e-5
        else:
            assert worst > 5e-3


def test_e29_the_noise_of_repeated_steps_is_a_geometric_series() -> None:
    """S1: terms b, b (1 - b), "b (1 - b squ)", and a sum that "ends up being one"; only alpha > 1 "blows up"."""
    b, steps = 0.02, 50
    schedule_terms = []
    flat = make_schedule("constant", 500)  # 0.01 a step at T = 1000, so 0.02 here
    for first in range(3):  # the weight of the noise that came `first` steps before the last
        x = process.q_step(one(0), -1, 0, one(), flat)
        for t in range(1, first + 1):
            x = process.q_step(x, t - 1, t, one(0), flat)
        schedule_terms.append(float(x.square()))
    np.testing.assert_allclose(schedule_terms, [b, b * (1 - b), b * (1 - b) ** 2], rtol=1e-12)
    assert schedule_terms[2] != pytest.approx(b * (1 - b**2), rel=1e-3)
    total = float(flat.signal_and_noise(steps - 1)[1].square())
    assert total == pytest.approx(1 - (1 - b) ** steps, rel=1e-12)
    assert total < 0.64  # 1 - e^-1: far from one
    # x <- sqrt(a) x + sqrt(b) eps: the limit is b / (1 - a), one only for a + b = 1; a = 1 is a random walk.
    for a, limit in ((0.98, 1.0), (0.99, 2.0), (0.9, 0.2)):
        variance = 0.0
        for _ in range(3000):
            variance = a * variance + b
        assert variance == pytest.approx(limit, rel=1e-9)
        assert b / (1 - a) == pytest.approx(limit, rel=1e-9)
    assert sum(b for _ in range(3000)) == pytest.approx(60)


def test_e30_the_decoder_is_near_the_loss_but_not_at_the_edges() -> None:
    """S1: L_0 is "wrapped under this loss". It is, where a bin's mass is about its width times the density, whose
    logarithm is a squared error; at the darkest and brightest level it is not, for those bins reach to infinity.
    """
    level, width, variance = 1 / 255, 2 / 255, beta[1]

    def decoder(x_0: float, x_0_hat: float) -> float:
        return float(decoder_term(one(x_0), one(), Prediction(one(x_0_hat), one(0)), SCHEDULE, 256, "fixed_large"))

    def squared_error_form(x_0: float, x_0_hat: float) -> float:
        return (x_0 - x_0_hat) ** 2 / (2 * variance) + 0.5 * math.log(2 * math.pi * variance) - math.log(width)

    for off in (0.0, 0.005, 0.01):
        assert decoder(level, level + off) == pytest.approx(squared_error_form(level, level + off), abs=0.03)
    assert decoder(1.0, 1.0) < squared_error_form(1.0, 1.0) - 0.7
    assert decoder(1.0, 1.02) < 0.02 < 2 < squared_error_form(1.0, 1.02)


def test_e31_the_bound_is_an_expectation(bound: Bound) -> None:
    """S3 has no E_q in any line. Single draws of L lie on both sides of log 65, the least cost of 65 levels."""
    below = bound.total < math.log(65)
    assert 0 < int(below.sum()) < len(below)
    assert float(bound.total.mean()) > math.log(65)


def test_e35_the_root_scales_the_signal() -> None:
    """S3: sqrt(1 - b) "to scale the noise"."""
    t = 700
    signal, noise = (float(process.q_step(one(x), t - 2, t - 1, one(e), SCHEDULE)) for x, e in ((1, 0), (0, 1)))
    assert signal == pytest.approx(math.sqrt(1 - beta[t]), rel=1e-11)
    assert noise == pytest.approx(math.sqrt(beta[t]), rel=1e-11)
