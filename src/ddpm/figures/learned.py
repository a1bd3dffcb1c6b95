"""The score that a network has learned, beside the exact one of the data that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm.diffusion.analytic import finite_set_denoiser
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.process import q_sample
from ddpm.figures.reverse import draw_arrows, plane, without_frame
from ddpm.figures.style import Style, blank, finished, panels
from ddpm.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 400  # points drawn behind the arrows


def eps_at(denoiser: Denoiser, places: Tensor, t: int, dtype: torch.dtype) -> Tensor:
    """Return what a denoiser of points takes for the noise in places [N, 2] at code time t, float64 [N, 2].

    The network of a model sees points as pictures [N, 2, 1, 1]; exact denoisers do not mind.
    """
    x_t = places.to(dtype)[:, :, None, None]
    with torch.no_grad():
        return denoiser(x_t, torch.full((len(x_t),), t)).eps.flatten(1).double()


def relative_error(learned: Tensor, exact: Tensor) -> float:
    """Return the root of the mean squared error of vectors [N, 2] over that of the exact ones' squares."""
    return float(((learned - exact).square().sum() / exact.square().sum()).sqrt())


def score_learned(
    model: Model,
    points: Tensor,
    *,
    style: Style = "light",
    seed: int = 0,
    times: Sequence[int] | None = None,
    grid: int = 15,
) -> Figure:
    """Return the exact score of a finite set of points at three noise levels, and below it the learned one.

    Arrows are -sqrt(1 - alpha_bar_t) eps, the score times 1 - alpha_bar_t: the way to sqrt(alpha_bar_t) E[x_0 | x_t]
    (Tweedie's formula; Song et al. 2021, Sec. 3), in both rows at one scale. The titles below say how far the
    learned score is off on average where q(x_t) is: E ||learned - exact||^2 over E ||exact||^2, its root. Elsewhere
    the network has seen nothing.

    Args:
        model: of points in the plane.
        points: [N, 2], what it was trained on, as x_0.
        style: light or dark.
        seed: of the noise.
        times: code times t of the columns; none: a fiftieth, a fifth and half of T.
        grid: arrows a side.
    """
    schedule = model.schedule
    times = times or [round(share * (len(schedule) - 1)) for share in (0.02, 0.2, 0.5)]
    exact, learned = finite_set_denoiser(schedule, points.double()), model.denoiser()
    noise = NoiseSource(seed, range(min(_SHOWN, len(points))), (2,), dtype=torch.float64)
    figure, palette = blank(style, height=5.2)
    axes_of = panels(figure, 2, len(times))
    for column, t in enumerate(times):
        deviation = float(schedule.signal_and_noise(t)[1])
        reach = 1.25 + 1.5 * deviation
        places = plane(reach * 0.95, grid)
        x_t = q_sample(
            points[: len(noise.pictures)].double(), t, noise.normal(column, "figure score_learned"), schedule
        )
        of_exact, of_learned = (eps_at(exact, where, t, torch.float64) for where in (places, x_t))
        fields = (of_exact, eps_at(learned, places, t, torch.float32))
        scale = 1.8 * reach / grid / max(float(of_exact.norm(dim=1).max()), 1e-12)
        off = relative_error(eps_at(learned, x_t, t, torch.float32), of_learned)
        titles = (
            rf"exact, t = {t + 1}, $\bar\alpha_t$ = {float(schedule.alphas_cumprod[t]):.3f}",
            f"learned: off by {off:.0%}",
        )
        for row, (eps, title) in enumerate(zip(fields, titles, strict=True)):
            axes = axes_of[row * len(times) + column]
            axes.plot(*x_t.T.numpy(), ".", color=palette.faint, markersize=1.5)
            draw_arrows(axes, places, -scale * eps, palette.series[row])
            axes.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach))
            without_frame(axes)
    return finished(figure, palette)
