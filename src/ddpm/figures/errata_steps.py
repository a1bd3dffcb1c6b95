"""Further mistakes of common texts, as `ddpm.figures.errata`: about schedules, and about single steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.likelihood import decoder_term
from ddpm.diffusion.noise import stream
from ddpm.diffusion.schedules import NoiseSchedule, VarianceKind, make_schedule
from ddpm.figures.errata import Values, compare, tables
from ddpm.figures.style import Palette, Style, blank, finished, panels, room_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def errata_schedule(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return E20, E22 and E18: what alpha_bar_t is a product of, where the linear schedule begins, what cosine is.

    E20: the product goes up to t, not T. E22: beta_start + t (beta_end - beta_start) / T misses the first beta. E18: a
    cosine schedule without its formula (Nichol & Dhariwal 2021, Eq. 17) is no other than the linear one before it.
    """
    schedule = schedule or make_schedule("linear")
    steps = len(schedule)
    t, betas, cumulative = np.arange(1, steps + 1.0), schedule.betas.numpy(), schedule.alphas_cumprod.numpy()
    shifted = betas[0] + t * (betas[-1] - betas[0]) / steps
    figure, palette = blank(style, height=2.9)
    product, ends, cosine = panels(figure, 1, 3)
    compare(
        product,
        palette,
        t,
        (r"$\prod_{s=1}^{t}\alpha_s$", cumulative),
        (r"$\prod_{t=1}^{T}\alpha_t$", np.full_like(cumulative, cumulative[-1])),
        r"E20: $\bar\alpha_t$",
    )
    product.set(yscale="log")
    first = slice(0, 10)
    compare(
        ends,
        palette,
        t[first],
        (rf"$\bar\alpha_T$ = {cumulative[-1]:.3e}", 1e4 * betas[first]),
        (rf"$\bar\alpha_T$ = {np.prod(1 - shifted):.3e}", 1e4 * shifted[first]),
        r"E22: first $\beta_t$, times $10^4$",
    )
    ends.set(ylim=(0, None), xticks=[1, 5, 10])
    compare(
        cosine,
        palette,
        t,
        ("cosine", make_schedule("cosine", steps).alphas_cumprod.numpy()),
        ("the linear one", cumulative),
        r"E18: $\bar\alpha_t$ of “cosine”",
    )
    for axes in (product, ends, cosine):
        room_above(axes, 0.3)
        axes.legend(loc="upper right")
    return finished(figure, palette)


def free_variances(gains: Values, added: Values) -> Values:
    """Return the variance of 1-D x before and after each step that multiplies it by a gain and adds noise; 1 at first.

    Args:
        gains: what each step multiplies the variance by.
        added: what it adds to it.
    """
    seen = [1.0]
    for gain, more in zip(gains, added, strict=True):
        seen.append(float(gain * seen[-1] + more))
    return np.array(seen)


def errata_step(schedule: NoiseSchedule | None = None, *, style: Style = "light", seed: int = 0) -> Figure:
    """Return E4, E23 and E25: what single steps do if the root is lost, or taken for the variance, and where they lead.

    E4: with the exact eps of N(0, 1) data, 1 / alpha_t before the mean makes the reverse chain a random walk. E23:
    noise whose *variance* is sqrt(beta_t) is far too much. E25: x_T converges in distribution; only its mean tends
    to 0.
    """
    schedule = schedule or make_schedule("linear")
    betas, signal = schedule.betas.numpy(), schedule.alphas_cumprod.sqrt().numpy()
    figure, palette = blank(style, height=2.9)
    reverse, forward, limit = panels(figure, 1, 3)
    backwards = betas[::-1]
    without_noise_at_last = np.concatenate([backwards[:-1], [0.0]])
    t = np.arange(len(betas) + 1.0)
    compare(
        reverse,
        palette,
        t[::-1],
        (r"$1/\sqrt{\alpha_t}$", free_variances(1 - backwards, without_noise_at_last)),
        (r"$1/\alpha_t$", free_variances(np.ones_like(betas), without_noise_at_last)),
        r"E4: variance of samples",
    )
    reverse.invert_xaxis()
    reverse.set(xlabel="t, from noise to data")
    compare(
        forward,
        palette,
        t,
        (r"variance $\beta_t$", free_variances(1 - betas, betas)),
        (r"variance $\sqrt{\beta_t}$", free_variances(1 - betas, np.sqrt(betas))),
        r"E23: variance of $x_t$",
    )
    for axes in (reverse, forward):
        axes.set(ylim=(0, None))
        room_above(axes, 0.26)
        axes.legend(loc="upper right")
    _draw_paths(limit, palette, betas, signal, seed)
    return finished(figure, palette)


def _draw_paths(axes: Axes, palette: Palette, betas: Values, signal: Values, seed: int) -> None:
    rng = stream(seed, "figure errata_step")
    starts = np.array([-1.5, -0.5, 0.5, 1.5])
    x, path = starts, [starts]
    for beta in betas:
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * rng.standard_normal(len(x))
        path.append(x)
    t = np.arange(len(betas) + 1.0)
    means = np.concatenate([[1.0], signal])[:, None] * starts
    for number, (walked, mean) in enumerate(zip(np.stack(path, 1), means.T, strict=True)):
        axes.plot(t, walked, color=palette.right, linewidth=0.6, label="" if number else r"right: to N(0, 1)")
        axes.plot(t, mean, "--", color=palette.wrong, label="" if number else "wrong: to the mean", zorder=3)
    axes.set(title=r"E25: $x_t$ of four $x_0$", xlabel="t")
    room_above(axes, 0.22)
    axes.legend(loc="upper right")


