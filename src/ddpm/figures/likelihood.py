"""Figures of the variational bound: what each noise level costs, and rate against distortion."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ddpm.diffusion.bits import BitsPerDim
from ddpm.figures.style import Style, blank, finished, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALLEST_SHARE = 1e-7  # of the largest cost: what is less, as L_0 may be by far, would flatten all others


def bound_shares(bits: BitsPerDim, *, style: Style = "light") -> Figure:
    """Return the cost of every reverse step over t, in bits/dim: on a linear axis, and with both axes logarithmic.

    A range of times is drawn at the mean cost of its steps, with two standard errors (Nichol & Dhariwal 2021, Fig. 2).

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, palette = blank(style, height=3.0)
    first = [level.first for level in bits.levels]
    edges = [t + 1.0 for t in [*first, bits.levels[-1].last + 1]]  # the paper's t, which starts at 1, has a logarithm
    cost = [level.bits.value / level.size for level in bits.levels]
    margin = [2 * level.bits.error / level.size for level in bits.levels]
    for axes, logarithmic in zip(panels(figure, 1, 2), (False, True), strict=True):
        axes.stairs(cost, edges, color=palette.series[0], baseline=None)
        middle = [(a + b) / 2 for a, b in pairwise(edges)]
        axes.errorbar(middle, cost, yerr=margin, fmt="none", ecolor=palette.series[0], alpha=0.4)
        axes.set_xlabel("t")
        axes.set_ylabel("bits/dim of one step")
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log", nonpositive="mask")
            axes.set_ylim(bottom=max(cost) * _SMALLEST_SHARE)
    share = bits.decoder.value / bits.total.value
    figure.suptitle(
        f"{bits.total.value:.3f} ± {bits.total.error:.3f} bits/dim; "
        f"L_0 is {share:.1%} of it, L_T {bits.prior.value:.2g} bits/dim"
    )
    return finished(figure, palette)


def rate_distortion(bits: BitsPerDim, *, style: Style = "light") -> Figure:
    """Return distortion over t, rate over t, and distortion over rate (Ho et al. 2020, Fig. 5).

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, palette = blank(style, height=2.7)
    middle = [(level.first + level.last) / 2 + 1 for level in bits.levels]  # the paper's t
    distortion = [level.distortion.value for level in bits.levels]
    rate = list(bits.rates())
    curves = (
        ("t", "distortion (RMSE, 0 to 255)", middle, distortion),
        ("t", "rate (bits/dim)", middle, rate),
        ("rate (bits/dim)", "distortion (RMSE, 0 to 255)", rate, distortion),
    )
    for axes, (x_label, y_label, x, y) in zip(panels(figure, 1, 3), curves, strict=True):
        axes.plot(x, y, ".-", color=palette.series[0], markersize=3)
        if x_label == "t":
            axes.invert_xaxis()  # in the order of sampling: from noise to data
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
    return finished(figure, palette)
