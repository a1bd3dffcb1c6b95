"""Figures of the reverse step: what its mean is made of, what its error costs, and why it is Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.diffusion.denoiser import Parameterization
from ddpm.diffusion.objectives import bound_weight
from ddpm.diffusion.schedules import NoiseSchedule, VarianceKind, make_schedule
from ddpm.figures.style import LINES, Style, blank, finished, panels, reference, room_above

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.float64]


def posterior_weights(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return the weights of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0) over t, linear and logarithmic.

    mu-tilde = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x_0 + sqrt(alpha_t) (1 - alpha_bar_{t-1}) /
    (1 - alpha_bar_t) x_t (Ho et al. 2020, Eq. 7). At t = 1 all weight is on x_0; soon next to none is.
    """
    schedule = schedule or make_schedule("linear")
    t = torch.arange(len(schedule), dtype=torch.float64)
    transition = schedule.transition(t, t - 1)
    figure, palette = blank(style, height=2.7)
    for axes, logarithmic in zip(panels(figure, 1, 2), (False, True), strict=True):
        axes.plot(t + 1, transition.x_0_weight, color=palette.series[0], label=r"of $x_0$")
        x_t_weight = torch.where(transition.x_t_weight > 0, transition.x_t_weight, math.nan)  # 0 at t = 1
        axes.plot(t + 1, x_t_weight, color=palette.series[1], linestyle="--", label=r"of $x_t$")
        axes.set(xlabel="t", title=r"weights in $\tilde\mu_t(x_t, x_0)$" + (", logarithmic" if logarithmic else ""))
        if logarithmic:
            axes.set(xscale="log", yscale="log")
        axes.legend(loc="center" if not logarithmic else "lower left")
    return finished(figure, palette)


_SIGNS: dict[Parameterization, str] = {"eps": r"$\epsilon$", "x_0": "$x_0$", "v": "$v$", "mu": r"$\tilde\mu$"}


def loss_weights(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return the w_t that turns a squared error into L_{t-1} (nats), for each parameterization and variance, over t.

    For eps, w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) (Ho et al. 2020, Eq. 12). The straight line at 1
    is L_simple (Eq. 14), of eps: less weight than the bound at small t, more at large. All four lines are one and the
    same loss, of errors measured in different units.
    """
    schedule = schedule or make_schedule("linear")
    t = torch.arange(1, len(schedule))
    figure, palette = blank(style, height=2.9)
    variances: dict[VarianceKind, str] = {"fixed_large": r"\beta_t", "fixed_small": r"\tilde\beta_t"}
    for axes, (variance, symbol) in zip(panels(figure, 1, 2), variances.items(), strict=True):
        for number, (name, sign) in enumerate(_SIGNS.items()):
            weight = bound_weight(t, schedule, name, variance)
            axes.plot(t + 1, weight, color=palette.series[number], linestyle=LINES[number], label=f"of {sign}")
        reference(axes, palette, 1.0, r"$L_{simple}$, of $\epsilon$")
        axes.set(title=rf"weight of a squared error in $L_{{t-1}}$, $\sigma_t^2 = {symbol}$", xlabel="t", yscale="log")
        room_above(axes, 0.25)
        axes.legend(loc="upper right", ncols=2)
    return finished(figure, palette)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A 1-D mixture of Gaussians: weights, means, variances [K]."""

    weights: Values
    means: Values
    variances: Values

    def density(self, x: Values) -> Values:
        """Return the density at x [N]."""
        squares = (x[:, None] - self.means) ** 2 / self.variances
        each = self.weights * np.exp(-squares / 2) / np.sqrt(2 * math.pi * self.variances)
        total: Values = each.sum(1)
        return total

    @property
    def mean(self) -> float:
        """E[x]."""
        return float(self.weights @ self.means)

    @property
    def variance(self) -> float:
        """Var[x]."""
        return float(self.weights @ (self.variances + self.means**2)) - self.mean**2


TWO_PEAKS = Mixture(np.array([0.5, 0.5]), np.array([-1.0, 1.0]), np.array([0.04, 0.04]))
"""What x_{t-1} is in `why_gaussian`."""


