"""What guidance does to a distribution: points of a class in the plane, whose exact denoisers are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.diffusion.analytic import MixtureDenoiser
from ddpm.diffusion.denoiser import ConditionalDenoiser, Prediction
from ddpm.diffusion.guidance import Guidance, classifier_free
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import ddim, spaced_timesteps
from ddpm.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm.figures.reverse import draw_density, without_frame
from ddpm.figures.style import Style, blank, finished, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEANS = ((-0.55, 0.65), (-0.15, 0.05), (-0.75, -0.35), (0.35, 0.35), (0.65, -0.45), (0.05, -0.75))
_DEVIATION = 0.22
_OF_CLASS = 3  # the first components are the class that is asked for


def two_classes(schedule: NoiseSchedule | None = None) -> tuple[MixtureDenoiser, MixtureDenoiser]:
    """Return the exact denoisers of all data, two classes that touch in the plane, and of the class asked for."""
    schedule = schedule or make_schedule("cosine")
    whole, of_class = torch.tensor(_MEANS, dtype=torch.float64), torch.tensor(_MEANS[:_OF_CLASS], dtype=torch.float64)
    return _even(schedule, whole), _even(schedule, of_class)


def _even(schedule: NoiseSchedule, means: Tensor) -> MixtureDenoiser:
    each = torch.ones(len(means), dtype=torch.float64)
    return MixtureDenoiser(schedule, each / len(means), means, _DEVIATION**2 * each)


def guided_points(scale: float, *, count: int = 500, steps: int = 60, seed: int = 0) -> Tensor:
    """Return points [count, 2] of the class under classifier-free guidance, by DDIM, from the same x_T at any scale."""
    whole, of_class = two_classes()
    noise = NoiseSource(seed, range(count), (2,), dtype=torch.float64)
    asked = Condition(label=torch.zeros(count, dtype=torch.int64))
    guided = classifier_free(_knows_the_class(whole, of_class), asked, Guidance(scale), whole.schedule)
    times = spaced_timesteps(steps, whole.schedule)
    *_, last = ddim(guided, whole.schedule, noise.normal(0, "x_T"), noise, timesteps=times)
    return last.x


def _knows_the_class(whole: MixtureDenoiser, of_class: MixtureDenoiser) -> ConditionalDenoiser:
    def denoise(x_t: Tensor, t: Tensor, condition: Condition | None, previous: Prediction | None = None) -> Prediction:
        plain, asked = whole(x_t, t), of_class(x_t, t)
        if condition is None or condition.label is None:
            return plain
        rows = (condition.label >= 0).unsqueeze(1)
        return Prediction(torch.where(rows, asked.x_0, plain.x_0), torch.where(rows, asked.eps, plain.eps))

    return denoise


def class_probability(points: Tensor) -> Tensor:
    """Return p(y | x_0) [N] of the class at points [N, 2], by Bayes' rule."""
    signal, noise = torch.ones(len(points), 1).to(points), torch.zeros(len(points), 1).to(points)
    joint = two_classes()[0].log_density(points, signal, noise)
    return joint.softmax(1)[:, :_OF_CLASS].sum(1)


def spread(points: Tensor) -> float:
    """Return the root of the mean squared distance from the mean."""
    return float((points - points.mean(0)).square().sum(1).mean().sqrt())


def guidance(scales: Sequence[float] = (0.0, 1.0, 3.0), *, style: Style = "light", seed: int = 0) -> Figure:
    """Return samples at several scales of guidance, on the density of the class that is asked for.

    eps = eps(none) + scale (eps(y) - eps(none)) (Ho & Salimans 2022, Eq. 6, whose w is scale - 1), with exact
    denoisers of two classes, so nothing that is seen is an error of a network. Crosses are the middles of the other
    class. Below each panel: how sure an exact classifier is of the class, and the spread of the points.
    """
    whole, of_class = two_classes()
    figure, palette = blank(style, height=2.85)
    reach = 1.6
    for axes, scale in zip(panels(figure, 1, len(scales)), scales, strict=True):
        draw_density(axes, palette, of_class, 0, reach)
        others = whole.means[_OF_CLASS:].numpy()
        axes.plot(*others.T, "x", color=palette.ink, markersize=5, zorder=3)
        points = guided_points(scale, seed=seed)
        axes.plot(*points.T.numpy(), ".", color=palette.series[1], markersize=2.2)
        sure = float(class_probability(points).mean())
        axes.set(
            title=f"scale {scale:g}" + {0.0: ": no class", 1.0: ": the class"}.get(scale, ""),
            xlabel=f"mean $p(y | x_0)$ {sure:.2f}, spread {spread(points):.2f}",
            xlim=(-reach, reach),
            ylim=(-reach, reach),
        )
        without_frame(axes)
    return finished(figure, palette)
