"""Formulas that common texts print wrong, drawn beside the right ones: what the mistake does to the numbers.

Right are Ho et al. 2020 with alpha_t = 1 - beta_t and alpha_bar_t the product of alpha_1 .. alpha_t; T = 1000, linear,
unless a schedule is given. The labels E1, E2, ... are those of the tests in tests/diffusion/test_errata.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.diffusion.objectives import bound_weight, snr
from ddpm.diffusion.schedules import NoiseSchedule, Transition, make_schedule
from ddpm.figures.forward import FreeStep
from ddpm.figures.style import Palette, Style, blank, finished, panels, reference, room_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.float64]


def compare(
    axes: Axes, palette: Palette, t: Values, right: tuple[str, Values], wrong: tuple[str, Values], title: str
) -> None:
    """Draw what is right, and dashed what is wrong, each with its name."""
    axes.plot(t, wrong[1], color=palette.wrong, linestyle="--", label=f"wrong: {wrong[0]}")
    axes.plot(t, right[1], color=palette.right, label=f"right: {right[0]}")
    axes.set(title=title, xlabel="t")


def tables(schedule: NoiseSchedule) -> tuple[Values, Values, Values, Values, Transition]:
    """Return t = 2 .. T, and there beta, alpha-bar, alpha-bar of t - 1, and the transition."""
    code = torch.arange(1, len(schedule), dtype=torch.float64)
    cumulative = schedule.alphas_cumprod.numpy()
    return (
        code.numpy() + 1,
        schedule.betas.numpy()[1:],
        cumulative[1:],
        cumulative[:-1],
        schedule.transition(code, code - 1),
    )


def errata_posterior(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return E1, E5 and E2: the weights of x_0 and x_t in mu-tilde, and beta-tilde (Ho et al. 2020, Eq. 7)."""
    schedule = schedule or make_schedule("linear")
    t, beta, cumulative, before, right = tables(schedule)
    alpha, alpha_before = 1 - beta, 1 - schedule.betas.numpy()[:-1]
    figure, palette = blank(style, height=3.1)
    first, second, third = panels(figure, 1, 3)
    compare(
        first,
        palette,
        t,
        (r"$\frac{\sqrt{\bar\alpha_{t-1}}\beta_t}{1-\bar\alpha_t}$", right.x_0_weight.numpy()),
        (r"$\frac{\sqrt{\alpha_{t-1}\beta_t}}{1-\alpha_t}$", np.sqrt(alpha_before * beta) / (1 - alpha)),
        r"E1: weight of $x_0$",
    )
    compare(
        second,
        palette,
        t,
        (r"$\frac{\sqrt{\alpha_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}$", right.x_t_weight.numpy()),
        (
            r"$\frac{\sqrt{\bar\alpha_t}(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}$",
            np.sqrt(cumulative) * (1 - before) / (1 - cumulative),
        ),
        r"E5: weight of $x_t$",
    )
    compare(
        third,
        palette,
        t,
        (r"$\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\beta_t$", right.variance_small.numpy()),
        (r"$\frac{1-\alpha_{t-1}}{1-\alpha_t}$", (1 - alpha_before) / (1 - alpha)),
        r"E2: variance $\tilde\beta_t$",
    )
    second.set(ylim=(0, None))
    for axes in (first, third):
        axes.set(yscale="log")
    for axes in (first, second, third):
        room_above(axes, 0.28)
        axes.legend(loc="upper right")
    return finished(figure, palette)


def reverse_log10_variances(schedule: NoiseSchedule, *, divide_by_cumulative: bool) -> Values:
    """Return log10 of the variance of x_s for s = T, T - 1, ..., 0 under ancestral sampling of N(0, 1) data.

    The exact eps is sqrt(1 - alpha_bar_t) x_t, so the mean of Eq. 11 is alpha_t x_t divided by sqrt(alpha_t), or, with
    the mistake, by sqrt(alpha_bar_t); each step adds beta_t, the last one none. In logarithms, for it overflows.
    """
    alphas, cumulative = schedule.alphas.numpy(), schedule.alphas_cumprod.numpy()
    logarithm, seen = 0.0, [0.0]
    for t in range(len(schedule) - 1, -1, -1):
        logarithm += 2 * np.log(alphas[t]) - np.log(cumulative[t] if divide_by_cumulative else alphas[t])
        if t > 0:
            logarithm = np.logaddexp(logarithm, np.log(1 - alphas[t]))
        seen.append(logarithm)
    decimal: Values = np.array(seen) / np.log(10)
    return decimal


