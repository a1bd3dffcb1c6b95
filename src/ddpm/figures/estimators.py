"""Figures of estimators: the same mean, with very different noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.diffusion.analytic import MixtureDenoiser
from ddpm.diffusion.likelihood import prior_term, transition_term
from ddpm.diffusion.noise import stream
from ddpm.diffusion.process import q_step
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.figures.style import LINES, Style, blank, finished, legend_below, panels, room_above

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimates:
    """Three estimates of the same bound from one chain a sample, in nats, float64.

    Each whole bound is a row's sum over its terms, plus `rest`.

    Attributes:
        kl: [N, T - 1], KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at the sampled x_t (Ho et al. 2020, Eq. 5).
        log_ratio: [N, T - 1], log q(x_{t-1} | x_t, x_0) - log p(x_{t-1} | x_t) at the sampled pair.
        plain: [N, T], log q(x_t | x_{t-1}) - log p(x_{t-1} | x_t) at the sampled pair (Eq. 3).
        rest: [N], L_T + L_0, for the first two.
        plain_rest: [N], -log p(x_T), for the third.
    """

    kl: Tensor
    log_ratio: Tensor
    plain: Tensor
    rest: Tensor
    plain_rest: Tensor

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bound [N] from all the terms of a chain, of each kind."""
        return (
            self.kl.sum(1) + self.rest,
            self.log_ratio.sum(1) + self.rest,
            self.plain.sum(1) + self.plain_rest,
        )

    def one_time(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bound [N] from one uniform t of a chain, as training sees it, of each kind."""
        made = []
        for terms, rest in ((self.kl, self.rest), (self.log_ratio, self.rest), (self.plain, self.plain_rest)):
            t = torch.from_numpy(rng.integers(terms.shape[1], size=len(terms)))
            made.append(terms.shape[1] * terms.gather(1, t.unsqueeze(1)).squeeze(1) + rest)
        return made[0], made[1], made[2]


def two_peaks_denoiser(schedule: NoiseSchedule) -> MixtureDenoiser:
    """Return the exact denoiser of two narrow peaks at -1 and 1, of standard deviation 0.1."""
    return MixtureDenoiser(
        schedule,
        weights=torch.tensor([0.5, 0.5], dtype=torch.float64),
        means=torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
        variances=torch.tensor([0.01, 0.01], dtype=torch.float64),
    )


def estimate_bound(denoiser: MixtureDenoiser, count: int, seed: int) -> Estimates:
    """Return all estimates over `count` chains x_0, ..., x_T of the denoiser's 1-D data.

    The variance of the reverse process is "fixed_small".
    """
    schedule = denoiser.schedule
    rng = stream(seed, "figure bound_estimators")
    kind = torch.from_numpy(rng.choice(len(denoiser.weights), count, p=denoiser.weights.numpy()))
    x_0 = denoiser.means[kind] + denoiser.variances[kind].sqrt().unsqueeze(1) * _normal(rng, count)
    before, log_ratio, kl, plain = x_0, [], [], []
    rest = prior_term(x_0, schedule)
    for t in range(len(schedule)):
        x_t = q_step(before, t - 1, t, _normal(rng, count), schedule)
        times = torch.full((count,), t, dtype=torch.float64)
        prediction, transition = denoiser(x_t, times), schedule.transition(t, t - 1)
        p = _log_density(before, transition.mean(prediction.x_0, x_t), transition.log_variance_small)
        beta = transition.variance_large
        plain.append(_log_density(x_t, (1 - beta).sqrt() * before, beta.log()) - p)
        if t == 0:
            rest = rest - p
        else:
            log_ratio.append(_log_density(before, transition.mean(x_0, x_t), transition.log_variance_small) - p)
            kl.append(transition_term(x_0, x_t, times, prediction, schedule))
        before = x_t
    plain_rest = -_log_density(before, torch.zeros_like(before), torch.zeros(()))
    return Estimates(torch.stack(kl, 1), torch.stack(log_ratio, 1), torch.stack(plain, 1), rest, plain_rest)


def _normal(rng: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((count, 1)))


def _log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    squares = (x - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(1)


def bound_estimators(
    schedule: NoiseSchedule | None = None, *, style: Style = "light", seed: int = 0, count: int = 4_000
) -> Figure:
    """Return the spread of three estimators of the bound: of each term L_{t-1} over t, and of their sum.

    The KL given x_0 (Ho et al. 2020, Eq. 5) averages over x_{t-1} in closed form, where Eq. 3 samples it: this is
    Rao-Blackwellisation. With equal variances the log-ratio is the KL plus sqrt(2 KL) times a standard normal number:
    its variance is larger by 2 E[KL]. Training sees one t at a time, and there the KL has by far the least spread. Over
    a whole chain the errors of the pairs cancel, the more the closer the model is to the truth (with the exact reverse
    process the sum of Eq. 3 is -log q(x_0) whatever the chain), and the KLs lose their advantage.
    Data: two narrow peaks, with their exact denoiser.
    """
    schedule = schedule or make_schedule("linear", 100)
    made = estimate_bound(two_peaks_denoiser(schedule), count, seed)
    figure, palette = blank(style, height=3.4)
    spread, total = panels(figure, 1, 2)
    names = (r"KL given $x_0$", r"log-ratio given $x_0$", "log-ratio of Eq. 3")
    for number, (name, terms) in enumerate(zip(names, (made.kl, made.log_ratio, made.plain[:, 1:]), strict=True)):
        t = np.arange(2, len(schedule) + 1)
        spread.plot(t, terms.std(0).numpy(), color=palette.series[number], linestyle=LINES[number], label=name)
    expected = (made.kl.var(0) + 2 * made.kl.mean(0)).sqrt().numpy()
    spread.plot(t[::6], expected[::6], ".", color=palette.ink, label=r"$\sqrt{\mathrm{Var[KL]} + 2\,\mathrm{E[KL]}}$")
    spread.set(title="of one term, over t", xlabel="t", ylabel="standard deviation (nats)", yscale="log")
    legend_below(spread, columns=2)
    groups = (made.one_time(stream(seed, "figure bound_estimators t")), made.whole())
    for place, group in enumerate(groups):
        for number, values in enumerate(group):
            height, left = float(values.std()), place + 0.27 * (number - 1)
            total.bar(left, height, 0.25, color=palette.series[number])
            total.text(left, height, f"{height:.2g}", ha="center", va="bottom")
    total.set(title="of the whole bound", xticks=(0, 1), xticklabels=("from one random t", "from a whole chain"))
    total.set(yscale="log", ylim=(1, None))
    room_above(total, 0.08)
    return finished(figure, palette)


def score_gradient_variance(mean: float, deviation: float | Values) -> float | Values:
    """Return the variance of x^2 (x - mean) / sigma^2, x ~ N(mean, sigma^2): one sample of d E[x^2] / d mean."""
    return mean**4 / deviation**2 + 14 * mean**2 + 15 * deviation**2


def path_gradient_variance(deviation: float | Values) -> float | Values:
    """Return the variance of 2 x, x = mean + sigma eps: one sample of the same gradient, through x."""
    return 4 * deviation**2


def reparameterisation(*, style: Style = "light", seed: int = 0, count: int = 20_000, mean: float = 1.0) -> Figure:
    """Return samples of the gradient of E[x^2], x ~ N(mu, sigma^2), by mu, with the dice inside and outside.

    Inside, x is drawn by the network and nothing flows back through the draw: what remains is f(x) d log p(x) / d mu
    (the score-function estimator). Outside, x = mu + sigma eps with eps an input: the gradient f'(x) flows through x
    (Kingma & Welling 2014, Sec. 2.4). Both have the mean 2 mu.
    """
    figure, palette = blank(style, height=2.9)
    histogram, spread = panels(figure, 1, 2)
    eps = stream(seed, "figure reparameterisation").standard_normal(count)
    deviations = np.geomspace(0.05, 2, 9)
    names = ("outside: gradient through the sample", "inside: score function")
    for number, name in enumerate(names):
        colour = palette.series[number]
        one = _gradients(mean, 0.5, eps)[number]
        label = f"{name.split(':')[0]}: {one.mean():.2f} ± {one.std():.2f}"
        histogram.hist(
            one, np.linspace(-12, 18, 121).tolist(), color=colour, histtype="step", linewidth=1.3, label=label
        )
        sampled = [float(_gradients(mean, float(sigma), eps)[number].std()) for sigma in deviations]
        spread.plot(deviations, sampled, ".", color=colour, markersize=6)
    fine = np.geomspace(0.05, 2, 100)
    for number, variance in enumerate((path_gradient_variance(fine), score_gradient_variance(mean, fine))):
        spread.plot(fine, np.sqrt(variance), color=palette.series[number], linestyle=LINES[number], label=names[number])
    histogram.axvline(2 * mean, color=palette.ink, linewidth=0.8)
    histogram.set(
        title=rf"gradients (log counts), $\mu$ = {mean:g}, $\sigma$ = 0.5",
        xlabel="gradient",
        yscale="log",
        xlim=(-8, 17.8),
    )
    histogram.yaxis.set_visible(False)
    room_above(histogram, 0.25)
    histogram.legend(loc="upper right")
    spread.set(title="standard deviation of one gradient", xlabel=r"$\sigma$", xscale="log", yscale="log")
    room_above(spread, 0.25)
    spread.legend(loc="upper center")
    return finished(figure, palette)


def _gradients(mean: float, deviation: float, eps: Values) -> tuple[Values, Values]:
    """Return gradients of x^2 by the mean: through the sample, and by the score function."""
    x = mean + deviation * eps
    return 2 * x, x**2 * eps / deviation