def deviation_ratios(schedule: NoiseSchedule, variance: VarianceKind, data_variance: float) -> Values:
    """Return the deviation of ancestral samples over that of q(x_s), for s = T - 1, ..., 1 (code times s from T - 2).

    The denoiser is the exact one of data N(0, data_variance), so x_s is Gaussian, and a step an affine map.
    """
    code = torch.arange(len(schedule) - 1, 0, -1, dtype=torch.float64)
    step, noisy = schedule.transition(code, code - 1), schedule.signal_and_noise(code)
    expected = noisy[0] * data_variance / (noisy[0] ** 2 * data_variance + noisy[1] ** 2)  # of x_0, times x_t
    gains = (step.x_0_weight * expected + step.x_t_weight).square()
    sampled = free_variances(gains.numpy(), step.variance(variance).numpy())[1:]
    signal, noise = (part.numpy() for part in schedule.signal_and_noise(code - 1))
    ratio: Values = np.sqrt(sampled / (signal**2 * data_variance + noise**2))
    return ratio


def errata_variance(schedule: NoiseSchedule | None = None, *, style: Style = "light") -> Figure:
    """Return E28: "the variance of the true denoising step" and "that of the forward process" are two choices.

    beta-tilde_t makes L_{t-1} the squared error of the means alone; beta_t adds a constant. Each is exact for one kind
    of data, beta_t for N(0, 1) and beta-tilde_t for a point (Ho et al. 2020, Sec. 3.2), and off for the other.
    """
    schedule = schedule or make_schedule("linear")
    t, betas, _, _, step = tables(schedule)
    ratio = step.variance_small.numpy() / betas
    figure, palette = blank(style, height=2.9)
    both, constant, spread = panels(figure, 1, 3)
    names = {"fixed_small": r"$\tilde\beta_t$", "fixed_large": r"$\beta_t$"}
    colours = {"fixed_small": palette.series[0], "fixed_large": palette.series[2]}
    dashes = {"fixed_small": "-", "fixed_large": "--"}
    both.plot(t, ratio * betas, dashes["fixed_small"], color=colours["fixed_small"], label=names["fixed_small"])
    both.plot(t, betas, dashes["fixed_large"], color=colours["fixed_large"], label=names["fixed_large"])
    both.set(title="E28: two variances", xlabel="t", xscale="log", yscale="log")
    extra = 0.5 * (ratio - 1 - np.log(ratio))
    constant.plot(t, extra, dashes["fixed_large"], color=colours["fixed_large"], label=names["fixed_large"])
    constant.set(title=r"nats that $\beta_t$ adds to $L_{t-1}$", xlabel="t", xscale="log", yscale="log")
    unfit: tuple[tuple[VarianceKind, float, str], ...] = (
        ("fixed_small", 1.0, "N(0, 1)"),
        ("fixed_large", 0.0, "a point"),
    )
    for variance, data_variance, data in unfit:
        off = np.abs(deviation_ratios(schedule, variance, data_variance) - 1)
        label = f"{names[variance]}, data {data}"
        spread.plot(t[::-1] - 1, off, dashes[variance], color=colours[variance], label=label)
    spread.set(title=r"deviation of $x_t$ is off by", xlabel="t", xscale="log", yscale="log")
    room_above(spread, 0.2)
    spread.legend(loc="upper right", labelspacing=0.2)
    both.legend(loc="upper left")
    return finished(figure, palette)


def errata_decoder(schedule: NoiseSchedule | None = None, *, style: Style = "light", levels: int = 256) -> Figure:
    """Return E30: the last term L_0 = -log p(x_0 | x_1) beside the squared error that L_simple makes of it.

    The discretised decoder (Ho et al. 2020, Eq. 13) gives each level the mass of its bin. In the middle this is nearly
    the density times the bin's width, whose logarithm is a squared error; the bins of the darkest and the
    brightest level reach to infinity, so overshooting costs nothing there.
    """
    schedule = schedule or make_schedule("linear")
    beta, width = float(schedule.betas[0]), 2 / (levels - 1)
    figure, palette = blank(style, height=2.9)
    middle = 1 - width * (levels // 2)
    for axes, level, name in zip(
        panels(figure, 1, 2), (middle, 1.0), ("a level in the middle", "the brightest level"), strict=True
    ):
        off = torch.linspace(-4 * width, 4 * width, 161, dtype=torch.float64)
        x_0, zeros = torch.full_like(off, level)[:, None], torch.zeros(len(off), 1, dtype=torch.float64)
        believed = Prediction(x_0 + off[:, None], zeros)
        decoder = decoder_term(x_0, zeros, believed, schedule, levels, "fixed_large").numpy()
        squared = off.numpy() ** 2 / (2 * beta) + 0.5 * math.log(2 * math.pi * beta) - math.log(width)
        compare(
            axes,
            palette,
            off.numpy() / width,
            (r"$-\log p(x_0|x_1)$, Eq. 13", decoder),
            ("squared error", squared),
            f"E30: $L_0$ of {name} (nats)",
        )
        axes.set(xlabel=r"error of $\hat x_0$, in levels")
        room_above(axes, 0.2)
        axes.legend(loc="upper right")
    return finished(figure, palette)
