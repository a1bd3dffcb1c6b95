"""Figures of noise schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddpm.diffusion.schedules import SCHEDULES, NoiseSchedule, make_schedule
from ddpm.figures.style import LINES, Style, blank, finished, panels, reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def schedules_compared(schedules: Mapping[str, NoiseSchedule] | None = None, *, style: Style = "light") -> Figure:
    """Return beta_t, alpha_bar_t, SNR_t and log SNR_t of schedules over t; none given: every named one, T = 1000.

    alpha_bar_t is the product of 1 - beta up to t (Ho et al. 2020, Eq. 4), SNR_t = alpha_bar_t / (1 - alpha_bar_t)
    (Kingma et al. 2021, Eq. 2). t counts from 1 to T.
    """
    schedules = schedules or {name: make_schedule(name) for name in SCHEDULES}
    figure, palette = blank(style, height=4.6)
    beta, left, snr, log_snr = panels(figure, 2, 2)
    for number, (name, schedule) in enumerate(schedules.items()):
        t = np.arange(len(schedule))
        colour, dashes = palette.series[number % len(palette.series)], LINES[number % len(LINES)]
        logarithm = schedule.log_snr(torch.arange(len(schedule))).numpy()
        for axes, values in (
            (beta, schedule.betas.numpy()),
            (left, schedule.alphas_cumprod.numpy()),
            (snr, np.exp(logarithm)),
            (log_snr, logarithm),
        ):
            axes.plot(t + 1, values, color=colour, linestyle=dashes, linewidth=1.3, label=name)
    beta.set(title=r"$\beta_t$: variance added by step t", yscale="log")
    left.set(title=r"$\bar\alpha_t$: share of the data's variance left")
    snr.set(title=r"SNR $= \bar\alpha_t / (1 - \bar\alpha_t)$", ylim=(0, 5))
    log_snr.set(title="log SNR")
    reference(snr, palette, 1.0)
    reference(log_snr, palette, 0.0)
    for axes in (snr, log_snr):
        axes.set_xlabel("t")
    beta.legend(loc="upper left", ncols=2, handlelength=2.4, labelspacing=0.2)
    return finished(figure, palette)
