"""Every figure by name: what it shows, what it needs, and how it is drawn from a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ddpm.diffusion.bits import BitsPerDim
from ddpm.errors import ConfigError, nearest
from ddpm.figures import (
    errata,
    errata_steps,
    estimators,
    forward,
    guidance,
    learned,
    likelihood,
    posterior,
    reverse,
    schedules,
)
from ddpm.figures.style import Style
from ddpm.figures.subject import Subject, digit_pictures, exact_bits, exact_digits, model_subject
from ddpm.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_SET = 400  # digits whose exact denoiser the figures of the bound are of
_MEASURED = 48


@dataclass(frozen=True)
class Request:
    """What a figure is drawn from.

    Attributes:
        style: light or dark.
        seed: 0 to 2^64 - 1, of all random numbers.
        model: for figures that show pictures; none: exact denoisers of the digits.
        measured: for figures of the bound; none: that of the exact denoiser of a set of digits, on some of them.
        points: float [N, 2] that a model of points was trained on, as x_0; none where it is not one.
    """

    style: Style = "light"
    seed: int = 0
    model: Model | None = None
    measured: BitsPerDim | None = None
    points: Tensor | None = None

    @cached_property
    def subject(self) -> Subject:
        """What pictures are sampled from."""
        return exact_digits() if self.model is None else model_subject(self.model)

    @cached_property
    def subjects(self) -> list[Subject]:
        """The same, under both schedules where there is no model."""
        return [exact_digits("linear"), exact_digits("cosine")] if self.model is None else [self.subject]

    @cached_property
    def bits(self) -> BitsPerDim:
        """The bound, term by term."""
        if self.measured is not None:
            return self.measured
        return exact_bits(exact_digits("linear", _SET), digit_pictures(_SET)[:: _SET // _MEASURED], seed=self.seed)

    @property
    def learned(self) -> tuple[Model, Tensor]:
        """A model of points, and what it was trained on.

        Raises:
            ConfigError: without one.
        """
        if self.model is None or self.points is None:
            raise ConfigError(
                "this figure shows what a model of points has learned; make one with: ddpm train swissroll, "
                "then: ddpm figure score-learned --model runs/swissroll"
            )
        return self.model, self.points


Takes = Literal["nothing", "a model of pictures", "a model, whose bound is measured", "a model of points, needed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A figure of the registry.

    Attributes:
        draw: makes it.
        shows: one line.
        takes: what else it can be drawn of.
    """

    draw: Callable[[Request], Figure]
    shows: str
    takes: Takes = "nothing"


_PICTURES: Takes = "a model of pictures"
_BOUND: Takes = "a model, whose bound is measured"
_POINTS: Takes = "a model of points, needed"

