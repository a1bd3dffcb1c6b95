"""Figures of the reverse process: the score field and paths of points, and pictures on their way out of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion.analytic import MixtureDenoiser
from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.process import q_sample, score_from_eps
from ddpm.diffusion.samplers import SampleStep, ddim, ddpm, spaced_timesteps
from ddpm.figures.mosaic import draw_mosaic
from ddpm.figures.style import Colour, Palette, Style, blank, finished, panels
from ddpm.figures.subject import Subject, exact_digits, roll_denoiser

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = 6.3  # of a mosaic's width, without the names of its rows


def score_field(
    denoiser: MixtureDenoiser | None = None,
    *,
    style: Style = "light",
    seed: int = 0,
    times: Sequence[int] = (10, 50, 250),
    grid: int = 15,
) -> Figure:
    """Return the density of 2-D data at three noise levels, and the score that leads uphill in it.

    The score grad log q(x_t) is -eps / sqrt(1 - alpha_bar_t) (Song et al. 2021, Sec. 3). Times
    1 - alpha_bar_t it is the way from x_t to sqrt(alpha_bar_t) E[x_0 | x_t] (Tweedie's formula). The longest arrow of
    each panel has the same length.

    Args:
        denoiser: exact, of points in the plane; none: of a Swiss roll.
        style: light or dark.
        seed: of the noise of the samples shown.
        times: code times t of the panels.
        grid: arrows a side.
    """
    denoiser = denoiser or roll_denoiser()
    figure, palette = blank(style, height=2.75)
    noise = NoiseSource(seed, range(len(denoiser.means)), (2,), dtype=torch.float64)
    for number, (axes, t) in enumerate(zip(panels(figure, 1, len(times)), times, strict=True)):
        reach = 1.25 + 1.5 * float(denoiser.schedule.signal_and_noise(t)[1])
        draw_density(axes, palette, denoiser, t, reach)
        places = plane(reach * 0.95, grid)
        eps = denoiser(places, torch.full((len(places),), t, dtype=torch.float64)).eps
        uphill = score_from_eps(eps, torch.tensor(t), denoiser.schedule)
        draw_arrows(axes, places, 1.8 * reach / grid * uphill / uphill.norm(dim=1).max(), palette.series[1])
        x_t = q_sample(denoiser.means, t, noise.normal(number, "figure score_field"), denoiser.schedule)
        axes.plot(*x_t.T.numpy(), ".", color=palette.ink, markersize=1.2)
        signal = float(denoiser.schedule.alphas_cumprod[t])
        axes.set(title=rf"t = {t + 1}, $\bar\alpha_t$ = {signal:.3f}", xlim=(-reach, reach), ylim=(-reach, reach))
        without_frame(axes)
    return finished(figure, palette)


def draw_arrows(axes: Axes, places: Tensor, arrows: Tensor, colour: Colour) -> None:
    """Draw arrows [N, 2] at places [N, 2], in the units of the axes."""
    x, y, along, up = *places.T.numpy(), *arrows.T.numpy()
    axes.quiver(x, y, along, up, color=colour, angles="xy", scale_units="xy", scale=1, width=0.005)


def without_frame(axes: Axes) -> None:
    """Leave nothing but what lies in the plane, as wide as it is high."""
    axes.set(aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plane(reach: float, side: int) -> Tensor:
    """Return the places of a square grid around 0, float64 [side^2, 2]."""
    line = torch.linspace(-reach, reach, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def draw_density(axes: Axes, palette: Palette, denoiser: MixtureDenoiser, t: int, reach: float) -> None:
    """Draw q(x_t) in the plane, from -reach to reach, as a shade."""
    from matplotlib.colors import LinearSegmentedColormap

    side = 60
    levels = [c.reshape(1, 1).expand(side * side, 1) for c in denoiser.schedule.signal_and_noise(t)]
    logarithm = denoiser.log_density(plane(reach, side), *levels).logsumexp(1)
    heights = (logarithm - logarithm.max()).exp().sqrt().reshape(side, side).T  # the root shows the slopes as well
    colours = LinearSegmentedColormap.from_list("density", [palette.paper, palette.series[0]])
    extent = (-reach, reach, -reach, reach)
    axes.imshow(heights.numpy(), extent=extent, origin="lower", cmap=colours, vmax=1.4, interpolation="bilinear")


def trajectories(
    denoiser: MixtureDenoiser | None = None,
    *,
    style: Style = "light",
    seed: int = 0,
    steps: int = 100,
    count: int = 4,
    ends: int = 150,
) -> Figure:
    """Return paths of points from the same x_T to 2-D data, under DDPM and under DDIM.

    DDPM (Ho et al. 2020, Alg. 2) adds noise at each step and wanders; DDIM (Song et al. 2021, Eq. 12, eta = 0) draws
    smooth lines, whose ends are a function of x_T. Dots are where `ends` points have arrived.
    """
    denoiser = denoiser or roll_denoiser()
    schedule = denoiser.schedule
    noise = NoiseSource(seed, range(ends), (2,), dtype=torch.float64)
    x_T = noise.normal(0, "x_T")
    times = spaced_timesteps(steps, schedule)
    figure, palette = blank(style, height=3.6)
    ways = {}
    for name, sampler in (("DDPM", ddpm), ("DDIM", ddim)):
        path = [step.x for step in sampler(denoiser, schedule, x_T, noise, timesteps=times)]
        ways[name] = torch.stack([x_T, *path]).numpy()
    reach = 1.5 * float(np.abs(ways["DDIM"][:, :count]).max())  # the longest ways of DDPM leave the panel
    for axes, (name, x) in zip(panels(figure, 1, 2), ways.items(), strict=True):
        axes.plot(*denoiser.means.T.numpy(), ".", color=palette.faint, markersize=3, zorder=0)
        for k, colour in zip(range(count), palette.ramp(count), strict=True):
            axes.plot(*x[:, k].T, color=colour, linewidth=0.8)
            axes.plot(*x[0, k], "o", color=colour, markersize=3, markerfacecolor=palette.paper)
        axes.plot(*x[-1].T, ".", color=palette.series[1], markersize=2.5, zorder=1.5)
        axes.set(title=f"{name}, {steps} steps", xlim=(-reach, reach), ylim=(-reach, reach))
        without_frame(axes)
    return finished(figure, palette)


def _run(
    subject: Subject, x_T: Tensor, noise: NoiseSource, steps: int, *, stochastic: bool = False
) -> list[SampleStep]:
    times = spaced_timesteps(steps, subject.schedule)
    sampler = ddpm if stochastic else ddim
    return list(sampler(subject.denoiser, subject.schedule, x_T, noise, timesteps=times))


def _moments(
    x_T: Tensor, path: Sequence[SampleStep], columns: int
) -> tuple[list[Tensor], list[Prediction | None], list[str]]:
    """Return x at evenly spread moments, what was believed there, and their names; the last is the finished x."""
    chosen = sorted({round(k) for k in np.linspace(0, len(path), columns)})
    x = [x_T, *(step.x for step in path)]
    believed: list[Prediction | None] = [step.prediction for step in path]
    labels = [f"t = {step.t + 1:.0f}" for step in path]
    return [x[k] for k in chosen], [[*believed, None][k] for k in chosen], [[*labels, "done"][k] for k in chosen]


def _picture_figure(style: Style, x: Tensor, columns: Sequence[str], rows: Sequence[str], title: str) -> Figure:
    """Return pictures [R, C, channels, H, W] with names and a title."""
    height = _INCHES / len(columns) * len(rows) * x.shape[-2] / x.shape[-1]
    figure, palette = blank(style, height=height + 0.6)
    axes = panels(figure, 1, 1)[0]
    draw_mosaic(axes, palette, x, columns=columns, rows=rows)
    axes.set_title(title)
    return finished(figure, palette)


def denoised_estimate(
    subject: Subject | None = None, *, style: Style = "light", seed: int = 0, pictures: int = 3, steps: int = 100
) -> Figure:
    """Return x_t along a chain of DDPM, and below it what the denoiser believes x_0 to be (Ho et al. 2020, Eq. 15).

    It begins as the mean of the data and becomes one picture: coarse things are decided first, details last.
    """
    subject = subject or exact_digits()
    noise = subject.noise(seed, pictures)
    x_T = noise.normal(0, "x_T")
    x, believed, labels = _moments(x_T, _run(subject, x_T, noise, steps, stochastic=True), columns=11)
    estimates = [at.x_0 if at is not None else last for at, last in zip(believed, x, strict=True)]
    rows = [row for pair in zip(torch.stack(x, 1), torch.stack(estimates, 1), strict=True) for row in pair]
    names = [r"$x_t$", r"$\hat x_0$"] * pictures
    return _picture_figure(
        style, torch.stack(rows), labels, names, f"DDPM, {steps} steps: $x_t$ and what it seems to be"
    )


def one_step(
    subject: Subject | None = None,
    *,
    style: Style = "light",
    seed: int = 0,
    pictures: int = 4,
    counts: Sequence[int] = (1, 2, 3, 5, 10, 25, 100),
) -> Figure:
    """Return what DDIM makes of the same x_T in 1, 2, ... steps (Song et al. 2021, Eq. 12).

    One step returns E[x_0 | x_T], close to the mean of the data: a picture of nothing. The steps are needed because
    each decides only what the noise at that level leaves open.
    """
    subject = subject or exact_digits()
    noise = subject.noise(seed, pictures)
    x_T = noise.normal(0, "x_T")
    counts = [count for count in counts if count <= len(subject.schedule)]
    made = [x_T, *(_run(subject, x_T, noise, count)[-1].x for count in counts)]
    labels = [r"$x_T$", *(f"{count} step" + ("s" if count > 1 else "") for count in counts)]
    rows = [f"no. {k}" for k in range(pictures)]
    return _picture_figure(style, torch.stack(made, 1), labels, rows, "The same noise, denoised in more and more steps")


def reverse_strips(
    subjects: Sequence[Subject] | None = None,
    *,
    style: Style = "light",
    seed: int = 0,
    pictures: int = 3,
    steps: int = 100,
) -> Figure:
    """Return DDPM's way from the same x_T to pictures, under each subject's schedule (Ho et al. 2020, Alg. 2).

    With the linear schedule nothing shows for the first third of the steps; with cosine the picture comes steadily.

    Args:
        subjects: what to sample from; none: the exact denoisers of the digits, linear and cosine.
        style: light or dark.
        seed: of the noise.
        pictures: how many.
        steps: of the sampler.
    """
    subjects = subjects or [exact_digits("linear"), exact_digits("cosine")]
    ways, columns = [], []
    for subject in subjects:
        noise = subject.noise(seed, pictures)
        x_T = noise.normal(0, "x_T")
        x, _, labels = _moments(x_T, _run(subject, x_T, noise, steps, stochastic=True), columns=11)
        ways.append(torch.stack(x, 1))
        columns = labels
    rows = [way[k] for k in range(pictures) for way in ways]
    names = [subject.name for _ in range(pictures) for subject in subjects]
    return _picture_figure(style, torch.stack(rows), columns, names, f"Reverse process, DDPM, {steps} steps")


def same_noise(
    subject: Subject | None = None, *, style: Style = "light", seed: int = 0, pictures: int = 8, steps: int = 50
) -> Figure:
    """Return what the same x_T becomes under DDPM twice, with other noise on the way, and under DDIM twice.

    DDPM's pictures differ; DDIM's are equal, for at eta = 0 the picture is a function of x_T (Song et al. 2021,
    Sec. 4.1).
    """
    subject = subject or exact_digits()
    x_T = subject.noise(seed, pictures).normal(0, "x_T")
    rows = [x_T]
    for stochastic in (True, False):
        for other in (1, 2):
            on_the_way = subject.noise((seed + other) % 2**64, pictures)
            rows.append(_run(subject, x_T, on_the_way, steps, stochastic=stochastic)[-1].x)
    names = [r"$x_T$", "DDPM", "DDPM again", "DDIM", "DDIM again"]
    apart = [float((a - b).abs().max()) for a, b in ((rows[1], rows[2]), (rows[3], rows[4]))]
    title = f"One $x_T$ each; largest difference: DDPM {apart[0]:.2g}, DDIM {apart[1]:.2g}"
    return _picture_figure(style, torch.stack(rows), [f"no. {k}" for k in range(pictures)], names, title)