def reverse_of(before: Mixture, beta: float, x_t: float) -> Mixture:
    """Return q(x_{t-1} | x_t), exactly, for x_{t-1} ~ `before` and x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) eps.

    By Bayes' rule, it is a mixture as well: each component is the product of two Gaussians.
    """
    gain = 1 - beta
    spread = gain * before.variances + beta
    evidence = np.log(before.weights) - 0.5 * ((x_t - math.sqrt(gain) * before.means) ** 2 / spread + np.log(spread))
    weights = np.exp(evidence - evidence.max())
    variances = before.variances * beta / spread
    means = variances * (before.means / before.variances + math.sqrt(gain) * x_t / beta)
    return Mixture(weights / weights.sum(), means, variances)


def non_gaussianity(mixture: Mixture, points: int = 4001) -> float:
    """Return KL(mixture || the Gaussian of the same mean and variance) in nats; 0 for a Gaussian."""
    deviation = math.sqrt(mixture.variance)
    x = np.linspace(mixture.mean - 12 * deviation, mixture.mean + 12 * deviation, points)
    p, g = mixture.density(x), gaussian_density(x, mixture.mean, mixture.variance)
    inside = (p > 0) & (g > 0)
    terms = np.where(inside, p * np.log(np.where(inside, p, 1.0) / np.where(inside, g, 1.0)), 0.0)
    return float(terms.sum() * (x[1] - x[0]))


def gaussian_density(x: Values, mean: float, variance: float) -> Values:
    """Return the density of N(mean, variance) at x."""
    value: Values = np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    return value


def why_gaussian(
    before: Mixture = TWO_PEAKS,
    *,
    style: Style = "light",
    betas: Sequence[float] = (0.9, 0.5, 0.1, 0.01),
    x_t: float = 0.1,
) -> Figure:
    """Return the exact reverse step q(x_{t-1} | x_t) of two peaks beside the Gaussian of its moments, for each beta.

    For a small beta the likelihood of x_{t-1} is so narrow that the density of the data is nearly log-linear inside
    it: the reverse step has the form of the forward one (Feller 1949; Sohl-Dickstein et al. 2015, Sec. 2.2). For a
    large beta it keeps the data's peaks, and no Gaussian fits. The last panel measures it: KL in nats, between the
    peaks and on one of them.
    """
    figure, palette = blank(style, height=4.3)
    grid = figure.add_gridspec(2, 4)
    for column, beta in enumerate(betas):
        axes = figure.add_subplot(grid[0, column])
        exact = reverse_of(before, beta, x_t)
        reach = max(4 * math.sqrt(exact.variance), 0.15)
        x = np.linspace(exact.mean - reach, exact.mean + reach, 401)
        axes.fill_between(x, exact.density(x), color=palette.series[0], alpha=0.25, linewidth=0)
        axes.plot(x, exact.density(x), color=palette.series[0], label="exact")
        axes.plot(x, gaussian_density(x, exact.mean, exact.variance), "--", color=palette.series[1], label="Gaussian")
        axes.set(title=rf"$\beta$ = {beta:g}", xlabel=r"$x_{t-1}$", yticks=[], ylim=(0, None))
        room_above(axes, 0.3)
    figure.axes[0].set_ylabel(rf"$q(x_{{t-1}} \mid x_t = {x_t:g})$")
    below = figure.add_subplot(grid[1, :])
    many = np.geomspace(1e-4, 0.99, 60)
    for number, (place, name) in enumerate(((x_t, "between the peaks"), (1.0, "on a peak"), (2.0, "beyond"))):
        far = [max(non_gaussianity(reverse_of(before, beta, place)), 1e-16) for beta in many]
        label = rf"$x_t$ = {place:g}, {name}"
        below.plot(many, far, color=palette.series[number + 2], linestyle=LINES[number], label=label)
    below.set(
        xscale="log", yscale="log", xlabel=r"$\beta$", ylabel="nats", ylim=(1e-10, 3), title="KL(exact || Gaussian)"
    )
    below.axvspan(1e-4, 0.02, color=palette.faint, alpha=0.25, linewidth=0)
    below.text(1.1e-4, 0.3, "the linear schedule's betas")
    below.legend(loc="lower center")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[-2].legend(handles, labels, loc="upper right", handlelength=1.0, borderpad=0.1)
    return finished(figure, palette)