FIGURES: dict[str, Entry] = {
    "forward-histograms": Entry(
        lambda r: forward.forward_histograms("roots", style=r.style, seed=r.seed),
        "1-D data under x <- sqrt(a) x + sqrt(b) eps, a and b chosen freely",
    ),
    "forward-histograms-plain": Entry(
        lambda r: forward.forward_histograms("plain", style=r.style, seed=r.seed),
        "1-D data under x <- a x + b eps, a and b chosen freely",
    ),
    "forward-limits": Entry(
        lambda r: forward.forward_limits(style=r.style, seed=r.seed),
        "variance over steps in both forms, and its limits b/(1-a) and b^2/(1-a^2)",
    ),
    "forward-variance": Entry(
        lambda r: forward.forward_variance(style=r.style, seed=r.seed),
        "variance of 1-D data over t: constant, linear and cosine schedules",
    ),
    "forward-strips": Entry(
        lambda r: forward.forward_strips(digit_pictures(3), style=r.style, seed=r.seed),
        "pictures turning to noise: linear against cosine",
    ),
    "drift-and-noise": Entry(
        lambda r: forward.drift_and_noise(style=r.style, seed=r.seed),
        "x_t - x_{t-1} as drift plus noise: the stochastic differential equation",
    ),
    "schedules": Entry(
        lambda r: schedules.schedules_compared(style=r.style),
        "beta, alpha_bar, SNR and log SNR of every schedule",
    ),
    "posterior-weights": Entry(
        lambda r: posterior.posterior_weights(style=r.style),
        "weights of x_0 and x_t in the posterior mean, linear and logarithmic",
    ),
    "loss-weights": Entry(
        lambda r: posterior.loss_weights(style=r.style),
        "weights of L_{t-1} for eps, x_0, v and mu, with both variances",
    ),
    "why-gaussian": Entry(
        lambda r: posterior.why_gaussian(style=r.style),
        "the exact reverse step of a mixture, for large and small beta",
    ),
    "bound-estimators": Entry(
        lambda r: estimators.bound_estimators(style=r.style, seed=r.seed),
        "spread of two estimators of L_{t-1}: log-ratio of sampled pairs, KL given x_0",
    ),
    "reparameterisation": Entry(
        lambda r: estimators.reparameterisation(style=r.style, seed=r.seed),
        "gradients with the dice inside and outside the network",
    ),
    "score-field": Entry(
        lambda r: reverse.score_field(style=r.style, seed=r.seed),
        "the score of 2-D data at three noise levels",
    ),
    "score-learned": Entry(
        lambda r: learned.score_learned(*r.learned, style=r.style, seed=r.seed),
        "the score that a model of points has learned, beside the exact one of its data",
        _POINTS,
    ),
    "trajectories": Entry(
        lambda r: reverse.trajectories(style=r.style, seed=r.seed),
        "paths of points from noise to a Swiss roll: DDPM against DDIM",
    ),
    "guidance": Entry(
        lambda r: guidance.guidance(style=r.style, seed=r.seed),
        "points of a class at guidance scales 0, 1 and 3, with exact denoisers",
    ),
    "denoised-estimate": Entry(
        lambda r: reverse.denoised_estimate(r.subject, style=r.style, seed=r.seed),
        "x_t and the x_0 believed in, along the chain",
        _PICTURES,
    ),
    "one-step": Entry(
        lambda r: reverse.one_step(r.subject, style=r.style, seed=r.seed),
        "one-step against many-step denoising",
        _PICTURES,
    ),
    "reverse-strips": Entry(
        lambda r: reverse.reverse_strips(r.subjects, style=r.style, seed=r.seed),
        "noise turning to pictures: linear against cosine (of a model: its own schedule)",
        _PICTURES,
    ),
    "same-noise": Entry(
        lambda r: reverse.same_noise(r.subject, style=r.style, seed=r.seed),
        "the same x_T under DDPM twice and under DDIM twice",
        _PICTURES,
    ),
    "bound-shares": Entry(
        lambda r: likelihood.bound_shares(r.bits, style=r.style),
        "bits/dim that each reverse step costs",
        _BOUND,
    ),
    "rate-distortion": Entry(
        lambda r: likelihood.rate_distortion(r.bits, style=r.style),
        "distortion against rate along the chain",
        _BOUND,
    ),
    "errata-posterior": Entry(
        lambda r: errata.errata_posterior(style=r.style),
        "E1, E2, E5: misprints of the posterior q(x_{t-1} | x_t, x_0)",
    ),
    "errata-reverse": Entry(
        lambda r: errata.errata_reverse(style=r.style),
        "E3: dividing the reverse mean by sqrt(alpha_bar), and how sampling explodes",
    ),
    "errata-noise": Entry(
        lambda r: errata.errata_noise(style=r.style),
        "E17, E21, E29: how noise adds up, and how it does not",
    ),
    "errata-weights": Entry(
        lambda r: errata.errata_weights(style=r.style),
        "E6, E9, E26: weights of the losses",
    ),
    "errata-schedule": Entry(
        lambda r: errata_steps.errata_schedule(style=r.style),
        "E18, E20, E22: what alpha_bar is a product of, where beta begins, what cosine is",
    ),
    "errata-step": Entry(
        lambda r: errata_steps.errata_step(style=r.style, seed=r.seed),
        "E4, E23, E25: roots lost or taken for the variance, and where the chain leads",
    ),
    "errata-variance": Entry(
        lambda r: errata_steps.errata_variance(style=r.style),
        "E28: the two variances of the reverse step, and which data each is exact for",
    ),
    "errata-decoder": Entry(
        lambda r: errata_steps.errata_decoder(style=r.style),
        "E30: the last term L_0, and the squared error that is not quite the same",
    ),
}
"""Every figure, in the order of the story."""


def entry_of(name: str) -> Entry:
    """Return the figure of this name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in FIGURES:
        raise ConfigError(f"unknown figure '{name}'{nearest(name, FIGURES)}; `ddpm figure` lists them all")
    return FIGURES[name]