def errata_reverse(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return E3: dividing the reverse mean by sqrt(alpha_bar_t), and what sampling makes of it.

    The right mean is Ho et al. 2020, Eq. 11. With the exact eps of N(0, 1) data the right sampler keeps the
    variance at 1; the wrong one leaves it far above what
    a float64 can hold.
    """
    schedule = schedule or make_schedule("linear")
    t = np.arange(1, len(schedule) + 1.0)
    figure, palette = blank(style, height=2.9)
    factor, variance = panels(figure, 1, 2)
    compare(
        factor,
        palette,
        t,
        (r"$1/\sqrt{\alpha_t}$", (1 / schedule.alphas.sqrt()).numpy()),
        (r"$1/\sqrt{\bar\alpha_t}$", (1 / schedule.alphas_cumprod.sqrt()).numpy()),
        r"E3: factor before the reverse mean $\mu_\theta$",
    )
    factor.set(yscale="log")
    names = (r"$1/\sqrt{\alpha_t}$", r"$1/\sqrt{\bar\alpha_t}$")
    right, wrong = (reverse_log10_variances(schedule, divide_by_cumulative=flag) for flag in (False, True))
    left_to_go = np.arange(len(schedule), -1.0, -1.0)
    compare(variance, palette, left_to_go, (names[0], right), (names[1], wrong), r"E3: $\log_{10}$ variance of $x_t$")
    reference(variance, palette, float(np.log10(np.finfo(np.float64).max)), "largest float64")
    variance.set(xlabel="t, from noise to data")
    variance.invert_xaxis()
    factor.legend(loc="upper left")
    variance.legend(loc="center right")
    return finished(figure, palette)


def errata_noise(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return E17, E21 and E29: how noise adds up.

    E17: beta_t grows linearly, the total 1 - alpha_bar_t is S-shaped. E21: (1 - v) x + v eps has no roots, and its
    variance settles at v / (2 - v), for data of variance 1. E29: repeated steps of 0.02 add up to 1 - (1 -
    beta)^t, one only in the limit.
    """
    schedule = schedule or make_schedule("linear")
    t = np.arange(1, len(schedule) + 1.0)
    betas, total = schedule.betas.numpy(), (1 - schedule.alphas_cumprod).numpy()
    figure, palette = blank(style, height=2.9)
    curve, mixing, series = panels(figure, 1, 3)
    compare(
        curve, palette, t, (r"$1-\bar\alpha_t$", total), ("linear in t", t / len(t)), "E17: share of noise in $x_t$"
    )
    roots, plain = [1.0], [1.0]
    for beta in betas:
        roots.append((1 - beta) * roots[-1] + beta)
        plain.append((1 - beta) ** 2 * plain[-1] + beta**2)
    compare(
        mixing,
        palette,
        np.arange(len(t) + 1.0),
        (r"$\sqrt{1-\beta}\,x+\sqrt{\beta}\,\epsilon$", np.array(roots)),
        (r"$(1-\beta)\,x+\beta\,\epsilon$", np.array(plain)),
        r"E21: variance of $x_t$",
    )
    steps = np.arange(1, 301.0)
    step = FreeStep(0.98, 0.02)
    compare(
        series,
        palette,
        steps,
        (r"$1-(1-\beta)^t$", step.variance(0.0, steps)),
        ("1 at once", np.ones_like(steps)),
        "E29: noise of equal steps",
    )
    for axes in (curve, mixing, series):
        axes.set(ylim=(0, 1.05))
        room_above(axes, 0.28)
        axes.legend(loc="upper right")
    return finished(figure, palette)


def errata_weights(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return E6, E9 and E26: the weight of a squared error of eps, that of L_simple, and of x_0 against eps.

    E6: w_t has alpha_t, not alpha_bar_t, below (Ho et al. 2020, Eq. 12; sigma^2 = beta). E9: L_simple is a reweighting
    with 1, not L_{t-1}. E26: an x_0 loss is the eps loss over the SNR; they are no more the same than 1 and SNR are.
    """
    schedule = schedule or make_schedule("linear")
    t, beta, cumulative, _, _ = tables(schedule)
    code = torch.arange(1, len(schedule))
    right = bound_weight(code, schedule, "eps", "fixed_large").numpy()
    figure, palette = blank(style, height=2.9)
    first, second, third = panels(figure, 1, 3)
    compare(
        first,
        palette,
        t,
        (r"$\frac{\beta_t^2}{2\sigma_t^2\alpha_t(1-\bar\alpha_t)}$", right),
        (r"$\frac{\beta_t^2}{2\sigma_t^2\bar\alpha_t(1-\bar\alpha_t)}$", beta / (2 * cumulative * (1 - cumulative))),
        r"E6: weight of an $\epsilon$ error",
    )
    compare(
        second, palette, t, (r"$w_t$ of $L_{t-1}$", right), ("1, of $L_{simple}$", np.ones_like(t)), "E9: the weight of"
    )
    second.set_title(r"E9: $L_{simple}$ is not $L_{t-1}-C$")
    compare(
        third,
        palette,
        t,
        ("1 / SNR", 1 / snr(code, schedule).numpy()),
        ("1", np.ones_like(t)),
        r"E26: $x_0$ error per $\epsilon$ error",
    )
    for axes in (first, second, third):
        axes.set(yscale="log")
        room_above(axes, 0.36)
        axes.legend(loc="upper right")
    return finished(figure, palette)
