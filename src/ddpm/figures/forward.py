"""Figures of the forward process: from any data to noise, and what happens where alpha and beta are chosen freely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.diffusion.noise import NoiseSource, stream
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.figures.mosaic import draw_mosaic
from ddpm.figures.style import LINES, Palette, Style, blank, finished, legend_below, panels, reference, room_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.float64]
Form = Literal["roots", "plain"]
"""x <- sqrt(a) x + sqrt(b) eps, or x <- a x + b eps."""


@dataclass(frozen=True, slots=True)
class FreeStep:
    """One step of a chain whose weights need not belong together.

    Attributes:
        a: of x, from 0.
        b: of the noise, above 0.
        form: whether their roots are taken.
    """

    a: float
    b: float
    form: Form = "roots"

    @property
    def gain(self) -> float:
        """What a step multiplies the variance by."""
        return self.a if self.form == "roots" else self.a**2

    @property
    def added(self) -> float:
        """What a step adds to the variance."""
        return self.b if self.form == "roots" else self.b**2

    @property
    def limit(self) -> float:
        """The variance after very many steps: b / (1 - a), or b^2 / (1 - a^2); infinite from a = 1 on."""
        return self.added / (1 - self.gain) if self.gain < 1 else math.inf

    def variance(self, start: float, steps: Values) -> Values:
        """Return the variance after numbers of steps, from that of the data."""
        if self.gain == 1:
            return start + steps * self.added
        kept = self.gain**steps
        return kept * start + self.added * (1 - kept) / (1 - self.gain)

    def walk(self, x: Values, times: Sequence[int], rng: np.random.Generator) -> list[Values]:
        """Return x after each of the increasing numbers of steps, made one by one."""
        seen = []
        for step in range(times[-1] + 1):
            if step:
                x = math.sqrt(self.gain) * x + math.sqrt(self.added) * rng.standard_normal(len(x))
            if step in times:
                seen.append(x)
        return seen


def lopsided(count: int, rng: np.random.Generator) -> Values:
    """Return 1-D data [count] far from Gaussian: a narrow peak at the left and a block at the right."""
    left = rng.normal(-1.0, 0.15, count)
    right = rng.uniform(1.0, 2.0, count)
    return np.where(rng.random(count) < 0.4, left, right)


def density(x: Values, edges: Values) -> tuple[Values, Values]:
    """Return the middles of the bins and the density there; what lies outside counts in the total."""
    counts, _ = np.histogram(x, bins=edges)
    return (edges[:-1] + edges[1:]) / 2, counts / (len(x) * np.diff(edges))


_CASES: dict[Form, tuple[tuple[str, float, float, tuple[int, ...]], ...]] = {
    "roots": (
        ("all in one step", 0.0, 1.0, (0, 1, 2)),
        ("smooth", 0.98, 0.02, (0, 10, 50, 250)),
        ("abrupt", 0.3, 0.7, (0, 1, 2, 6)),
        ("explodes", 1.02, 0.02, (0, 20, 60, 120)),
        ("too much noise", 0.98, 0.06, (0, 10, 50, 250)),
        ("too little noise", 0.9, 0.02, (0, 5, 20, 60)),
    ),
    "plain": (
        ("all in one step", 0.0, 1.0, (0, 1, 2)),
        ("smooth", 0.99, math.sqrt(1 - 0.99**2), (0, 10, 50, 250)),
        ("abrupt", 0.6, 0.8, (0, 1, 2, 6)),
        ("explodes", 1.01, 0.14, (0, 20, 60, 120)),
        ("too much noise", 0.98, 0.4, (0, 10, 50, 150)),
        ("hardly any noise", 0.98, 0.02, (0, 10, 30, 150)),
    ),
}


def forward_histograms(form: Form = "roots", *, style: Style = "light", seed: int = 0, count: int = 20_000) -> Figure:
    """Return densities of 1-D data after 0, 1, 2, ... steps, with alpha and beta chosen independently.

    Each line joins the middles of a histogram's bins; dashes are N(0, limit), where there is one. Only a + b = 1 (in
    the plain form: a^2 + b^2 = 1) leads to N(0, 1), which is why Ho et al. 2020, Eq. 2 has sqrt(1 - beta) and
    sqrt(beta).
    """
    figure, palette = blank(style, height=4.6)
    axes_of = panels(figure, 2, 3)
    edges = np.linspace(-5, 5, 101)
    for number, (axes, (name, a, b, times)) in enumerate(zip(axes_of, _CASES[form], strict=True)):
        step = FreeStep(a, b, form)
        rng = stream(seed, f"figure forward_histograms {form}", number)
        colours = palette.ramp(len(times))
        seen = step.walk(lopsided(count, rng), times, rng)
        for x, t, colour in zip(seen, times, colours, strict=True):
            axes.plot(*density(x, edges), color=colour, linewidth=1.3, label=f"{t} steps" if t != 1 else "1 step")
        limit, top = "no limit", 1.4
        if math.isfinite(step.limit):
            height = np.exp(-(edges**2) / (2 * step.limit)) / math.sqrt(2 * math.pi * step.limit)
            axes.plot(edges, height, color=palette.wrong, linestyle="--", linewidth=1.2)
            limit, top = f"limit {step.limit:.2g}", max(top, 1.05 * float(height.max()))
        axes.set(title=f"{name}\na = {a:.3g}, b = {b:.3g}, {limit}", xlim=(-5, 5), ylim=(0, top))
        axes.legend(loc="upper right", handlelength=1.2, labelspacing=0.2, borderpad=0.1)
    step_text = (
        r"x \leftarrow \sqrt{a}\,x + \sqrt{b}\,\epsilon" if form == "roots" else r"x \leftarrow a\,x + b\,\epsilon"
    )
    figure.suptitle(f"Density of x under ${step_text}$; dashed: N(0, limit)")
    return finished(figure, palette)


def forward_limits(*, style: Style = "light", seed: int = 0, count: int = 4_000, steps: int = 300) -> Figure:
    """Return variance over steps of freely chosen alpha and beta, in both forms: lines exact, dots sampled.

    The limits are b / (1 - a) for x <- sqrt(a) x + sqrt(b) eps and b^2 / (1 - a^2) for x <- a x + b eps; from a = 1
    on there is none. The plain form with a + b = 1 ends at b / (2 - b), not at 1.
    """
    figure, palette = blank(style, height=3.7)
    chosen: dict[Form, tuple[tuple[float, float], ...]] = {
        "roots": ((0.98, 0.02), (0.98, 0.06), (0.9, 0.02), (1.0, 0.02), (1.01, 0.02)),
        "plain": ((0.99, math.sqrt(1 - 0.99**2)), (0.99, 0.28), (0.98, 0.02), (1.0, 0.14), (1.01, 0.14)),
    }
    titles = {
        "roots": r"$x \leftarrow \sqrt{a}\,x + \sqrt{b}\,\epsilon$: limit $b/(1-a)$",
        "plain": r"$x \leftarrow a\,x + b\,\epsilon$: limit $b^2/(1-a^2)$",
    }
    for axes, (form, pairs) in zip(panels(figure, 1, 2), chosen.items(), strict=True):
        for number, (a, b) in enumerate(pairs):
            step, colour = FreeStep(a, b, form), palette.series[number]
            rng = stream(seed, f"figure forward_limits {form}", number)
            times = [round(t) for t in np.linspace(0, steps, 13)]
            sampled = [x.var() for x in step.walk(2 * rng.standard_normal(count), times, rng)]
            axes.plot(
                every := np.arange(steps + 1.0),
                step.variance(4.0, every),
                color=colour,
                linestyle=LINES[number],
                label=f"a = {a:.3g}, b = {b:.3g}: "
                + (f"to {step.limit:.3g}" if math.isfinite(step.limit) else "no limit"),
            )
            axes.plot(times, sampled, ".", color=colour, markersize=5)
        axes.set(title=titles[form], xlabel="steps", ylabel="variance", yscale="log", ylim=(0.006, 3e3))
        legend_below(axes)
    return finished(figure, palette)


def forward_variance(
    schedules: Mapping[str, NoiseSchedule] | None = None, *, style: Style = "light", seed: int = 0, count: int = 6_000
) -> Figure:
    """Return the variance of 1-D data over t for fixed, linear and cosine schedules, from 4 and from 0.1.

    Lines are alpha_bar_t var(x_0) + 1 - alpha_bar_t (Ho et al. 2020, Eq. 4); dots are sampled step by step (Eq. 2).
    A fixed beta has done nearly all after half of the steps; a growing one spreads the change.
    """
    schedules = schedules or {name: make_schedule(name) for name in ("constant", "linear", "cosine")}
    figure, palette = blank(style, height=2.8)
    for axes, start in zip(panels(figure, 1, 2), (4.0, 0.1), strict=True):
        for number, (name, schedule) in enumerate(schedules.items()):
            rng = stream(seed, f"figure forward_variance {start}", number)
            kept = schedule.alphas_cumprod.numpy()
            t = np.arange(1, len(kept) + 1)
            colour = palette.series[number]
            axes.plot(t, kept * start + 1 - kept, color=colour, linestyle=LINES[number], label=name)
            times = np.unique(np.linspace(1, len(kept), 14).astype(int))
            axes.plot(times, _sampled_variances(schedule, start, times, count, rng), ".", color=colour, markersize=5)
        reference(axes, palette, 1.0)
        axes.set(title=f"data of variance {start:g}", xlabel="t", ylabel=r"variance of $x_t$", ylim=(0, None))
        axes.legend(loc="upper right" if start > 1 else "lower right")
    return finished(figure, palette)


def _sampled_variances(
    schedule: NoiseSchedule, start: float, times: NDArray[np.int_], count: int, rng: np.random.Generator
) -> list[float]:
    x = math.sqrt(start) * rng.standard_normal(count)
    seen = []
    for t, beta in enumerate(schedule.betas.tolist(), 1):
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * rng.standard_normal(count)
        if t in times:
            seen.append(float(x.var()))
    return seen


def forward_strips(
    x_0: torch.Tensor,
    schedules: Mapping[str, NoiseSchedule] | None = None,
    *,
    style: Style = "light",
    seed: int = 0,
    columns: int = 11,
) -> Figure:
    """Return pictures over t under each schedule, all with the same noise (Ho et al. 2020, Eq. 4).

    Under the linear schedule the last third is all but pure noise; cosine destroys evenly (Nichol & Dhariwal 2021,
    Fig. 3).

    Args:
        x_0: [K, C, H, W] in [-1, 1].
        schedules: by name; none: linear and cosine.
        style: light or dark.
        seed: of the noise.
        columns: moments from clean data to t = T.
    """
    schedules = schedules or {name: make_schedule(name) for name in ("linear", "cosine")}
    eps = NoiseSource(seed, range(len(x_0)), x_0.shape[1:]).normal(0, "figure forward_strips")
    rows, labels = [], []
    for picture, noise in zip(x_0, eps, strict=True):
        for name, schedule in schedules.items():
            times = [-1, *(round(t) for t in np.linspace(0, len(schedule), columns)[1:] - 1)]
            rows.append(torch.stack([q_sample(picture, t, noise, schedule) if t >= 0 else picture for t in times]))
            labels.append(name)
    figure, palette = blank(style, height=0.45 + 6.4 / columns * len(rows))
    axes = panels(figure, 1, 1)[0]
    shares = [f"{k / (columns - 1):.0%}" for k in range(columns)]
    draw_mosaic(axes, palette, torch.stack(rows), columns=shares, rows=labels)
    axes.set_title("The same noise under each schedule, after this share of the T steps")
    return finished(figure, palette)


def drift_and_noise(
    schedule: NoiseSchedule | None = None, *, style: Style = "light", seed: int = 0, count: int = 1_500
) -> Figure:
    """Return the forward step as an increment: a drift and a noise, the shape of a stochastic differential equation.

    x_t - x_{t-1} = (sqrt(1 - beta) - 1) x_{t-1} + sqrt(beta) eps, which tends to dx = -beta(t) x / 2 dt + sqrt(beta(t))
    dw (Song et al. 2021, Eq. 11): paths, the two parts summed over one of them, and the increments of one step.
    """
    schedule = schedule or make_schedule("linear")
    rng = stream(seed, "figure drift_and_noise")
    betas = schedule.betas.numpy()
    middle = len(betas) // 2
    x = [lopsided(count, rng)]
    drifts, noises = [], []
    for beta in betas:
        drifts.append((math.sqrt(1 - beta) - 1) * x[-1])
        noises.append(math.sqrt(beta) * rng.standard_normal(count))
        x.append(x[-1] + drifts[-1] + noises[-1])
    figure, palette = blank(style, height=2.7)
    paths, parts, cloud = panels(figure, 1, 3)
    for k, colour in enumerate(palette.series):
        paths.plot([value[k] for value in x], color=colour, linewidth=0.6)
    paths.set(title="six paths", xlabel="t", ylabel=r"$x_t$")
    t = np.arange(1, len(betas) + 1)
    drift, noise = (np.cumsum([part[0] for part in increments]) for increments in (drifts, noises))
    parts.plot(t, drift, color=palette.series[0], label="drift")
    parts.plot(t, noise, color=palette.series[1], linewidth=0.7, label="noise")
    parts.plot(t, drift + noise, color=palette.ink, linewidth=0.7, label=r"$x_t - x_0$")
    parts.set(title="parts of one path, summed", xlabel="t")
    room_above(parts, 0.3)
    parts.legend(loc="upper left")
    _increments(cloud, palette, x[middle], x[middle + 1] - x[middle], float(betas[middle]))
    cloud.set(title=f"one step, to t = {middle + 1}", xlabel=r"$x_{t-1}$", ylabel=r"$x_t - x_{t-1}$")
    return finished(figure, palette)


def _increments(axes: Axes, palette: Palette, x: Values, increments: Values, beta: float) -> None:
    ends = np.array([x.min(), x.max()])
    drift = (math.sqrt(1 - beta) - 1) * ends
    axes.plot(x, increments, ".", color=palette.faint, markersize=2)
    axes.plot(ends, drift, color=palette.series[0], label="drift")
    for sign, label in ((2, r"$\pm 2\sqrt{\beta_t}$"), (-2, None)):
        axes.plot(ends, drift + sign * math.sqrt(beta), color=palette.series[1], linestyle="--", label=label)
    room_above(axes, 0.2)
    axes.legend(loc="upper right")
